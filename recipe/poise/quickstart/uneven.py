"""Problems of the second embedded task, from nearly always to nearly never solved: sums, products, primes.

How likely the warm-started policy is to work carefully depends on the problem's difficulty, so pass rates spread over
0 to 1 by construction. The ways to fail differ by family, see `recipe.poise.quickstart.uneven_behaviours`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from recipe.poise.quickstart.tasks import Level, Problem, Source, entries


@dataclass(frozen=True)
class Bounded(Level):
    """A level without the problems in which a partial result leaves the bounds, or a factor is 0."""

    least: int
    most: int

    def problems(self, seed: int) -> Iterator[Problem]:
        """Endless problems."""
        for problem in Level.problems(self, seed):
            results = problem.partial_results()
            if self.least <= min(results) and max(results) <= self.most:
                if self.family == "chain_sum" or 0 not in problem.terms:
                    yield problem


@dataclass(frozen=True)
class Intervals:
    """count_primes on intervals of up to `terms` numbers, none above `end`. Expression: ``9 .. 21``."""

    family: Literal["count_primes"]
    terms: int
    end: int
    weight: float

    def problems(self, seed: int) -> Iterator[Problem]:
        """Endless problems."""
        for entry in entries(self.family, seed, {"min_n": 1, "max_n": self.end}):
            first, last = entry["metadata"]["start"], entry["metadata"]["end"]
            if last - first < self.terms:
                yield Problem(self.family, entry["question"], entry["answer"], f"{first} .. {last}")


MOST_TERMS, MOST_NUMBERS, END = 10, 16, 75
# Within the bounds a step is one of a thousand facts, which minutes suffice to learn.
LEVELS: tuple[Source, ...] = (
    *(Bounded("chain_sum", terms, 0.06, -5, 15) for terms in range(3, MOST_TERMS + 1)),
    Bounded("products", 3, 0.10, 1, 120),
    Bounded("products", 4, 0.10, 1, 120),
    Intervals("count_primes", MOST_NUMBERS, END, 0.32),
)

# Shares of careful demonstrations: a logistic curve in the difficulty.
MIDDLE, SLOPE = 0.5, 8.0


def difficulty(problem: Problem) -> float:
    """0 to 1: more terms and minus signs, larger digits, longer intervals of larger numbers."""
    terms = problem.terms
    if problem.family == "chain_sum":
        minus = problem.operators.count("-") / len(problem.operators)
        return 0.75 * (len(terms) - 3) / (MOST_TERMS - 3) + 0.25 * minus
    if problem.family == "products":
        return 0.3 * (len(terms) - 3) + 0.7 * min(1.0, max(0, sum(terms) - 5) / 14)
    first, last = terms
    return 0.6 * (last - first) / (MOST_NUMBERS - 1) + 0.4 * last / END


def careful_share(problem: Problem) -> float:
    """How often a demonstration of this problem is a careful one: 0.98 for the easiest, 0.02 for the hardest."""
    return 1 / (1 + math.exp(SLOPE * (difficulty(problem) - MIDDLE)))


def numbers() -> list[int]:
    """Every number that a problem or its worked solution can show."""
    return list(range(-20, 130))
