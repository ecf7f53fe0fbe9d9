"""Methods x seeds, one run after the other, by `launch local`: a run that is done is skipped, a stopped one goes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from launch.attempts import Attempts
from launch.runfile import load

SEED, TASK = "POISE_SEED", "POISE_TASK"  # the run files read them


@dataclass(frozen=True)
class Cell:
    """One run of the matrix."""

    file: Path
    seed: int
    root: Path

    @property
    def done(self) -> bool:
        items = Attempts.read(self.root).items
        return bool(items) and items[-1].outcome == "done"


def cells(files: list[Path], seeds: list[int]) -> list[Cell]:
    """All runs, seed by seed, so that what is there early has all methods.

    Raises:
        RunFileError: a run file that cannot be read. ValueError: two runs with one folder.
    """
    found = []
    for seed in seeds:
        os.environ[SEED] = str(seed)
        found += [Cell(file, seed, load(file).root) for file in files]
    os.environ.pop(SEED, None)
    roots = [cell.root for cell in found]
    if len(set(roots)) < len(roots):
        twice = next(root for root in roots if roots.count(root) > 1)
        raise ValueError(
            f"two runs would write to {twice}: the run files' names must differ, and hold the seed: "
            f"name: grpo_s${{oc.env:{SEED},0}}"
        )
    return found


def run_all(matrix: list[Cell], overrides: list[str], retry: bool) -> Iterator[tuple[Cell, int, float]]:
    """Start what is not done; each run with its exit status and seconds; the launcher's own lines are seen."""
    for cell in matrix:
        if cell.done:
            yield cell, 0, 0.0
            continue
        command = [sys.executable, "-m", "launch", "local", str(cell.file), *overrides]
        command += ["--retry"] if retry else []
        start = time.monotonic()
        status = launched(command, os.environ | {SEED: str(cell.seed)})
        yield cell, status, time.monotonic() - start


def launched(command: list[str], env: Mapping[str, str]) -> int:
    """Exit status of the launcher. An interrupt is handed on, and the launcher has the time that it needs to end its
    trainer: `subprocess.run` would kill it after a quarter of a second, and the trainer would live on.

    Raises:
        KeyboardInterrupt: after the launcher's end; a second one at once.
    """
    process = subprocess.Popen(command, env=env)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
