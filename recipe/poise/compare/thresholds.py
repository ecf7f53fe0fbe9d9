"""What a method must hold, written down: ``python -m recipe.poise.compare check thresholds.yaml RECORDS``.

    thresholds:
      - task: quickstart
        method: poise
        measure: tokens          # to the baseline's final accuracy, over what the baseline paid
        baseline: dapo
        statistic: median        # of the seeds
        at_most: 0.4

Task and baseline may be lists: the threshold then holds for each. What cannot be judged (no runs, too few seeds) falls
short too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from probe.checked import NOT_EMPTY, Range, SettingError, read, settle
from recipe.poise.compare import contrast
from recipe.poise.compare.contrast import COSTS, Cost, Estimate, Score
from recipe.poise.compare.leaderboard import Board, boards
from recipe.poise.compare.readers import ReadError
from recipe.poise.compare.records import Record

Median = Literal["probe_weight", "gradient_variance_ratio"]
Measure = Literal[Cost, Score, Median]
MEDIANS = {"probe_weight": "poise/weight_probe", "gradient_variance_ratio": "poise/gradient_variance_ratio"}
Text = Annotated[str, NOT_EMPTY]
Texts = Text | Annotated[tuple[Text, ...], NOT_EMPTY]


@dataclass(frozen=True)
class Threshold:
    """One bound, or one for each of several tasks and baselines.

    Attributes:
        task, method: whose runs.
        measure: tokens, seconds, updates: to the baseline's final accuracy, over what the baseline paid. final, gain
            (final less start), area_over_updates, area_over_tokens: less the baseline's, or by itself without one.
            probe_weight (the guard's, of the probe), gradient_variance_ratio (over that with RLOO's baseline): medians
            over the updates.
        baseline: the method that it is measured against.
        statistic: over seeds: the median, or a bound of the interval (of the median for costs, else of the mean).
        at_most, at_least: one of them.
        seeds: at least so many must have the number.
    """

    task: Texts
    method: Text
    measure: Measure
    baseline: Texts | None = None
    statistic: Literal["median", "lower", "upper"] = "median"
    at_most: float | None = None
    at_least: float | None = None
    seeds: Annotated[int, Range(1)] = 1

    def __post_init__(self):
        settle(self)
        if (self.at_most is None) == (self.at_least is None):
            raise SettingError("at_most", self.at_most, "one bound: a number here, or in at_least")
        if self.measure in COSTS and self.baseline is None:
            raise SettingError("baseline", None, f"a method: {self.measure} are counted to its accuracy", "dapo")
        if self.measure in MEDIANS and self.baseline is not None:
            raise SettingError("baseline", self.baseline, f"null: {self.measure} is the method's own")
        fewest = 1 if self.statistic == "median" else contrast.SEEDS_FOR_A_MEDIAN if self.measure in COSTS else 2
        if self.seeds < fewest:
            raise SettingError(
                "seeds",
                self.seeds,
                f"at least {fewest}: with fewer {self.measure} have no {contrast.LEVEL:.0%} interval",
            )

    def each(self) -> "list[Threshold]":
        """One for each task and baseline."""
        tasks = (self.task,) if isinstance(self.task, str) else self.task
        baselines = (self.baseline,) if isinstance(self.baseline, str) or self.baseline is None else self.baseline
        return [replace(self, task=task, baseline=baseline) for task in tasks for baseline in baselines]

    def __str__(self) -> str:
        against = "" if self.baseline is None else f" {'to' if self.measure in COSTS else 'less'} {self.baseline}'s"
        against += " accuracy" if self.measure in COSTS else ""
        statistic = "median" if self.statistic == "median" else f"{self.statistic} bound"
        return f"{self.task}: {self.method}'s {self.measure}{against}, {statistic}"


@dataclass(frozen=True)
class Thresholds:
    """The file."""

    thresholds: Annotated[tuple[Threshold, ...], NOT_EMPTY]

    def __post_init__(self):
        settle(self)


@dataclass(frozen=True)
class Verdict:
    """A threshold, whether it is held, and what was found in words."""

    threshold: Threshold
    held: bool
    found: str

    def __str__(self) -> str:
        return f"{'holds' if self.held else 'FALLS SHORT'}  {self.threshold}: {self.found}"


def read_thresholds(path: Path) -> list[Threshold]:
    """One threshold for each task and baseline.

    Raises:
        ReadError: no such file, no YAML, or what is no threshold, named with its place.
    """
    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        found = read(Thresholds, values)
    except FileNotFoundError:
        raise ReadError(f"{path} does not exist") from None
    except (OmegaConfBaseException, YAMLError, SettingError, OSError) as error:
        raise ReadError(f"{path}: {error}") from error
    return [one for threshold in found.thresholds for one in threshold.each()]


def check(thresholds: Sequence[Threshold], records: Sequence[Record]) -> list[Verdict]:
    """Raises ReadError where a method has two runs of one seed."""
    by_task = {board.task: board for board in boards(records)}
    return [judge(threshold, by_task.get(str(threshold.task))) for threshold in thresholds]


def judge(threshold: Threshold, board: Board | None) -> Verdict:
    """One bound."""
    for name in (threshold.method, threshold.baseline):
        if name is not None and (board is None or board.method(str(name)) is None):
            return Verdict(threshold, False, f"cannot be judged: there is no run of {name}")
    assert board is not None
    values = numbers(threshold, board)
    if len(values) < threshold.seeds:
        return Verdict(threshold, False, f"cannot be judged: {len(values)} seeds have it, {threshold.seeds} are wanted")
    value = statistic(threshold, values)
    bound = threshold.at_most if threshold.at_most is not None else threshold.at_least
    assert bound is not None
    missing = value - bound if threshold.at_most is not None else bound - value
    words = "at most" if threshold.at_most is not None else "at least"
    text = f"{_text(value)} over {len(values)} seeds, {words} {bound:g} is wanted"
    if missing <= 0:
        return Verdict(threshold, True, text)
    return Verdict(threshold, False, f"{text}: " + ("never reached" if math.isinf(value) else f"{missing:.3g} short"))


def _text(value: float) -> str:
    return "not reached" if math.isinf(value) else f"{value:.3f}"


def numbers(threshold: Threshold, board: Board) -> list[float]:
    """Of each seed that has one."""
    method, what = board.method(threshold.method), threshold.measure
    assert method is not None
    if what in MEDIANS:
        name = MEDIANS[what]
        return [record.medians[name] for record in board.records[method.name] if name in record.medians]
    if threshold.baseline is None:
        return list(contrast.scores(method, what, board.horizon).values())
    baseline = board.method(str(threshold.baseline))
    assert baseline is not None
    if what in COSTS:
        return list(contrast.costs(method, baseline, what).values())
    return list(contrast.differences(method, baseline, what, board.horizon).values())


def statistic(threshold: Threshold, values: list[float]) -> float:
    """The number that is held against the bound."""
    if threshold.statistic == "median":
        middle = contrast.median_of(values)
        assert middle is not None
        return middle.center
    found: Estimate | None = (contrast.median_of if threshold.measure in COSTS else contrast.mean_of)(values)
    assert found is not None
    return found.low if threshold.statistic == "lower" else found.high
