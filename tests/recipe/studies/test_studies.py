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


def test_gradients_are_studied_and_a_finished_checkpoint_is_kept(assets, tmp_path):
    folder = str(assets).replace("_s0", "_s{seed}")
    command = (
        "gradient_variance", assets, tmp_path, "--model", f"start={folder}/model", f"again={folder}/model",
        "--data", f"{folder}/train.parquet", "--fit-prompts", 32, "--prompts", 16, "--rollouts", 16,
        "--directions", 4, "--sample-on", "cpu",
    )  # fmt: skip
    done = study(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "start: POISE, fresh, energy, n=2 beside RLOO, n=8, equal tokens: variance is" in done.stdout
    first, second = json.loads((tmp_path / "gradient_variance.json").read_text())["checkpoints"]
    assert (first["label"], second["label"]) == ("start", "again")
    results = first["results"]
    assert results == second["results"], "the same checkpoint with the same seed"
    assert {"GRPO, n=8", "DAPO, n=8", "OTB (verl), n=8", "POISE, lagged, uniform, n=2"} <= set(results)
    for name, entry in results.items():
        assert 0 < entry["variance"]["low"] <= entry["variance"]["value"] <= entry["variance"]["high"], name
    assert results["RLOO, n=8"]["over_rloo"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert results["energy-weighted constant, n=1"]["over_constant"]["high"] == 1.0
    assert first["energies"]["true |s|^2"]["correlation"] == pytest.approx(1.0)
    assert all(0 <= entry["constant"] <= 1 for entry in first["energies"].values())
    assert set(first["worth"]) == {"equal", "energy"} and "a sibling's states" in first["worth"]["equal"]
    text = (tmp_path / "gradient_variance.md").read_text()
    widths = {len(line.replace(r"\|", "").split("|")) for line in text.split("\n") if line.startswith("| sum")}
    assert len(widths) == 1, "a name breaks its table"
    assert "| POISE, fresh, energy, n=2 | yes |" in text and "| the prompt's state |" in text
    assert matplotlib.image.imread(tmp_path / "gradient_variance.png")[..., :3].std() > 0.05
    again = study(*command)
    assert again.returncode == 0 and again.stdout.count("done before") == 2


def test_too_few_prompts_are_said(assets, tmp_path, capsys):
    common = ["--model", f"{assets}/model", "--data", f"{assets}/train.parquet", "--out", str(tmp_path)]
    assert value_study.main([*common, "--fit-prompts", "40", "--held-out", "12"]) == 2
    assert "40 fit and 12 held-out prompts are wanted, the file has 48" in capsys.readouterr().err
    assert gradient_variance.main([*common, "--fit-prompts", "48"]) == 2
    assert "--fit-prompts 48 must leave some" in capsys.readouterr().err
    assert gradient_variance.main([*common, "--model", f"a={assets}/model", f"a={assets}", "--fit-prompts", "16"]) == 2
    assert "write NAME=PATH" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        gradient_variance.main([*common, "--sample-on", "abacus"])
    assert "--sample-on: 'abacus' is no device that torch has here" in capsys.readouterr().err
    assert gradient_variance.main([*common, "--fit-prompts", "16", "--energy", "warmth"]) == 2
    assert "want one of" in capsys.readouterr().err
