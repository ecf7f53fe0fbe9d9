"""A run in a few kilobytes: what is kept, and committed, when its folder goes.

A record holds the curves from which everything that the leaderboard tells is counted, what the run was (task, method,
seed, commit, machine, settings) and digests of the files that it was made of. No place on a machine is in it.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from omegaconf import OmegaConf

from probe.checked import DISTINCT, NOT_EMPTY, Range, SettingError, read, settle
from recipe.poise.compare import measures
from recipe.poise.compare.readers import ReadError, Run, read_run
from recipe.poise.compare.summary import interesting

FORMAT = 1
RATE = "actor_rollout_ref.actor.optim.lr"
SETTINGS = (
    "actor_rollout_ref.rollout.n", RATE, "algorithm.adv_estimator", "data.max_response_length", "data.seed",
    "data.train_batch_size", "trainer.test_freq", "trainer.total_training_steps",
)  # fmt: skip
# per-update metrics of which the median is kept, beside the seconds of each phase
MEDIANS = (
    "poise/correlation", "poise/brier_skill", "poise/weight_probe", "poise/gradient_variance_ratio",
    "advantage/zero_share", "response_length/mean",
)  # fmt: skip
TOKENS, DISCARDED, SECONDS = "rollout/generated_tokens", "rollout/discarded_tokens", "timing_s/step"
Name = Annotated[str, NOT_EMPTY]
Count = Annotated[int, Range(0)]
Steps = Annotated[tuple[Count, ...], NOT_EMPTY, DISTINCT]


def _refuse_unless(holds: bool, path: str, value: Any, want: str) -> None:
    if not holds:
        raise SettingError(path, value, want)


@dataclass(frozen=True)
class Updates:
    """Of each update: its step, and tokens generated and seconds spent in steps up to its end."""

    step: Steps
    tokens: tuple[Count, ...]
    seconds: tuple[Annotated[float, Range(0)], ...]

    def __post_init__(self):
        settle(self)
        for name in ("step", "tokens", "seconds"):
            values = getattr(self, name)
            _refuse_unless(len(values) == len(self.step), name, values, "as many numbers as there are steps")
            _refuse_unless(list(values) == sorted(values), name, values, "numbers that do not fall")


@dataclass(frozen=True)
class Validation:
    """Accuracy after updates (step 0: before the first): the plain mean over data sources, and each by verl's name."""

    step: Steps
    accuracy: tuple[float, ...]
    sources: Annotated[dict[Name, tuple[float, ...]], NOT_EMPTY]

    def __post_init__(self):
        settle(self)
        for name, values in {"accuracy": self.accuracy, **self.sources}.items():
            _refuse_unless(len(values) == len(self.step), name, values, "as many numbers as there are steps")
        for name in self.sources:
            _refuse_unless(bool(measures.VALIDATION.fullmatch(name)), "sources", name, "names of validation metrics")


