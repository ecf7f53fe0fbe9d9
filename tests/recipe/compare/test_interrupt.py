"""`compare run` that is asked to end takes the launcher under way with it."""

import os
import signal
import subprocess
import sys
import time
import uuid

import psutil
import pytest

from launch.runfile import ROOT

RUN = """
base: {root}/launch/runs/cpu_poise.yaml
name: slow_s${{oc.env:POISE_SEED,0}}
folder: {folder}/${{name}}
prepare: [sleep 300]
"""


def processes_of(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("POISE_TEST_RUN") == mark:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_nothing_of_a_run_is_left(number, tmp_path):
    (tmp_path / "slow.yaml").write_text(RUN.format(root=ROOT, folder=tmp_path))
    mark = uuid.uuid4().hex
    command = [sys.executable, "-m", "recipe.poise.compare", "run", str(tmp_path / "slow.yaml"), "--seeds", "0", "1"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "out")], cwd=ROOT, env=os.environ | {"POISE_TEST_RUN": mark},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job would ignore it
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not any(one.name() == "sleep" for one in processes_of(mark)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 130 and "the same command goes on" in said, said
        assert not processes_of(mark)
    finally:
        for one in processes_of(mark):
            one.kill()
