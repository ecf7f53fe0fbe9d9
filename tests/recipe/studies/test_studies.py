"""The studies of values and of gradients, run for real on a model of the embedded default's form."""

import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest

from recipe.poise.quickstart.prepare import Settings, prepare
from recipe.poise.quickstart.warm_start import WarmStart
from recipe.poise.studies import gradient_variance, value_study

REWARD = """
def score(data_source, solution_str, ground_truth, extra_info=None):
    return float(len(solution_str) % 2)
"""


@pytest.fixture(scope="module")
def assets(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("studies") / "assets_s0"
    assert prepare(out, Settings(WarmStart(steps=2, batch=4), train_prompts=48, val_prompts=4, seed=0))
    (out / "reward.py").write_text(REWARD)  # an untrained model solves nothing
    return out


def study(name: str, assets: Path, out: Path, *arguments) -> subprocess.CompletedProcess:
    """In a process of its own: verl's worker opens a process group."""
    command = [sys.executable, "-m", f"recipe.poise.studies.{name}", "--out", out, "--max-tokens", 8]
    command += ["--reward", f"{assets}/reward.py:score", *arguments]
    environment = os.environ | {"VERL_PLATFORM": "cpu", "VLLM_TARGET_DEVICE": "cpu"}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=400, env=environment)


def test_values_are_studied_and_a_finished_seed_is_kept(assets, tmp_path):
    folder = str(assets).replace("_s0", "_s{seed}")
    done = study(
        "value_study", assets, tmp_path, "--model", f"{folder}/model", "--data", f"{folder}/train.parquet",
        "--seeds", 0, 0, "--fit-prompts", 30, "--held-out", 12, "--k", 2, "--learning-rates", 1e-2, "--epochs", 2,
        "--rows-per-update", 32,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "[2/2] seed 0: done before" in done.stdout
    found = json.loads((tmp_path / "value_study_s0.json").read_text())
    results = found["results"]
    assert results["value model, PPO's setting"]["epochs"] == 1
    assert results["value model, PPO's setting"]["learning_rate"] == 1e-5
    assert [entry["epochs"] for entry in found["tried"]] == [1, 1, 2]
    errors = [entry["selection_error"] for entry in found["tried"]]
    assert results["value model, tuned"]["selection_error"] == min(errors)
    assert errors[1] != errors[2] != errors[0], "the value model does not learn"
    assert results["value model, tuned"]["parameters"] > 100 * results["probe"]["parameters"] > 0
    for name, entry in results.items():
        assert 0.0 <= entry["mae"] <= 1.5 and (entry["pearson"] is None) == (name == "constant"), name
    assert results["value model, tuned"]["seconds"] > results["probe"]["seconds"] > 0
    text = (tmp_path / "value_study.md").read_text()
    assert "| probe | 1 |" in text and "| value model, tuned | 0 |" in text
    assert matplotlib.image.imread(tmp_path / "value_study.png")[..., :3].std() > 0.05


def test_gradients_are_studied(assets, tmp_path):
    done = study(
        "gradient_variance", assets, tmp_path, "--model", assets / "model", "--data", assets / "train.parquet",
        "--fit-prompts", 16, "--rollouts", 12, "--directions", 4,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "POISE, n=2 beside GRPO, n=8, equal tokens: variance / signal is" in done.stdout
    results = json.loads((tmp_path / "gradient_variance.json").read_text())["results"]
    assert {"GRPO, n=8", "DAPO, n=8", "POISE, n=2", "RLOO, n=2"} <= set(results)
    assert all(entry["variance"]["low"] <= entry["variance"]["high"] for entry in results.values())
    assert "| POISE, n=2 |" in (tmp_path / "gradient_variance.md").read_text()
    assert matplotlib.image.imread(tmp_path / "gradient_variance.png")[..., :3].std() > 0.05


def test_too_few_prompts_are_said(assets, tmp_path, capsys):
    common = ["--model", f"{assets}/model", "--data", f"{assets}/train.parquet", "--out", str(tmp_path)]
    assert value_study.main([*common, "--fit-prompts", "40", "--held-out", "12"]) == 2
    assert "40 fit and 12 held-out prompts are wanted, the file has 48" in capsys.readouterr().err
    assert gradient_variance.main([*common, "--fit-prompts", "48"]) == 2
    assert "--fit-prompts must leave some" in capsys.readouterr().err
