"""Which machine and which code a run had, as far as the system tells."""

import os
import platform
import subprocess
from pathlib import Path

from launch.runfile import ROOT

TIMEOUT_S = 30.0


def _lines_of(*command: str) -> list[str]:
    """What a program prints, line by line; nothing where it is missing, fails or hangs (nvidia-smi, a sick GPU)."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def processor() -> str:
    """Its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def machine() -> str:
    """Cores that this process may use, of how many, and the accelerators."""
    cores, usable = os.cpu_count() or 1, len(os.sched_getaffinity(0))
    own = f"{usable} of {cores}" if usable < cores else str(cores)
    devices = _lines_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    names = [f"{devices.count(name)} x {name}" for name in dict.fromkeys(devices)]
    return ", ".join([f"{own} cores of {processor()}", *names])


def commit() -> str:
    """Of the project's checkout, with ``-dirty`` where files differ from it; "" outside of one."""
    if not (ROOT / ".git").exists():  # a checkout around it is not the project's
        return ""
    return next(iter(_lines_of("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")), "")