@dataclass(frozen=True)
class Record:
    """One run.

    Attributes:
        finished: its last attempt was done.
        commit, machine, versions: as `launch` wrote them; "" where it did not.
        overrides: given on the command line, beside the run file.
        settings: of the resolved config, those of `SETTINGS`.
        config: digest of the resolved config without seeds and places.
        discarded_tokens: how many of the tokens dynamic sampling threw away.
        medians: over the updates, by metric.
        read: digest of each file that was read.
    """

    format: int
    task: Name
    method: Name
    seed: Count
    finished: bool
    commit: str
    machine: str
    versions: str
    overrides: tuple[str, ...]
    settings: dict[Name, Any]
    config: str
    updates: Updates
    validation: Validation
    discarded_tokens: Count
    medians: dict[Name, float]
    read: dict[Name, str]

    def __post_init__(self):
        settle(self)
        _refuse_unless(self.format == FORMAT, "format", self.format, f"{FORMAT}: make the record anew")
        rate = self.settings.get(RATE)
        _refuse_unless(isinstance(rate, float) and rate > 0, f"settings.{RATE}", rate, "a number above 0")

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.settings[RATE]

    @property
    def name(self) -> str:
        """Where it lies in a folder of records."""
        return f"{self.task}/{self.method}_lr{rate_text(self.rate)}_s{self.seed}.json"

    @cached_property
    def run(self) -> Run:
        """The same as `read_run` gives it, with the metrics that were kept."""
        steps: dict[int, dict[str, float]] = {}
        tokens = seconds = 0.0
        for step, upto, spent in zip(self.updates.step, self.updates.tokens, self.updates.seconds, strict=True):
            steps[step] = {TOKENS: upto - tokens, SECONDS: spent - seconds}
            tokens, seconds = upto, spent
        last = self.updates.step[-1]
        steps[last][DISCARDED] = float(self.discarded_tokens)  # of the whole run; only the sum counts
        for place, step in enumerate(self.validation.step):
            steps.setdefault(step, {}).update({name: values[place] for name, values in self.validation.sources.items()})
        config = OmegaConf.create({})
        for key, value in self.settings.items():
            OmegaConf.update(config, key, value)
        notes = [] if self.finished else ["the run is not finished"]
        return Run(
            Path(self.name), self.method, self.seed, steps, OmegaConf.to_container(config), notes,  # type: ignore[arg-type]
            self.versions, self.machine, self.commit,
        )  # fmt: skip

    def text(self) -> str:
        """JSON, a field on a line."""
        lines = (f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in asdict(self).items())
        return "{\n" + ",\n".join(lines) + "\n}\n"


