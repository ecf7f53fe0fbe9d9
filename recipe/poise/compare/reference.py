"""Whether a run still goes as the committed ones went: its accuracy curve, and the seconds of its steps."""

import math
from collections.abc import Sequence

import numpy as np

from recipe.poise.compare.leaderboard import TUNING_SEEDS
from recipe.poise.compare.readers import ReadError
from recipe.poise.compare.records import RATE, SECONDS, Record

SAME = (RATE, "actor_rollout_ref.rollout.n", "data.train_batch_size", "data.max_response_length")
FEWEST = 3
# Seeds spread by their pooled deviation; four of them are left by chance once in some ten thousand validations. The
# floor keeps a few seeds that happen to agree from making it narrow.
DEVIATIONS, FLOOR = 4.0, 0.05
# a machine that has other work takes up to twice as long
SLOWER = 2.5


def references(record: Record, known: Sequence[Record]) -> list[Record]:
    """The records of the same task, method and settings that matter to the curve; longer runs too, whose beginning is
    the same."""
    return [
        other for other in known
        if (other.task, other.method) == (record.task, record.method) and other.finished and other.seed < TUNING_SEEDS
        and all(other.settings.get(key) == record.settings.get(key) for key in SAME)
        and other.validation.sources.keys() == record.validation.sources.keys()
    ]  # fmt: skip


def departures(record: Record, known: Sequence[Record]) -> list[str]:
    """What is not as in the references, in words; [] where all is.

    Raises:
        ReadError: there are too few of them to say how much seeds differ, or no validation in common.
    """
    theirs = references(record, known)
    if len(theirs) < FEWEST:
        raise ReadError(f"{record.name}: {len(theirs)} records of such runs, {FEWEST} are needed to compare it with")
    curves = [dict(zip(other.validation.step, other.validation.accuracy, strict=True)) for other in (record, *theirs)]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    if not steps:
        raise ReadError(f"{record.name}: validated at other steps than the {len(theirs)} records of such runs")
    mine = np.array([curves[0][step] for step in steps])
    theirs_RS = np.array([[curve[step] for step in steps] for curve in curves[1:]])
    pooled = math.sqrt(theirs_RS.var(axis=0, ddof=1).mean()) * math.sqrt(1 + 1 / len(theirs))
    allowed = max(FLOOR, DEVIATIONS * pooled)
    found = [
        f"accuracy after {step} updates is {value:.3f}; of {len(theirs)} such runs it is {usual:.3f}, +- {allowed:.3f}"
        for step, value, usual in zip(steps, mine, theirs_RS.mean(axis=0), strict=True)
        if abs(value - usual) > allowed
    ]
    there = [other.medians[SECONDS] for other in theirs if other.machine == record.machine]
    if there and record.medians[SECONDS] > SLOWER * float(np.median(there)):
        usual = float(np.median(there))
        found.append(f"a step takes {record.medians[SECONDS]:.1f} s; on this machine it took {usual:.1f} s")
    return found
