"""Does POISE still learn? The comparison's own commands, shortened: real runs, their records, thresholds.

Half of the comparison's updates (16 of 32), three seeds: POISE and GRPO on the quickstart, POISE on the uneven task;
fifty minutes on a core. The bounds (short_thresholds.yaml) are loose enough for noise, and tight enough for what
can break:

- gain on the quickstart >= 0.25. Healthy: 0.36 to about 0.83, 0.47. An advantage of the wrong sign makes accuracy fall,
  weights that do not reach vLLM leave it where it is (128 prompts x 4: a deviation of 0.02).
- final less GRPO's >= -0.10: seeds have a deviation of 0.03, so the median of three differences has one of 0.03: POISE
  that falls behind GRPO at equal tokens by more than noise fails.
- gradient_variance_ratio <= 0.70: the variance of the gradient over that with RLOO's baseline, median over updates.
  Healthy: 0.15. A baseline that is added instead of subtracted has above 1.
- probe_weight >= 0.30 on the uneven task: what the guard gives the probe, by out-of-prompt errors; median over updates.
  Healthy: 0.7 to 0.8 in the first half. Values that are noise, that belong to other rows, or that have the wrong sign
  are worse than the constant out of prompt: they get next to nothing. The accuracy alone would not tell, since the
  guard then falls back to the mean reward; nor would the quickstart, whose prompts are so alike that the constant is as
  good as any probe; nor the correlation of values with rewards, which has a bias downwards where values leave their
  own prompt out (a mean without x falls as x rises).
- gain on the uneven task >= 0.05. Healthy: 0.15.
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
RUNS = {"quickstart": ("poise", "grpo"), "uneven": ("poise",)}
SEEDS, UPDATES = ("0", "1", "2"), 16


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
    """A folder with the records of nine real runs."""
    folder = tmp_path_factory.mktemp("learning")
    for task, methods in RUNS.items():
        mark = uuid.uuid4().hex
        try:
            done = compare(
                "run", *(f"launch/runs/compare/{name}.yaml" for name in methods), "--task", task, "--seeds", *SEEDS,
                "--override", f"trainer.total_training_steps={UPDATES}", "--out", str(folder / task),
                folder=folder, limit_s=5000, mark=mark,
            )  # fmt: skip
        finally:
            kill_marked(mark)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    runs = [str(path) for path in sorted(folder.glob("runs/compare/*/*_s?")) if path.name[:6] != "assets"]
    assert len(runs) == 3 * len(SEEDS)
    done = compare("record", *runs, "--out", str(folder / "records"), folder=folder, limit_s=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.e2e
@pytest.mark.long
@pytest.mark.timeout(11000)
def test_poise_learns(trained):
    done = compare(
        "leaderboard", str(trained / "records"), "--out", str(trained / "leaderboard.md"), "--check", str(THRESHOLDS),
        folder=trained, limit_s=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.e2e
@pytest.mark.long
@pytest.mark.timeout(11000)
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
    for task, name in ((task, name) for task, methods in RUNS.items() for name in methods):
        command = ["local", f"launch/runs/compare/{name}.yaml", f"trainer.total_training_steps={UPDATES}", "--dry-run"]
        done = subprocess.run(
            [sys.executable, "-m", "launch", *command], cwd=ROOT, capture_output=True, text=True, timeout=120,
            env=os.environ | {"POISE_RUNS": str(tmp_path), "POISE_TASK": task},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    found = read_thresholds(THRESHOLDS)
    assert {(one.task, one.method) for one in found} == {(task, name) for task in RUNS for name in RUNS[task]}
    assert all(one.seeds == len(SEEDS) for one in found)