def rate_text(rate: float) -> str:
    """1e-4, 5e-5."""
    mantissa, exponent = f"{rate:.4e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def read_record(path: Path) -> Record:
    """Raises ReadError where it is no record, or of another version."""
    try:
        return read(Record, json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ReadError(f"{path} is no record of a run: {error}") from error


def record_run(text: str, unfinished: bool = False) -> Record:
    """The record of a run folder of `launch`, given as ``[METHOD=]PATH``.

    Raises:
        ReadError: no such folder, a run that is not done (unless `unfinished`), or one that lacks what a record holds.
    """
    run = read_run(text)
    file = run.path / "attempts.json"
    if not file.is_file():
        raise ReadError(f"{run.path} is no run folder of `launch` (no attempts.json): commit and machine are not known")
    attempts = json.loads(file.read_text())["attempts"]
    finished = bool(attempts) and attempts[-1]["outcome"] == "done"
    if not (finished or unfinished):
        raise ReadError(f"{run.path}: {'; '.join(run.notes)}. Let it end, or say --unfinished")
    curve, seconds, (tokens, exact) = measures.accuracy(run), measures.wall_clock(run), measures.generated_tokens(run)
    for missing, what in (
        (run.seed is None, "data.seed"),
        (not len(curve.x), "validation accuracy"),
        (not len(seconds.x), SECONDS),
        (not (len(tokens.x) and exact), TOKENS),
    ):
        if missing:
            raise ReadError(f"{run.path}: {what} is not known of every update, so there is no record of the run")
    config = OmegaConf.create(run.config)
    values = {key: OmegaConf.select(config, key) for key in SETTINGS}
    values[RATE] = float(values[RATE])
    names = sorted(name for name in measures.metric_names(run) if measures.VALIDATION.fullmatch(name))
    steps = [int(step) for step in curve.x]
    phases = ["step", *measures.PHASES]
    kept = {name: measures.series(run, [name]).y for name in (*(f"timing_s/{phase}" for phase in phases), *MEDIANS)}
    task, overrides = _asked(run.path, attempts)
    return Record(
        format=FORMAT, task=task, method=run.method, seed=run.seed, finished=finished,  # type: ignore[arg-type]
        commit=run.commit, machine=run.machine, versions=run.versions, overrides=overrides,
        settings=values, config=_digest(json.dumps(interesting(run.config), sort_keys=True).encode()),
        updates=Updates(
            tuple(int(step) for step in seconds.x[1:]), tuple(round(float(value)) for value in tokens.y[1:]),
            tuple(round(float(value), 2) for value in seconds.y[1:]),
        ),
        validation=Validation(
            tuple(steps), tuple(round(float(value), 6) for value in curve.y),
            {name: tuple(round(run.steps[step][name], 6) for step in steps) for name in names},
        ),
        discarded_tokens=round(float(measures.series(run, [DISCARDED]).y.sum())),
        medians={name: round(float(median(found)), 4) for name, found in kept.items() if len(found)},
        read={str(part.relative_to(run.path)): _digest(part.read_bytes()) for part in _files(run.path)},
    )  # fmt: skip


def _asked(folder: Path, attempts: list[dict[str, Any]]) -> tuple[str, tuple[str, ...]]:
    """The task and the command line's overrides, from what each attempt was started with."""
    found = set()
    for item in attempts:
        file = folder / "logs" / Path(item["logs"]).name / "run.json"
        if not file.is_file():
            raise ReadError(f"{file} does not exist: which task it was and what was overridden is not known")
        asked = json.loads(file.read_text())
        found.add((asked["config"].removeprefix("poise_"), tuple(map(without_place, asked.get("hydra", [])))))
    if len(found) != 1:
        raise ReadError(f"{folder}: its attempts were started with different overrides: {sorted(found)}")
    return found.pop()


def without_place(override: str) -> str:
    """A Hydra override whose value is a path on this machine, with the last part of it alone."""
    return re.sub(r"(?<=[=,\[\"'])/[^,\]\"']*/", "", override)


def _files(folder: Path) -> list[Path]:
    merged = folder / "metrics.jsonl"
    logged = [merged] if merged.is_file() else sorted(folder.glob("logs/attempt_*/metrics.jsonl"))
    return [*logged, *(file for file in [folder / "config.yaml"] if file.is_file())]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def write_records(records: Iterable[Record], out: Path, replace: bool = False) -> list[tuple[Path, bool]]:
    """Each record into its place; the files, and whether it was written (the same content stays untouched).

    Raises:
        ReadError: another run's record lies there, and it is not to be replaced; nothing is written then.
    """
    wanted: dict[Path, str] = {}
    for record in records:
        path, text = out / record.name, record.text()
        if wanted.setdefault(path, text) != text:
            raise ReadError(f"two of the runs would be {path}: give one another name, NAME=PATH")
        if path.exists() and path.read_text() != text and not replace:
            raise ReadError(
                f"{path} is the record of another run: say --replace, or give this one another name, NAME=PATH"
            )
    found = []
    for path, text in wanted.items():
        new = not path.exists() or path.read_text() != text
        if new:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.{os.getpid()}")
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path)
        found.append((path, new))
    return found


def read_all_records(paths: Iterable[str], unfinished: bool = False) -> list[Record]:
    """From ``[METHOD=]PATH``: records, folders of them (at any depth), and run folders.

    Raises:
        ReadError: a path that is none of these, or a run that is not finished (unless `unfinished`); names it.
    """
    found: list[Record] = []
    for text in paths:
        label, _, rest = text.rpartition("=")
        path = Path(rest)
        if path.is_dir() and not (path / "attempts.json").is_file():
            files = sorted(path.rglob("*.json"))
            if not files:
                raise ReadError(f"{path} holds neither records (*.json) nor a run of `launch` (attempts.json)")
        elif path.suffix == ".json" and path.is_file():
            files = [path]
        else:
            found.append(record_run(text, unfinished))
            continue
        for file in files:
            record = read_record(file)
            if not (record.finished or unfinished):
                raise ReadError(
                    f"{file} is the record of a run that is not finished: leave it out, or say --unfinished"
                )
            found.append(replace(record, method=label) if label else record)
    return found
