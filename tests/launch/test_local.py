"""`launch local` for real, a payload in place of training: resumes after crashes, stops at request, leaves nothing."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from launch.runfile import ROOT

KEY = "wandb-0123456789abcdef-secret"
pytestmark = pytest.mark.timeout(600)
QUIET = {"preflight": {"at_start": False}}


@pytest.fixture
def start(payload_folder, write_run):
    """A function that starts a run: the process, and the run's folder."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ['PYTHONPATH']}", "WANDB_API_KEY": KEY}
    environment.pop("RAY_ADDRESS", None)

    def call(*options, name="payload", **settings):
        command = [sys.executable, "-m", "launch", "local", str(write_run(name, **(QUIET | settings))), *options]
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        return process, payload_folder / "runs" / name

    return call


def attempts(root):
    return json.loads((root / "attempts.json").read_text())["attempts"]


def steps(root):
    return [json.loads(line)["step"] for line in (root / "metrics.jsonl").read_text().splitlines()]


def wait_for_step(root, step: int, attempt: int = 1):
    path = root / f"logs/attempt_{attempt}/metrics.jsonl"
    deadline = time.monotonic() + 240
    while not path.exists() or len(path.read_text().splitlines()) < step:
        assert time.monotonic() < deadline, f"step {step} did not come"
        time.sleep(0.2)


def wait_for_trainer(root):
    deadline = time.monotonic() + 240
    while not (log := root / "logs/attempt_1/train.log").exists() or "payload" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_crash_is_resumed_and_no_secret_is_written(start):
    process, root = start(overrides={"+payload.crash_at": "5:once", "+payload.seconds": 0})
    out, _ = process.communicate(timeout=500)
    assert process.returncode == 0, out
    assert [(item["outcome"], item["resumed_from"]) for item in attempts(root)] == [("crashed", 0), ("done", 4)]
    assert steps(root) == list(range(1, 9))
    assert KEY not in out and "key ***" in out  # the payload prints it
    assert not [path for path in root.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    kept = sorted(path.name for path in (root / "checkpoints").glob("global_step_*"))
    assert kept == ["global_step_2", "global_step_4", "global_step_6", "global_step_8"]  # the payload does not rotate


def test_the_same_step_twice_ends_it_and_retry_goes_on(start):
    process, root = start(overrides={"+payload.crash_at": 3, "+payload.seconds": 0})
    out, _ = process.communicate(timeout=500)
    assert process.returncode == 1 and "step 3 failed twice" in out
    process, _ = start("--retry", overrides={"+payload.seconds": 0})
    out, _ = process.communicate(timeout=500)
    assert process.returncode == 0, out
    assert [item["outcome"] for item in attempts(root)][-1] == "done"
    # rotated at the start of an attempt: verl keeps count within one only
    assert steps(root) == list(range(1, 9))


def test_a_trainer_that_hangs_counts_as_crashed(start):
    settings = {"waits": {"silence_s": 10}, "resume": {"max_crashes": 0}}
    process, root = start(overrides={"+payload.seconds": 600}, **settings)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 1 and "nothing was printed or logged for 10 s" in out, out
    assert [item["outcome"] for item in attempts(root)] == ["crashed"]


def test_usr1_stops_at_a_checkpoint_and_the_same_command_goes_on(start):
    settings = {"overrides": {"+payload.seconds": 0.5, "trainer.save_freq": 100}}
    process, root = start(**settings)
    wait_for_step(root, 2)
    process.send_signal(signal.SIGUSR1)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and "the same command goes on" in out
    stopped = attempts(root)[0]["last_step"]
    process, _ = start(**settings)
    out, _ = process.communicate(timeout=500)
    assert process.returncode == 0, out
    assert attempts(root)[1]["resumed_from"] == stopped and steps(root) == list(range(1, 9))


def test_term_ends_everything_and_a_second_start_is_refused(start):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a script's background job
    try:
        process, root = start(overrides={"+payload.seconds": 60})
    finally:
        signal.signal(signal.SIGINT, before)
    wait_for_trainer(root)
    second, _ = start(overrides={"+payload.seconds": 60})
    out, _ = second.communicate(timeout=240)
    assert second.returncode == 1 and "in use by another attempt" in out
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert not [child for child in children if child.is_running()]
    assert attempts(root)[0]["outcome"] == "terminated"


@pytest.mark.parametrize("group", [False, True], ids=["the process", "its group, as Ctrl-C does"])
def test_an_interrupted_comparison_ends_its_trainer(payload_folder, write_run, group):
    path = write_run("payload", **(QUIET | {"overrides": {"+payload.seconds": 60}}))
    process = subprocess.Popen(
        [sys.executable, "-m", "recipe.poise.compare", "run", str(path), "--seeds", "0", "--out", str(payload_folder)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ['PYTHONPATH']}"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        # not as in a script's background job, which ignores it: these tests may be one
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    root = payload_folder / "runs/payload"
    wait_for_trainer(root)
    children = psutil.Process(process.pid).children(recursive=True)
    assert any("payload" in child.cmdline() for child in children)
    os.killpg(process.pid, signal.SIGINT) if group else process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 130 and "the same command goes on" in out, out
    assert not [child for child in children if child.is_running()]
    assert attempts(root)[0]["outcome"] == "terminated"


def test_a_killed_launcher_whose_trainer_lives_on_is_not_joined_by_another(start):
    process, root = start(overrides={"+payload.seconds": 60})
    wait_for_trainer(root)
    trainer = next(child for child in psutil.Process(process.pid).children() if "payload" in child.cmdline())
    process.kill()
    process.communicate()
    second, _ = start(overrides={"+payload.seconds": 60})
    out, _ = second.communicate(timeout=50)
    assert second.returncode == 1 and "in use by another attempt" in out
    trainer.kill()
    trainer.wait(10)
    process, _ = start(overrides={"+payload.seconds": 0})
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    assert [item["outcome"] for item in attempts(root)] == ["lost", "done"]


def test_another_number_of_devices_is_refused(start):
    process, root = start(overrides={"trainer.total_training_steps": 2, "+payload.seconds": 0})
    process.communicate(timeout=500)
    assert process.returncode == 0
    overrides = {"trainer.total_training_steps": 4, "+payload.seconds": 0}
    process, _ = start(gpus_per_node=2, overrides=overrides)
    out, _ = process.communicate(timeout=500)
    assert process.returncode == 1
    assert "written on 1 devices, this run has 2" in out and "verl.model_merger merge" in out
