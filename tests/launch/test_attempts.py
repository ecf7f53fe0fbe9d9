"""When a run may start again, what an exit status means, and one record of metrics from several attempts."""

import json
import os
import re
import subprocess

import pytest

from launch.attempt import merge_metrics, new_logs, only_one, outcome_of
from launch.attempts import Attempts, last_step
from launch.machine import _lines_of
from launch.runfile import ROOT


def history(tmp_path, *items) -> Attempts:
    """Attempts of (outcome, resumed from, last step)."""
    attempts = Attempts.read(tmp_path, "run-1")
    for number, (outcome, start, last) in enumerate(items, 1):
        attempt = attempts.begin(number, start, 2, tmp_path / f"logs/attempt_{number}")
        attempts.end(attempt, outcome, 1, last)
    return Attempts.read(tmp_path)


@pytest.mark.parametrize(
    ("items", "refused"),
    [
        ([], None),
        ([("crashed", 0, 4)], None),
        ([("crashed", 0, 4), ("crashed", 4, 6)], None),
        ([("crashed", 0, 4), ("crashed", 2, 4)], "step 5 failed twice"),
        ([("crashed", 0, 4), ("crashed", 4, None)], "step 5 failed twice"),  # died before its first step
        ([("crashed", 0, None), ("crashed", 0, None)], "step 1 failed twice"),
        ([("crashed", 0, 4), ("stopped", 2, 4), ("crashed", 4, None)], "step 5 failed twice"),
        ([("crashed", 0, 4), ("lost", 2, 4)], "step 5 failed twice"),
        ([("stopped", 0, 4), ("stopped", 4, 8), ("stopped", 8, 12)], None),
        ([("crashed", 0, 1), ("crashed", 0, 2), ("crashed", 0, 3)], "3 crashes, resume.max_crashes=2"),
        ([("crashed", 0, 1), ("crashed", 0, 2), ("crashed", 0, 3), ("terminated", 0, 3)], None),
    ],
)
def test_a_crash_may_be_followed_by_another_start(tmp_path, items, refused):
    found = history(tmp_path, *items).refusal(max_crashes=2)
    assert (found is None) if refused is None else (refused in found)


def test_after_a_repair_crashes_no_longer_count(tmp_path):
    attempts = history(tmp_path, ("crashed", 0, 4), ("crashed", 2, 4))
    attempts.forgive()
    assert Attempts.read(tmp_path).refusal(0) is None


def test_the_tracking_id_stays(tmp_path):
    history(tmp_path, ("stopped", 0, 4))
    assert Attempts.read(tmp_path, "another").tracking_id == "run-1"


def test_machine_and_commit_are_written_down(tmp_path):
    found = history(tmp_path, ("done", 0, 4)).items[0]
    usable = len(os.sched_getaffinity(0))
    assert re.match(rf"{usable}( of \d+)? cores of \S", found.machine)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert found.commit.removesuffix("-dirty") == head.stdout.strip()


def test_a_program_that_is_missing_fails_or_hangs_says_nothing(monkeypatch):
    monkeypatch.setattr("launch.machine.TIMEOUT_S", 0.5)
    for command in (("no-such-program",), ("false",), ("sleep", "60")):
        assert _lines_of(*command) == []
    assert _lines_of("printf", "a\\nb\\n") == ["a", "b"]


def test_attempts_of_earlier_versions_can_be_read(tmp_path):
    attempts = history(tmp_path, ("done", 0, 4))
    values = json.loads(attempts.path.read_text())
    for name in ("machine", "commit"):
        del values["attempts"][0][name]
    attempts.path.write_text(json.dumps(values))
    assert Attempts.read(tmp_path).items[0].machine == ""


def test_a_file_that_is_not_ours(tmp_path):
    (tmp_path / "attempts.json").write_text("{")
    with pytest.raises(ValueError, match="move it away"):
        Attempts.read(tmp_path)


@pytest.mark.parametrize(
    ("code", "signal", "progress", "outcome"),
    [
        (0, None, True, "done"),
        (75, None, True, "stopped"),
        (75, None, False, "crashed"),  # would be requeued for ever
        (1, None, True, "crashed"),
        (-9, None, True, "crashed"),
        (-15, 15, True, "terminated"),
    ],
)
def test_what_a_status_means(code, signal, progress, outcome):
    assert outcome_of(code, signal, progress) == outcome


def record(step: int, **data) -> str:
    return json.dumps({"step": step, "data": {"training/global_step": step, **data}}) + "\n"


def test_last_step_of_a_log_that_was_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert last_step(path) is None
    path.write_text(json.dumps({"step": 4, "data": {"val-core/x": 1}}) + "\n")
    assert last_step(path) is None  # a validation before training
    path.write_text(record(5) + record(6) + '{"step":7,"da')
    assert last_step(path) == 6


def test_metrics_of_all_attempts_are_one_record(tmp_path):
    attempts = history(tmp_path, ("crashed", 0, 5), ("stopped", 2, 4), ("done", 4, 6))
    for number, steps in enumerate((range(1, 6), range(3, 5), range(5, 7)), 1):
        folder = tmp_path / f"logs/attempt_{number}"
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("".join(record(step, attempt=number) for step in steps) + '{"st')
    merge_metrics(tmp_path, attempts)
    found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(item["step"], item["data"]["attempt"]) for item in found] == [
        (1, 1),
        (2, 1),
        (3, 2),
        (4, 2),
        (5, 3),
        (6, 3),
    ]


def test_a_run_is_held_by_one_attempt_and_logs_have_numbers(tmp_path):
    with only_one(tmp_path), pytest.raises(RuntimeError, match="in use by another attempt"):
        with only_one(tmp_path):
            pass
    with only_one(tmp_path):
        assert [new_logs(tmp_path)[0] for _ in range(3)] == [1, 2, 3]
