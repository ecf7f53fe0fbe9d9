"""Only complete checkpoints are used: every way in which a folder can be torn, and what is done about it."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from launch.checkpoints import (
    STOP_FILE,
    TRACKER,
    Contents,
    WorldSizeError,
    fault,
    newest_complete,
    prepare,
    rotate,
    world_size,
)
from launch.compose import resolved
from launch.runfile import load


@pytest.fixture(scope="module")
def config():
    return resolved(load("cpu_poise_2x1"), cluster=True)


def save(folder, step: int, ranks: int = 2, critic: bool = True):
    """As verl 0.9.1 and the probe write it."""
    path = folder / f"global_step_{step}"
    (path / "actor/huggingface").mkdir(parents=True)
    (path / "actor/huggingface/config.json").write_text("{}")
    for rank in range(ranks):
        for name in ("model", "optim", "extra_state"):
            torch.save({"x": torch.ones(100)}, path / f"actor/{name}_world_size_{ranks}_rank_{rank}.pt")
    (path / "actor/fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": ranks}))
    if critic:
        (path / "critic").mkdir()
        (path / "critic/probe.json").write_text("{}")
        save_file({"weight": torch.ones(10)}, path / "critic/probe.safetensors")
    torch.save({}, path / "data.pt")
    (folder / TRACKER).write_text(str(step))
    return path


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


TORN = {
    "actor": lambda path: shutil.rmtree(path / "actor"),
    "shard missing": lambda path: (path / "actor/optim_world_size_2_rank_1.pt").unlink(),
    "shard cut": lambda path: cut(path / "actor/model_world_size_2_rank_0.pt"),
    "shard empty": lambda path: (path / "actor/model_world_size_2_rank_0.pt").write_bytes(b""),
    "fsdp_config": lambda path: (path / "actor/fsdp_config.json").write_text('{"FSDP_ver'),
    "huggingface": lambda path: shutil.rmtree(path / "actor/huggingface"),
    "critic": lambda path: shutil.rmtree(path / "critic"),
    "probe cut": lambda path: cut(path / "critic/probe.safetensors"),
    "probe.json": lambda path: (path / "critic/probe.json").write_text("{"),
    "data missing": lambda path: (path / "data.pt").unlink(),
    "data cut": lambda path: cut(path / "data.pt"),
}


@pytest.mark.parametrize("how", TORN)
def test_a_torn_checkpoint_is_skipped_and_the_one_before_is_used(tmp_path, config, caplog, how):
    save(tmp_path, 2)
    TORN[how](save(tmp_path, 4))
    assert prepare(tmp_path, config, devices=2) == 2
    assert (tmp_path / TRACKER).read_text() == "2"
    assert "global_step_4 is torn" in caplog.text and "goes on from global_step_2" in caplog.text
    assert not (tmp_path / "global_step_4").exists() and (tmp_path / "torn_global_step_4").exists()


def test_complete_ones_are_complete(tmp_path, config):
    assert fault(save(tmp_path, 10), Contents.of(config)) is None
    save(tmp_path, 9)
    assert newest_complete(tmp_path, Contents.of(config)) == (10, {})  # by number, not by name
    assert prepare(tmp_path, config, devices=2) == 10


@pytest.mark.parametrize("tracker", ["", "7", "not a number"])
def test_a_tracker_that_is_torn_or_wrong_is_made_right(tmp_path, config, tracker):
    save(tmp_path, 2)
    (tmp_path / TRACKER).write_text(tracker)
    assert prepare(tmp_path, config, devices=2) == 2
    assert (tmp_path / TRACKER).read_text() == "2"


def test_nothing_complete_starts_anew(tmp_path, config, caplog):
    TORN["data missing"](save(tmp_path, 2))
    assert prepare(tmp_path, config, devices=2) == 0
    assert not (tmp_path / TRACKER).exists() and "goes on from the start" in caplog.text
    assert prepare(tmp_path / "new", config, devices=2) == 0


def test_a_stop_request_of_an_earlier_attempt_is_gone(tmp_path, config):
    (tmp_path / STOP_FILE).touch()
    prepare(tmp_path, config, devices=2)
    assert not (tmp_path / STOP_FILE).exists()


def test_another_world_size_is_refused_with_the_way_to_do_it(tmp_path, config):
    path = save(tmp_path, 2, ranks=4)
    assert world_size(path / "actor") == 4
    with pytest.raises(WorldSizeError, match=r"(?s)written on 4 devices, this run has 2.*verl.model_merger merge"):
        prepare(tmp_path, config, devices=2)
    assert path.exists() and (tmp_path / TRACKER).read_text() == "2"  # nothing was touched


def test_contents_follow_the_config(tmp_path, config):
    path = save(tmp_path, 2, critic=False)
    assert fault(path, Contents(critic=False)) is None
    assert fault(path, Contents(critic=True)) == "critic/ is missing"
    assert fault(path, Contents(critic=False, queue=True)) == "transfer_queue/ is missing"
    for shard in (path / "actor").glob("optim_*"):
        shard.unlink()
    assert fault(path, Contents(shards=("model",), critic=False)) is None


def test_a_trained_critic_has_shards_too(tmp_path):
    path = save(tmp_path, 2)
    shutil.rmtree(path / "critic")
    shutil.copytree(path / "actor", path / "critic")
    assert fault(path, Contents()) is None
    (path / "critic/model_world_size_2_rank_1.pt").unlink()
    assert fault(path, Contents()) == "critic/model_world_size_2_rank_1.pt is missing"


def test_rotation_keeps_the_newest_complete_ones(tmp_path, config):
    for step in (2, 4, 6, 8):
        save(tmp_path, step)
    TORN["data missing"](tmp_path / "global_step_8")
    shutil.rmtree(tmp_path / "global_step_2/actor")  # what verl's own rotation leaves
    assert rotate(tmp_path, None, Contents.of(config)) == []
    assert rotate(tmp_path, 2, Contents.of(config)) == [2]
    assert sorted(path.name for path in tmp_path.glob("global_step_*")) == [f"global_step_{step}" for step in (4, 6, 8)]
    assert rotate(tmp_path, 1, Contents.of(config)) == [4]


def test_verls_own_names():
    """The names that `save` writes are verl's: the source says so."""
    package = Path(importlib.util.find_spec("verl").submodule_search_locations[0])
    source = (package / "utils/checkpoint/fsdp_checkpoint_manager.py").read_text()
    for name in ("model", "optim", "extra_state"):
        assert f'f"{name}_world_size_{{self.world_size}}_rank_{{self.rank}}.pt"' in source
    assert '"fsdp_config.json"' in source and '"huggingface"' in source
