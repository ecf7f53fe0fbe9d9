"""Runs from what trackers leave behind: verl's file logger, a run folder of `launch`, tensorboard, exports of wandb.

Every reader gives step -> {metric: value}; what a file lacks is told in `Run.notes`, never filled in.
"""

import csv
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

Steps = dict[int, dict[str, float]]
SEED_SUFFIX = re.compile(r"[_-]s(?:eed)?(\d+)$")


class ReadError(ValueError):
    """A path holds no run that can be read; says what was looked for."""


class NothingLogged(ReadError):
    """A path is there, and holds no step: a run that ended before its first, or no run at all."""


@dataclass
class Run:
    """One run of one method.

    Attributes:
        method: runs with the same one are seeds of each other.
        seed: None where it is not known.
        steps: metrics by step.
        config: the run's resolved config, {} where there is none.
        notes: what a reader of the report must know (crashed, cut short, metrics missing).
        versions: the line of `launch`'s preflight about them, "" where there is none.
        machine, commit: of the attempts, as `launch` wrote them; "" where it did not.
    """

    path: Path
    method: str
    seed: int | None
    steps: Steps
    config: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    versions: str = ""
    machine: str = ""
    commit: str = ""


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _clean(values: dict[str, Any]) -> dict[str, float]:
    return {name: number for name, value in values.items() if (number := _number(value)) is not None}


def read_jsonl(path: Path) -> Steps:
    """verl's file logger ({"step", "data"} per line), or a wandb export ({"_step", metric, ...} per line).

    A last line that was cut short is left out; two lines of one step are merged.

    Raises:
        ReadError: another line is of neither form.
    """
    steps: Steps = {}
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            if "data" in entry:
                step, data = int(entry["step"]), entry["data"]
            else:
                step, data = int(entry.pop("_step")), entry
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):
                continue
            raise ReadError(
                f"{path}:{number}: neither a line of verl's file logger nor of a wandb export: {line[:80]!r}"
            ) from error
        steps.setdefault(step, {}).update(_clean(data))
    return steps


def read_csv(path: Path) -> Steps:
    """A wandb export: a column Step or _step, and one per metric; "run - metric" in the header is shortened.

    Raises:
        ReadError: no column of steps, or columns of several runs, which would be mixed up.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    names = list(rows[0]) if rows else []
    column = next((name for name in names if name.lower() in ("step", "_step", "trainer/global_step")), None)
    if column is None:
        raise ReadError(f"{path}: no column Step or _step; columns: {', '.join(names) or 'none'}")
    runs = sorted({name.split(" - ", 1)[0] for name in names if " - " in name})
    if len(runs) > 1:
        raise ReadError(f"{path}: columns of {len(runs)} runs ({', '.join(runs)}); export each to a file of its own")
    steps: Steps = {}
    for row in rows:
        step = _number(row[column])
        if step is None:
            continue
        values = {str(name).split(" - ", 1)[-1]: value for name, value in row.items() if name and name != column}
        steps.setdefault(int(step), {}).update(
            _clean({n: v for n, v in values.items() if not n.endswith(("__MIN", "__MAX"))})
        )
    return steps


def read_tensorboard(path: Path) -> Steps:
    """Scalars of the event files in a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path), size_guidance={"scalars": 0})
    events.Reload()
    steps: Steps = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            if (number := _number(event.value)) is not None:
                steps.setdefault(event.step, {})[name] = number
    return steps


def _config(folder: Path) -> dict[str, Any]:
    for name in ("config.yaml", "hydra/.hydra/config.yaml", ".hydra/config.yaml"):
        if (folder / name).is_file():
            found = OmegaConf.to_container(OmegaConf.load(folder / name), resolve=False)
            return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}
    return {}


def _steps_of(path: Path) -> Steps:
    if path.is_file():
        readers = {".jsonl": read_jsonl, ".csv": read_csv}
        if path.suffix in readers:
            return readers[path.suffix](path)
        if "tfevents" in path.name:
            return read_tensorboard(path)
        raise ReadError(f"{path}: want .jsonl (verl's file logger, wandb), .csv (wandb) or tensorboard's event files")
    if (path / "metrics.jsonl").is_file():
        return read_jsonl(path / "metrics.jsonl")
    logged = sorted(path.glob("logs/attempt_*/metrics.jsonl"))  # a launch that has not ended
    if logged:
        steps: Steps = {}
        for file in logged:
            steps |= read_jsonl(file)
        return steps
    if any(path.rglob("*tfevents*")):
        return read_tensorboard(path)
    raise NothingLogged(f"{path}: no metrics.jsonl, no logs of `launch`, no event files of tensorboard in it")


def _attempts(folder: Path) -> list[dict[str, Any]] | None:
    """Of `launch`, oldest first; None where the run is not one of its."""
    file = folder / "attempts.json"
    return json.loads(file.read_text())["attempts"] if file.is_file() else None


def _all_of(attempts: list[dict[str, Any]], name: str) -> str:
    """The different values of a run's attempts, in their order."""
    return ", then ".join(dict.fromkeys(text for item in attempts if (text := item.get(name))))


def _outcome(attempts: list[dict[str, Any]] | None) -> list[str]:
    """What is to be said where the run is not done, or had more than one attempt."""
    if attempts is None:
        return []
    last = attempts[-1]["outcome"] if attempts else "never started"
    notes = [] if last == "done" else [f"the run is not finished (last attempt: {last})"]
    crashes = sum(item["outcome"] != "done" for item in attempts[:-1])
    return notes + (
        [f"resumed after {crashes} attempts that did not end; steps that were repeated count once"] if crashes else []
    )


def _versions(folder: Path) -> str:
    for file in sorted(folder.glob("logs/attempt_*/preflight.txt"), reverse=True):
        for line in file.read_text().splitlines():
            if found := re.search(r"\bversions\s+(\S.*)", line):
                return found[1]
    return ""


def read_run(text: str) -> Run:
    """A run from ``[METHOD=]PATH``.

    The method is what is given, else the config's experiment name without its seed, else the folder's name.

    Raises:
        ReadError: nothing there that can be read, or no step in it.
    """
    label, _, rest = text.rpartition("=")
    path = Path(rest)
    if not path.exists():
        raise ReadError(f"{path} does not exist")
    steps = _steps_of(path)
    if not any(steps.values()):
        raise NothingLogged(f"{path}: no step was logged")
    folder = path if path.is_dir() else path.parent
    config = _config(folder)
    name = str((config.get("trainer") or {}).get("experiment_name") or (path.name if path.is_dir() else path.stem))
    match = SEED_SUFFIX.search(name)
    seed = (config.get("data") or {}).get("seed")
    if seed is None and match:
        seed = int(match[1])
    method = label or SEED_SUFFIX.sub("", name)
    attempts = _attempts(folder)
    return Run(
        path, method, None if seed is None else int(seed), steps, config, _outcome(attempts), _versions(folder),
        _all_of(attempts or [], "machine"), _all_of(attempts or [], "commit"),
    )  # fmt: skip
