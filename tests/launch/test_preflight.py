"""Preflight's checks on this machine, each on what makes it fail, and the table."""

import copy
import json
import os
import subprocess
import sys

import pytest

from launch import checks
from launch.checks import Check
from launch.preflight import _same, table
from launch.runfile import ROOT, load


@pytest.fixture
def run(write_run):
    return load(write_run("checked"))


def failed(found: list[Check]) -> dict[str, str]:
    return {item.name: item.remedy for item in found if not item.ok}


def test_a_good_machine_passes(write_run):
    """The command, in a process of its own: verl takes its platform when it is imported."""
    command = [sys.executable, "-m", "launch", "preflight", str(write_run("good"))]
    env = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("versions", "plug-in", "memory", "model", "train data", "validation data", "reward", "ports"):
        assert f" {name} " in done.stdout
    assert "checks passed" in done.stdout and "FAIL" not in done.stdout


def test_what_is_not_there_is_named(payload_folder, run):
    (payload_folder / "model/config.json").unlink()
    (payload_folder / "train.parquet").write_bytes(b"PAR1 not really")
    (payload_folder / "val.parquet").unlink()
    found = [
        *checks.check_model(str(payload_folder / "model")),
        *checks.check_files("train data", [str(payload_folder / "train.parquet")]),
        *checks.check_files("validation data", [str(payload_folder / "val.parquet")]),
    ]
    remedies = failed(found)
    assert set(remedies) == {"model", "train data", "validation data"}
    assert "shared filesystem" in remedies["model"] and "not a readable parquet" in remedies["train data"]
    text = table(found)
    assert text.count("FAIL") == 3 and "3 of 3 checks failed" in text


def test_a_model_that_was_not_copied_whole(payload_folder):
    model = payload_folder / "model"
    assert failed(checks.check_model(str(model))) == {}
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert "model-00002-of-00002.safetensors is not visible" in failed(checks.check_model(str(model)))["model"]
    (model / "model.safetensors.index.json").unlink()
    (model / "model-00001-of-00002.safetensors").unlink()
    assert "model.safetensors is not visible" in failed(checks.check_model(str(model)))["model"]


def test_a_module_must_be_importable_and_remote_files_are_left_to_verl():
    assert failed(checks.check_files("reward", ["pkg://reward.router"])) == {}
    for missing in ("pkg://reward.nope", "pkg://no_such_package.module"):
        assert "cannot be imported" in failed(checks.check_files("reward", [missing]))["reward"]
    found = [*checks.check_files("train data", ["hdfs://x/train.parquet"]), *checks.check_model("s3://bucket/model")]
    assert failed(found) == {} and all("not looked at" in item.found for item in found)


def test_a_hub_model_offline_must_be_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "hf download no/such-model" in failed(checks.check_model("no/such-model"))["model"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert failed(checks.check_model("no/such-model")) == {}


def test_thresholds(run):
    limits = run.preflight.model_copy(update={"min_folder_gb": 1e9, "min_tmp_gb": 1e9, "min_device_gb": 1e6})
    starved = run.model_copy(update={"preflight": limits})
    assert set(failed(checks.check_disk(starved))) == {"disk of the run", "disk /tmp"}
    assert "another job" in failed(checks.check_devices(starved))["memory"]


def test_gpus_that_are_not_there(run):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has GPUs")
    gpu = run.model_copy(update={"accelerator": "gpu", "gpus_per_node": 2})
    assert "gpus_per_node=2" in failed(checks.check_devices(gpu))["devices"]


def test_two_pools_of_devices_are_told_and_want_cupy(monkeypatch):
    run = load("qwen3_4b_poise_async_4x8")
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    found = checks.check_pools(run)
    assert [item.found for item in found] == ["16 devices train, 16 generate", "missing"]
    assert "pip install -e .[async]" in failed(found)["cupy"]
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: name == "cupy" or None)
    assert failed(checks.check_pools(run)) == {}
    assert [item.name for item in checks.check_pools(run.model_copy(update={"accelerator": "cpu"}))] == ["pools"]
    assert checks.check_pools(load("qwen3_4b_poise_4x8")) == []


def test_another_verl_and_a_missing_package(monkeypatch):
    monkeypatch.setitem(checks.PINNED, "verl", "0.0.0")
    monkeypatch.setattr(checks, "PACKAGES", ("verl", "no-such-package"))
    remedy = failed(checks.check_versions())["versions"]
    assert "not 0.0.0" in remedy and "no-such-package missing" in remedy


def test_flash_attn_may_be_missing_but_not_on_some_nodes_only(monkeypatch):
    assert checks.versions()["flash-attn"] == "none" and failed(checks.check_versions()) == {}
    with_it = checks.versions() | {"flash-attn": "2.8.3"}
    assert not _same("versions agree", [checks.versions(), with_it]).ok
    monkeypatch.setattr(checks, "OPTIONAL", ("verl",))
    assert checks.versions()["verl"] == "0.9.1"


def test_checks_travel(run):
    """They come back from Ray's workers: plain and small."""
    found = [*checks.check_versions(), *checks.check_disk(run), *checks.check_ports(run, ray_runs=True)]
    assert copy.deepcopy(found) == found  # by the protocol that Ray serialises with
    assert json.dumps([item.found for item in found])
