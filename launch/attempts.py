"""The attempts of a run, kept in ``attempts.json`` in its folder, and what follows from them."""

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from launch.machine import commit, machine
from launch.runfile import RunFileError

FILE = "attempts.json"

# Exit status of `launch attempt`. STOPPED is also the trainer's own after a checkpoint at request (EX_TEMPFAIL).
DONE, GIVE_UP, STOPPED, CRASHED = 0, 1, 75, 76

# Outcomes. Crashed and lost count against resume.max_crashes; lost: the attempt's end was never written (a power cut,
# kill -9 of the launcher).
OUTCOMES = ("running", "done", "stopped", "terminated", "crashed", "lost")


@dataclass
class Attempt:
    """One start of the trainer. Steps count from 1; `last_step` is the last finished one. `machine` and `commit` are
    the head node's."""

    number: int
    started: float
    resumed_from: int
    devices: int
    logs: str
    ended: float | None = None
    code: int | None = None
    last_step: int | None = None
    outcome: str = "running"
    machine: str = ""
    commit: str = ""

    @property
    def failed_step(self) -> int | None:
        """The step in which it crashed."""
        if self.outcome not in ("crashed", "lost"):
            return None
        return max(self.last_step or 0, self.resumed_from) + 1


@dataclass
class Attempts:
    """The list of them, oldest first, and the id under which trackers know the run."""

    path: Path
    tracking_id: str
    items: list[Attempt] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path, tracking_id: str = "") -> "Attempts":
        """Raises RunFileError where the file is not ours; a run that has none yet starts with `tracking_id`."""
        path = folder / FILE
        if not path.exists():
            return cls(path, tracking_id)
        try:
            values = json.loads(path.read_text())
            return cls(path, values["tracking_id"], [Attempt(**item) for item in values["attempts"]])
        except (ValueError, KeyError, TypeError) as error:
            raise RunFileError(f"{path} cannot be read ({error}): move it away to count attempts from 1") from error

    def write(self) -> None:
        """Atomically."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{FILE}.{os.getpid()}")
        values = {"tracking_id": self.tracking_id, "attempts": [asdict(item) for item in self.items]}
        with open(partial, "w") as file:
            json.dump(values, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path)

    def begin(self, number: int, resumed_from: int, devices: int, logs: Path) -> Attempt:
        """Write down a new attempt."""
        started = Attempt(number, time.time(), resumed_from, devices, str(logs), machine=machine(), commit=commit())
        self.items.append(started)
        self.write()
        return self.items[-1]

    def end(self, attempt: Attempt, outcome: str, code: int | None, last_step: int | None) -> None:
        """Write down how it ended."""
        attempt.ended, attempt.code, attempt.outcome, attempt.last_step = time.time(), code, outcome, last_step
        self.write()

    def refusal(self, max_crashes: int) -> str | None:
        """Why the run must not start again after a crash; None where it may."""
        crashes = [item for item in self.items if item.failed_step is not None]
        if not self.items or self.items[-1].failed_step is None:
            return None
        # between two crashes a stop at request may lie: it does not make the step any better
        if len(crashes) >= 2 and crashes[-1].failed_step == crashes[-2].failed_step:
            return (
                f"step {crashes[-1].failed_step} failed twice (attempts {crashes[-2].number} and {crashes[-1].number}):"
                f" not by chance. See {crashes[-1].logs}; after a repair start the run again with --retry"
            )
        if len(crashes) > max_crashes:
            return (
                f"{len(crashes)} crashes, resume.max_crashes={max_crashes}. See {crashes[-1].logs}; "
                "after a repair start the run again with --retry"
            )
        return None

    def forgive(self) -> None:
        """After a repair: earlier crashes no longer count."""
        for item in self.items:
            if item.outcome in ("crashed", "lost"):
                item.outcome = f"forgiven ({item.outcome})"
        self.write()


def last_step(metrics: Path) -> int | None:
    """The last step in verl's file logger, which cuts the file when it opens it: so there is one per attempt."""
    if not metrics.exists():
        return None
    found = None
    for line in metrics.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the line that was being written when the process died
        if any(name.startswith("training/") or name.startswith("timing_s/") for name in record.get("data", {})):
            found = record["step"]  # a validation before training is logged as a step too
    return found
