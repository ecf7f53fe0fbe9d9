"""Run files for tests: the real schema with a payload in place of training."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parent


@pytest.fixture
def payload_folder(tmp_path, monkeypatch):
    """A folder with a model's config and data for preflight; the payload can be imported by every process."""
    import pandas as pd

    for name in ("train", "val"):
        pd.DataFrame({"prompt": ["1 + 1 ="], "data_source": ["sum"]}).to_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps({"model_type": "qwen3"}))
    (tmp_path / "model/model.safetensors").touch()
    monkeypatch.setenv("PYTHONPATH", str(HERE / "slurm_payload"))
    return tmp_path


@pytest.fixture
def write_run(payload_folder):
    """A function that writes a run file over `cpu_poise`; `overrides` and sections are merged by the base's rules."""

    def write(name: str = "payload", **settings) -> Path:
        overrides = {
            "data.train_files": str(payload_folder / "train.parquet"),
            "data.val_files": str(payload_folder / "val.parquet"),
            "actor_rollout_ref.model.path": str(payload_folder / "model"),
            "algorithm.adv_estimator": "grpo",
            "critic.enable": False,
            "trainer.total_training_steps": 8,
            "trainer.save_freq": 2,
        }
        values = {
            "base": str(HERE.parents[1] / "launch/runs/cpu_poise.yaml"),
            "name": name,
            "entry": "payload",
            "folder": str(payload_folder / "runs" / name),
            "prepare": [],
            "preflight": {"min_device_gb": 0.5},
            "ray_cpus": 4,
            "object_store_bytes": 80_000_000,
        }
        values |= settings
        values["overrides"] = overrides | settings.get("overrides", {})
        path = payload_folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


@pytest.fixture
def shellcheck():
    """The program's path."""
    found = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{'/usr/bin'}")
    assert found, "shellcheck is in the dev extra: pip install -e .[cpu,dev]"
    return found
