"""Samples on disk: one JSON line each, appended as they come, so that a kill loses at most the line being written."""

import fcntl
import json
import math
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from recipe.poise.evaluate.settings import EvaluationError, differences


@dataclass(frozen=True)
class Sample:
    """One response and its verdict."""

    problem: int  # row of the suite
    sample: int  # 0, 1, ... of this problem
    response: str
    tokens: int
    truncated: bool  # it reached the length limit
    score: float
    acc: float
    verifier_failed: bool  # then score and acc say nothing


def sample_of(line: Any) -> Sample:
    """A stored line. Raises ValueError for what is not one."""
    wanted = {field.name: field.type for field in fields(Sample)}
    if not isinstance(line, dict) or set(line) != set(wanted):
        raise ValueError(f"want an object of {', '.join(wanted)}")
    for name, kind in wanted.items():
        value = line[name]
        # Python's True is a whole number, and JSON may write 1.0 as 1; neither is taken for the other here.
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise ValueError(f"{name} is {value!r:.40}")
        if kind is int and value < 0 or kind is float and not math.isfinite(value):
            raise ValueError(f"{name} is {value}")
    return Sample(**line)


class SampleFile:
    """The samples of one suite. The first line holds the settings that they were drawn with.

    Raises:
        EvaluationError: the file's settings are others, a line is no sample, or one before the last cannot be read.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path = path
        self.found: dict[int, dict[int, Sample]] = defaultdict(dict)
        settings = json.loads(json.dumps(settings))  # as it comes back from a file
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = _whole_lines(path)
        if lines:
            self._read(lines, settings)
        self._file = open(path, "a", encoding="utf-8")
        if not lines:
            self._append({"settings": settings})

    def _read(self, lines: list[Any], settings: dict[str, Any]) -> None:
        head = lines[0]
        if not isinstance(head, dict) or not isinstance(head.get("settings"), dict):
            raise EvaluationError(f"{self.path} does not begin with its settings; remove it or give another --out")
        if changed := differences(head["settings"], settings):
            raise EvaluationError(
                f"{self.path} holds samples drawn with other settings. Give another --out, or the old settings:\n  "
                + "\n  ".join(changed)
            )
        for number, line in enumerate(lines[1:], start=2):
            try:
                sample = sample_of(line)
            except ValueError as error:
                raise EvaluationError(
                    f"{self.path}:{number} is not a sample ({error}); remove this line and run again"
                ) from error
            self.found[sample.problem][sample.sample] = sample

    def add(self, sample: Sample) -> None:
        self._append(asdict(sample))
        self.found[sample.problem][sample.sample] = sample

    def _append(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()

    def missing(self, problems: int, k: int) -> Iterator[tuple[int, int]]:
        """(problem, sample) pairs that are still to be drawn. Sample by sample, so that an early look is fair.

        Raises:
            EvaluationError: a stored sample is of a problem that the suite does not have.
        """
        if foreign := [problem for problem in self.found if problem >= problems]:
            raise EvaluationError(
                f"{self.path} has a sample of problem {foreign[0]}, the suite has {problems} (0 to {problems - 1}); "
                "remove such lines and run again"
            )
        for sample in range(k):
            for problem in range(problems):
                if sample not in self.found.get(problem, {}):
                    yield problem, sample

    def of_problem(self, problem: int, k: int) -> list[Sample]:
        """The first k samples of a problem, in order, as far as they are there."""
        return [self.found[problem][i] for i in range(k) if i in self.found.get(problem, {})]

    def close(self) -> None:
        self._file.close()


def _whole_lines(path: Path) -> list[Any]:
    """Every line of the file; a torn last one is cut off the file, with a warning."""
    if not path.exists():
        return []
    lines, whole = [], 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("no line end")
                lines.append(json.loads(line))
            except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are such
                if file.read(1):
                    raise EvaluationError(f"{path}:{number} is not JSON; remove this line and run again") from error
                warnings.warn(f"{path}:{number} was not written to its end; dropped, it is sampled again", stacklevel=2)
                os.truncate(path, whole)
                break
            whole += len(line)
    return lines


@contextmanager
def only_one(folder: Path):
    """Hold the folder for this process; the lock ends with the process, however it ends.

    Raises:
        EvaluationError: another process has it, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = open(folder / ".lock", "w")
    except OSError as error:
        raise EvaluationError(
            f"--out {folder}: cannot be written to ({error.strerror}); give another folder"
        ) from error
    with held as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EvaluationError(
                f"another evaluation is writing to {folder}; wait for it, or give another --out"
            ) from error
        yield
