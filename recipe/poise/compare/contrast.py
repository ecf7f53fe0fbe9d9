"""What one method has over another, seed by seed, with intervals; the leaderboard and its thresholds count with this.

The same seed is the same model, data and order of prompts, so numbers of two methods are compared within a seed first.
Two kinds of number, two intervals:

- a difference (accuracy, area under the curve): the mean over seeds and Student's t interval of it;
- a cost (tokens, seconds, updates until an accuracy, over what the baseline paid): the median over seeds, where a seed
  that never reached the accuracy counts as infinite, and the interval between two order statistics. It holds for
  whatever distribution and needs six seeds for 95%; with fewer it is lowest to highest, and its level is told.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy.stats import t as student

from recipe.poise.compare import measures
from recipe.poise.compare.readers import Run
from recipe.poise.compare.summary import AXES, Method, costs_by_seed

LEVEL = 0.95
SEEDS_FOR_A_MEDIAN = 6  # with which lowest to highest holds it with that level: 1 - 2 / 2^6
Cost = Literal["tokens", "seconds", "updates"]
Score = Literal["final", "gain", "area_over_updates", "area_over_tokens"]
COSTS, SCORES = get_args(Cost), get_args(Score)
AXIS_OF = {"tokens": "generated tokens", "seconds": "seconds", "updates": "updates"}


@dataclass(frozen=True)
class Estimate:
    """A number over seeds and its interval of confidence `level`; NaN bounds: a single seed has none."""

    center: float
    low: float
    high: float
    level: float
    count: int


@dataclass(frozen=True)
class Horizon:
    """How far areas under the curve are taken, so that all runs that are compared have a curve to there."""

    updates: float
    tokens: float

    @classmethod
    def of(cls, runs: Sequence[Run]) -> "Horizon":
        """The shortest of the curves."""
        ends = [[float(AXES[AXIS_OF[axis]](run).x[-1]) for run in runs] for axis in ("updates", "tokens")]
        return cls(*(min(values) for values in ends))


def score(run: Run, what: str, horizon: Horizon) -> float | None:
    """A number of one run, a `Score`; None where it does not reach the horizon or was not validated before training."""
    curve = measures.accuracy(run)
    if what == "final":
        return float(curve.y[-1])
    if what == "gain":
        return float(curve.y[-1] - curve.y[0]) if curve.x[0] == 0 else None
    axis = what.rpartition("_")[2]
    return AXES[AXIS_OF[axis]](run).mean_to(getattr(horizon, axis))


def scores(method: Method, what: str, horizon: Horizon) -> dict[int, float]:
    """Of each seed that has the number."""
    found = {run.seed: score(run, what, horizon) for run in method.runs if run.seed is not None}
    return {seed: value for seed, value in found.items() if value is not None}


def differences(method: Method, baseline: Method, what: str, horizon: Horizon) -> dict[int, float]:
    """Method's score less the baseline's, of each seed that both have."""
    mine, its = scores(method, what, horizon), scores(baseline, what, horizon)
    return {seed: mine[seed] - its[seed] for seed in sorted(mine) if seed in its}


def costs(method: Method, baseline: Method, what: str) -> dict[int, float]:
    """What the method paid for the baseline's final accuracy over what the baseline paid, of each seed that both have;
    infinite where it was not reached."""
    found = costs_by_seed(method, baseline)
    return {seed: math.inf if (share := by[AXIS_OF[what]]) is None else share for seed, by in found.items()}


def mean_of(values: Sequence[float]) -> Estimate | None:
    """Student's t interval of the mean."""
    if not values:
        return None
    count, center = len(values), float(np.mean(values))
    if count == 1:
        return Estimate(center, math.nan, math.nan, LEVEL, 1)
    half = float(student.ppf((1 + LEVEL) / 2, count - 1)) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Estimate(center, center - half, center + half, LEVEL, count)


def median_of(values: Sequence[float]) -> Estimate | None:
    """The median, and the narrowest pair of order statistics, k-th lowest and k-th highest, that hold it with `LEVEL`;
    lowest to highest where none do. Values may be infinite."""
    if not values:
        return None
    ordered, count = sorted(values), len(values)
    center = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    if count == 1:
        return Estimate(center, math.nan, math.nan, LEVEL, 1)
    below, k = 0.5**count, 1  # P(fewer than k of the values are below the median)
    while k < count / 2:
        further = below + math.comb(count, k) * 0.5**count
        if 1 - 2 * further < LEVEL:
            break
        below, k = further, k + 1
    return Estimate(center, ordered[k - 1], ordered[-k], 1 - 2 * below, count)


def wins(method: Method, baseline: Method, horizon: Horizon, what: str = "area_over_tokens") -> tuple[int, int]:
    """In how many seeds the method scores higher, of how many that both have."""
    found = differences(method, baseline, what, horizon).values()
    return sum(value > 0 for value in found), len(found)
