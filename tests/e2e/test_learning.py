"""Does POISE still learn? The comparison's own commands, shortened: real runs, their records, thresholds.

Half of the quickstart (12 of 24 updates of 64 rollouts), three seeds of POISE and of GRPO: about 20 minutes on a core.
The bounds (short_thresholds.yaml) are loose enough for noise, and tight enough for what can break:

- gain >= 0.25. Healthy: 0.36 to about 0.78 in twelve updates, 0.42. An advantage of the wrong sign makes accuracy fall,
  weights that do not reach vLLM leave it where it is (128 prompts x 4: a deviation of 0.02).
- probe_correlation >= 0.10: the median over updates of the correlation between a row's value and its sibling's reward.
  Healthy: about 0.3. Of 64 rows without any relation it has a deviation of 1/8, its median over twelve updates one of
  0.045, the median of three seeds one of 0.03: values that are noise, that belong to other rows, or that are a constant
  are below the bound by three deviations, and those of a probe with the wrong sign are below zero. The accuracy alone
  would not tell: the guard falls back to the mean of the rewards, and learning is hardly slower for it.
- gradient_variance_ratio <= 0.70: the variance of the gradient over that with RLOO's baseline. Healthy: 0.25. A
  baseline that is added instead of subtracted has above 1.
- final less GRPO's >= -0.10: seeds have a deviation of 0.03, so the median of three differences has one of 0.03: POISE
  that falls behind GRPO at equal tokens by more than noise fails.
"""

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from recipe.poise.compare.records import read_all_records
from recipe.poise.compare.reference import FEWEST, departures, references
from recipe.poise.compare.thresholds import read_thresholds

ROOT = Path(__file__).parents[2]
THRESHOLDS = Path(__file__).with_name("short_thresholds.yaml")
COMMITTED = ROOT / "docs/leaderboard/runs"
METHODS, SEEDS, UPDATES = ("poise", "grpo"), ("0", "1", "2"), 12


def compare(*words: str, folder: Path, limit_s: float, mark: str = "") -> subprocess.CompletedProcess:
    """`python -m recipe.poise.compare`, with runs under a folder."""
    return subprocess.run(
        [sys.executable, "-m", "recipe.poise.compare", *words],
        cwd=ROOT,
        env=os.environ | {"POISE_RUNS": str(folder / "runs"), "POISE_TEST_RUN": mark},
        capture_output=True,
        text=True,
        timeout=limit_s,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory, kill_marked) -> Path:
    """A folder with the records of six real runs."""
    folder, mark = tmp_path_factory.mktemp("learning"), uuid.uuid4().hex
    files = [f"launch/runs/compare/{name}.yaml" for name in METHODS]
    try:
        done = compare(
            "run", *files, "--seeds", *SEEDS, "--override", f"trainer.total_training_steps={UPDATES}",
            "--out", str(folder / "report"), folder=folder, limit_s=7000, mark=mark,
        )  # fmt: skip
    finally:
        kill_marked(mark)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    runs = [str(folder / f"runs/compare/quickstart/{name}_s{seed}") for name in METHODS for seed in SEEDS]
    done = compare("record", *runs, "--out", str(folder / "records"), folder=folder, limit_s=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.e2e
@pytest.mark.long
@pytest.mark.timeout(7200)
def test_poise_learns(trained):
    done = compare(
        "leaderboard", str(trained / "records"), "--out", str(trained / "leaderboard.md"), "--check", str(THRESHOLDS),
        folder=trained, limit_s=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.e2e
@pytest.mark.long
@pytest.mark.timeout(7200)
def test_it_goes_as_the_committed_runs_went(trained):
    """Curves and step times beside those in docs/leaderboard/runs."""
    known = read_all_records([str(COMMITTED)]) if COMMITTED.is_dir() else []
    records = read_all_records([str(trained / "records")])
    if any(len(references(record, known)) < FEWEST for record in records):
        pytest.skip("docs/leaderboard/runs has too few records of the quickstart")
    found = {record.name: said for record in records if (said := departures(record, known))}
    assert not found, found


def test_the_commands_are_those_that_there_are(tmp_path):
    """What the long test starts, without the training: its run files and override compose, its thresholds are read."""
    for name in METHODS:
        command = ["local", f"launch/runs/compare/{name}.yaml", f"trainer.total_training_steps={UPDATES}", "--dry-run"]
        done = subprocess.run(
            [sys.executable, "-m", "launch", *command],
            cwd=ROOT, env=os.environ | {"POISE_RUNS": str(tmp_path)}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    found = read_thresholds(THRESHOLDS)
    assert {one.method for one in found} == set(METHODS) and all(one.seeds == len(SEEDS) for one in found)
