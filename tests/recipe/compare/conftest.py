"""Run folders as `launch` leaves them, without the training; and records with curves that are known by construction."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from launch.attempt import merge_metrics, new_logs
from launch.attempts import Attempts
from launch.cli import read
from launch.compose import resolved_yaml
from launch.environment import write_public
from launch.runfile import ROOT
from recipe.poise.compare.records import Record, Updates, Validation, record_run

SOURCES = ("val-core/products/acc/mean@4", "val-core/sums/acc/mean@4")


def logged(updates: int = 8) -> dict[int, dict[str, float]]:
    """What a run logs: accuracy from 0.2 to 0.6, 1000 tokens and 10 s per update, of which the last 100 for nothing."""
    steps: dict[int, dict[str, float]] = {0: dict.fromkeys(SOURCES, 0.2)}
    for step in range(1, updates + 1):
        steps[step] = {
            "timing_s/step": 10.0, "timing_s/gen": 4.0 + step % 2, "rollout/generated_tokens": 1000.0,
            "rollout/discarded_tokens": 100.0 * (step == updates), "actor/grad_norm": 1.0, "poise/weight_probe": 0.3,
        }  # fmt: skip
        if step % 2 == 0:
            level = 0.2 + 0.4 * step / updates
            steps[step] |= dict(zip(SOURCES, (level - 0.1, level + 0.1), strict=True))
    return steps


def leave_a_run(steps: dict, method: str = "poise", overrides: tuple[str, ...] = (), outcome: str = "done") -> Path:
    """Everything that `launch local` writes but what is the trainer's own; the run's folder."""
    run = read(str(ROOT / f"launch/runs/compare/{method}.yaml"), overrides)
    number, logs = new_logs(run.root)
    write_public(run.root / "config.yaml", resolved_yaml(run, cluster=False), run)
    write_public(logs / "run.json", run.to_json() + "\n", run)
    attempts = Attempts.read(run.root, "id")
    attempt = attempts.begin(number, 0, 1, logs)
    lines = (json.dumps({"step": step, "data": data}) + "\n" for step, data in steps.items())
    (logs / "metrics.jsonl").write_text("".join(lines))
    if outcome != "running":
        attempts.end(attempt, outcome, 0, max(steps))
        merge_metrics(run.root, attempts)
    return run.root


@pytest.fixture
def left(monkeypatch, tmp_path) -> Callable[..., Path]:
    """``left(steps, method=, overrides=, outcome=, seed=, task=) -> run folder`` under tmp_path/runs."""
    monkeypatch.setenv("POISE_RUNS", str(tmp_path / "runs"))

    def leave(steps=None, seed: int = 0, task: str = "quickstart", **what) -> Path:
        monkeypatch.setenv("POISE_SEED", str(seed))
        monkeypatch.setenv("POISE_TASK", task)
        return leave_a_run(logged() if steps is None else steps, **what)

    return leave


@pytest.fixture(scope="session")
def pattern(tmp_path_factory) -> Record:
    """A record, from which others are made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POISE_RUNS", str(tmp_path_factory.mktemp("runs")))
        for name in ("POISE_SEED", "POISE_TASK"):
            patch.delenv(name, raising=False)
        return record_run(str(leave_a_run(logged())))


@pytest.fixture
def made(pattern) -> Callable[..., Record]:
    """``made(method, seed, final, ...) -> Record``: accuracy rises linearly from 0.2 to `final` in 8 updates."""

    def make(
        method: str, seed: int, final: float, tokens: int = 1000, seconds: float = 10.0, rate: float = 1e-4, **more
    ):
        steps = tuple(range(1, 9))
        rise = tuple(0.2 + (final - 0.2) * step / 8 for step in (0, 2, 4, 6, 8))
        fields = {
            "method": method, "seed": seed, "commit": "c" * 40, "machine": "1 core",
            "settings": pattern.settings | {"data.seed": seed, "actor_rollout_ref.actor.optim.lr": rate},
            "updates": Updates(steps, tuple(tokens * step for step in steps), tuple(seconds * step for step in steps)),
            "validation": Validation((0, 2, 4, 6, 8), rise, dict.fromkeys(SOURCES, rise)),
        }  # fmt: skip
        return replace(pattern, **(fields | more))

    return make
