"""Runs of several methods and seeds put side by side: bands, tables, the settings that differ. Pure: no drawing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from recipe.poise.compare import measures
from recipe.poise.compare.measures import Curve, Measures
from recipe.poise.compare.readers import Run

AXES = {
    "updates": lambda run: measures.accuracy(run),
    "seconds": lambda run: measures.accuracy_over(run, measures.wall_clock(run)),
    "generated tokens": lambda run: measures.accuracy_over(run, measures.generated_tokens(run)[0]),
}
POINTS = 200
# where runs are, or what differs by design between seeds
UNINTERESTING = ("seed", "path", "dir", "files", "experiment_name", "model_name", "_target_", "hydra")


@dataclass(frozen=True)
class Spread:
    """A number over the seeds that have it."""

    mean: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: list[float | None]) -> "Spread | None":
        found = np.array([value for value in values if value is not None], float)
        return cls(float(found.mean()), float(found.min()), float(found.max()), len(found)) if len(found) else None


@dataclass(frozen=True)
class Band:
    """Mean, lowest and highest over seeds on a common axis, as far as the shortest run reaches."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: int


@dataclass
class Method:
    """The runs of one method, and their numbers."""

    name: str
    runs: list[Run]
    measures: list[Measures]

    @property
    def seeds(self) -> str:
        known = [str(run.seed) for run in self.runs if run.seed is not None]
        return ", ".join(known) if len(known) == len(self.runs) else f"{len(self.runs)} runs"

    def spread(self, number: Callable[[Measures], float | None]) -> Spread | None:
        """A number of each run, over the runs that have it."""
        return Spread.of([number(item) for item in self.measures])


def group(runs: list[Run]) -> list[Method]:
    """Methods in the order in which they were given; runs of one by seed."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.method, []).append(run)
    return [
        Method(name, ordered, [measures.measure(run) for run in ordered])
        for name, members in found.items()
        for ordered in [sorted(members, key=lambda run: (run.seed is None, run.seed or 0))]
    ]


def band(curves: list[Curve]) -> Band | None:
    """Where all curves are; on the points themselves if they share them. None without a curve."""
    curves = [curve for curve in curves if len(curve.x)]
    if not curves:
        return None
    start, end = max(curve.x[0] for curve in curves), min(curve.x[-1] for curve in curves)
    shared = sorted(set.intersection(*(set(curve.x) for curve in curves)))
    x = np.array(shared) if len(shared) == min(len(curve.x) for curve in curves) else np.linspace(start, end, POINTS)
    y = np.array([curve.at(x) for curve in curves])
    return Band(x, y.mean(axis=0), y.min(axis=0), y.max(axis=0), len(curves))


def accuracy_bands(methods: list[Method], axis: str) -> dict[str, Band]:
    """Validation accuracy over an axis of `AXES`, by method; methods without validation are not in it."""
    found = {method.name: band([AXES[axis](run) for run in method.runs]) for method in methods}
    return {name: item for name, item in found.items() if item is not None}


def metric_bands(methods: list[Method], names: tuple[str, ...]) -> dict[str, Band]:
    """A metric over updates, by method."""
    found = {method.name: band([measures.series(run, names) for run in method.runs]) for method in methods}
    return {name: item for name, item in found.items() if item is not None}


@dataclass(frozen=True)
class Cost:
    """What a method paid until it reached an accuracy; None where not every run did, `reached` of `runs` did."""

    updates: Spread | None
    seconds: Spread | None
    tokens: Spread | None
    reached: int
    runs: int


def cost_of(method: Method, level: float) -> Cost:
    """Updates, seconds and tokens to an accuracy, over the runs that reached it."""
    reached = [[AXES[axis](run).first(level) for run in method.runs] for axis in AXES]
    updates, seconds, tokens = (Spread.of(values) for values in reached)
    return Cost(updates, seconds, tokens, updates.count if updates else 0, len(method.runs))


@dataclass(frozen=True)
class Relative:
    """What it cost to reach the final accuracy of the baseline's run of the same seed, over what that run paid until it
    first was there; over the seeds that reached it, `reached` of the `seeds` that both have."""

    updates: Spread | None
    seconds: Spread | None
    tokens: Spread | None
    reached: int
    seeds: int


def costs_by_seed(method: Method, baseline: Method) -> dict[int, dict[str, float | None]]:
    """Seed -> axis of `AXES` -> what the method paid for the final accuracy of the baseline's run of that seed, over
    what that run paid until it first was there; None where it was not reached. Seeds that both have: the same seed is
    the same model, data and prompts, another is not."""
    theirs = {run.seed: run for run in baseline.runs if run.seed is not None}
    found: dict[int, dict[str, float | None]] = {}
    for mine in method.runs:
        if mine.seed is None or mine.seed not in theirs or not len(measures.accuracy(theirs[mine.seed]).y):
            continue
        its = theirs[mine.seed]
        level = float(measures.accuracy(its).y[-1])
        found[mine.seed] = {}
        for axis, curve in AXES.items():
            cost, reference = curve(mine).first(level), curve(its).first(level)
            found[mine.seed][axis] = cost / reference if cost is not None and reference else None
    return found


def relative_cost(method: Method, baseline: Method) -> Relative | None:
    """None where no seed is known to be in both."""
    shares = costs_by_seed(method, baseline)
    if not shares:
        return None
    updates, seconds, tokens = (Spread.of([found[axis] for found in shares.values()]) for axis in AXES)
    return Relative(updates, seconds, tokens, updates.count if updates else 0, len(shares))


def target_level(methods: list[Method], baseline: str | None) -> tuple[float, str] | None:
    """The accuracy that costs are compared at, and what it is: the baseline's final mean, else the lowest of the
    methods' final means, which all reach. None where nothing was validated."""
    finals = {method.name: spread.mean for method in methods if (spread := method.spread(lambda item: item.final))}
    if not finals:
        return None
    if baseline in finals:
        return finals[baseline], f"{baseline}'s final accuracy"
    name = min(finals, key=lambda item: finals[item])
    return finals[name], f"the lowest final accuracy ({name}'s)"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        found: dict[str, Any] = {}
        for key, item in value.items():
            found |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
        return found
    return {prefix: value}


