"""State on disk: read back bit by bit, refused with the difference, and never executed."""

import hashlib
import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from probe import FeatureLayout, ProbeBank, ProbeSettings
from probe.settings import KINDS


def settings(**changes):
    return ProbeSettings(**{"min_rows": 8, "window_rows": 100, "exact_features": 4, "rank": 4} | changes)


@pytest.fixture
def saved(tmp_path, layout, step_rows):
    bank = ProbeBank(settings(), layout)
    for step in range(3):
        bank.update(*step_rows(seed=step), step=step)
    bank.save(tmp_path / "probe")
    return bank, tmp_path / "probe"


def without_times(metrics):
    return {name: value for name, value in metrics.items() if "time" not in name}


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_goes_on_bit_by_bit(kind, tmp_path, layout, step_rows):
    config = settings(kind=kind, domains={"code": "code*"}, borrow_rows=30, max_age=4)
    bank, again = ProbeBank(config, layout), ProbeBank(config, layout)
    rows = [step_rows(seed=step) for step in range(8)]
    for step in range(4):
        bank.update(*rows[step], rows[step][2] % 4 // 3, step=step)
    bank.save(tmp_path / "probe")
    again.load(tmp_path / "probe")
    for step in range(4, 8):
        domain_R = rows[step][2] % 4 // 3
        first, second = bank.predict(rows[step][0], domain_R), again.predict(rows[step][0], domain_R)
        assert torch.equal(first.value_R, second.value_R) and torch.equal(first.weight_R3, second.weight_R3)
        metrics = [b.update(*rows[step], domain_R, step=step) for b in (bank, again)]
        assert str(without_times(metrics[0])) == str(without_times(metrics[1]))  # as text: NaN equals NaN
    assert again.updates == 8


def test_an_empty_bank_round_trips(tmp_path, layout):
    ProbeBank(settings(), layout).save(tmp_path / "probe")
    again = ProbeBank(settings(), layout)
    again.load(tmp_path / "probe")
    assert again.predict(torch.zeros(2, 13)).value_R.isnan().all()


def test_saving_replaces_and_leaves_nothing_behind(saved, step_rows):
    bank, folder = saved
    bank.update(*step_rows(seed=9), step=9)
    bank.save(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["probe"]
    assert sorted(path.name for path in folder.iterdir()) == ["probe.json", "probe.safetensors"]


def test_another_probes_state_is_refused_with_the_difference(saved, layout):
    _, folder = saved
    with pytest.raises(ValueError, match=r"settings.window_rows: this run 4096, checkpoint 100"):
        ProbeBank(settings(window_rows=4096), layout).load(folder)
    with pytest.raises(ValueError, match=r"features.entropy: this run absent, checkpoint 1"):
        ProbeBank(settings(), FeatureLayout(("prompt", "response"), (6, 6))).load(folder)


@pytest.mark.parametrize("name", ["probe.json", "probe.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "pickle", "empty", "nested"])
def test_a_damaged_file_fails_cleanly_and_executes_nothing(saved, layout, name, damage, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    _, folder = saved
    whole = (folder / name).read_bytes()
    damaged = {"truncated": whole[:50], "pickle": pickle.dumps(Bomb()), "empty": b"", "nested": b"[" * 100_000}
    (folder / name).write_bytes(damaged[damage])
    with pytest.raises(ValueError, match="damaged"):
        ProbeBank(settings(), layout).load(folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("key", ["window", "estimator", "weights", "errors"])
def test_a_manifest_that_lacks_something_is_refused(saved, layout, key):
    _, folder = saved
    manifest = json.loads((folder / "probe.json").read_text())
    del manifest["domains"]["default"][key]
    (folder / "probe.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=key):
        ProbeBank(settings(), layout).load(folder)


def test_a_flipped_bit_is_found(saved, layout):
    _, folder = saved
    content = bytearray((folder / "probe.safetensors").read_bytes())
    content[-9] ^= 1
    (folder / "probe.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="damaged .its digest"):
        ProbeBank(settings(), layout).load(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [("default.window.feature", "column feature of shape"), ("default.estimator.basis_", "damaged")],
)
def test_tensors_of_another_shape_are_refused(saved, layout, name, message):
    """Also in a file that somebody made: its digest is right."""
    _, folder = saved
    tensors = load_file(folder / "probe.safetensors")
    tensors[name] = tensors[name][:, :3].contiguous()
    save_file(tensors, folder / "probe.safetensors")
    manifest = json.loads((folder / "probe.json").read_text())
    manifest["digest"] = hashlib.blake2b((folder / "probe.safetensors").read_bytes(), digest_size=16).hexdigest()
    (folder / "probe.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=message):
        ProbeBank(settings(), layout).load(folder)


def test_no_state_there(tmp_path, layout):
    with pytest.raises(FileNotFoundError):
        ProbeBank(settings(), layout).load(tmp_path / "probe")