def interesting(config: dict[str, Any]) -> dict[str, str]:
    """Setting -> value, without places and seeds."""
    return {key: str(value) for key, value in _flat(config).items() if _tells(key)}


def _tells(key: str) -> bool:
    return not any(part in key.rpartition(".")[2] for part in UNINTERESTING)


def _differences(configs: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Setting -> name -> value, where the (flat) configs differ in what is not a place or a seed."""
    keys = sorted({key for config in configs.values() for key in config})
    found = {key: {name: str(config.get(key, "(not set)")) for name, config in configs.items()} for key in keys}
    return {key: values for key, values in found.items() if len(set(values.values())) > 1 and _tells(key)}


def differing_settings(methods: list[Method]) -> dict[str, dict[str, str]]:
    """Setting -> method -> value, where methods differ; of each method its first run that has a config."""
    known = {method.name: next((run.config for run in method.runs if run.config), None) for method in methods}
    return _differences({name: _flat(config) for name, config in known.items() if config})


def notes(methods: list[Method]) -> list[str]:
    """Everything that keeps the runs from being compared as equals."""
    found = [f"{run.path}: {note}" for method in methods for run in method.runs for note in run.notes]
    longest = max(item.updates for method in methods for item in method.measures)
    for method in methods:
        for run, item in zip(method.runs, method.measures, strict=True):
            where = f"{method.name}, seed {run.seed}" if run.seed is not None else f"{method.name}, {run.path}"
            if item.updates < longest:
                found.append(f"{where}: {item.updates} updates, the longest run has {longest}; bands end with it")
            if item.final is None:
                found.append(f"{where}: no validation accuracy was logged; it is in no accuracy curve")
            if item.seconds is None:
                found.append(f"{where}: timing_s/step is missing; it is in no curve over seconds")
            if item.tokens is None:
                found.append(f"{where}: generated tokens are not known; it is in no curve over tokens")
            elif not item.tokens_exact:
                found.append(f"{where}: generated tokens are estimated (rows x mean length)")
            if "poise/correlation" in measures.metric_names(run) and not len(measures.calibration(run).x):
                found.append(f"{where}: the probe's calibration was not logged; it is in no calibration curve")
        if len(method.runs) == 1:
            found.append(f"{method.name}: one seed, so no spread")
        inner = _differences({str(place): _flat(run.config) for place, run in enumerate(method.runs) if run.config})
        if inner:
            values = [f"{key} ({', '.join(sorted(set(item.values())))})" for key, item in inner.items()]
            found.append(f"{method.name}: its runs differ in more than the seed: {'; '.join(values)}")
        duplicates = [run.seed for run in method.runs if run.seed is not None]
        if len(duplicates) != len(set(duplicates)):
            found.append(f"{method.name}: a seed occurs more than once")
    protocols = {text for method in methods for run in method.runs if (text := measures.protocol(run))}
    if len(protocols) > 1:
        found.append(f"accuracies are of different protocols: {'; '.join(sorted(protocols))}")
    return found
