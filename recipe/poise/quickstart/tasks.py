"""Problems of the embedded default: chain sums and products from reasoning-gym, in several difficulties.

Which of the three parts (warm start, training, validation) a problem belongs to follows from a hash of its question
alone. So the parts are disjoint whatever the seeds and sizes are.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal, Protocol

import reasoning_gym

Part = Literal["warm", "train", "val"]

TRIES = 20_000  # problems in a row that were had already, after which there are no others

# Shares of all possible questions, in percent.
PART_BOUNDS: dict[Part, int] = {"val": 10, "train": 55, "warm": 100}


@dataclass(frozen=True)
class Level:
    """One family at one difficulty: a number of terms, all of a single digit."""

    family: Literal["chain_sum", "products"]
    terms: int
    weight: float

    def problems(self, seed: int) -> Iterator["Problem"]:
        """Endless problems. One dataset object serves all: its items follow from seed + index."""
        sizes = {"min_terms": self.terms, "max_terms": self.terms, "min_digits": 1, "max_digits": 1}
        for entry in entries(self.family, seed, sizes):
            yield Problem(self.family, entry["question"], entry["answer"], entry["metadata"]["expression"])


class Source(Protocol):
    """Where problems of one kind come from: a `Level`, or another task's own."""

    @property
    def family(self) -> str: ...

    @property
    def weight(self) -> float: ...

    def problems(self, seed: int) -> Iterator["Problem"]: ...


LEVELS = (
    Level("chain_sum", 3, 0.15),
    Level("chain_sum", 4, 0.20),
    Level("chain_sum", 5, 0.20),
    Level("chain_sum", 6, 0.20),
    Level("products", 2, 0.05),
    Level("products", 3, 0.20),
)


@dataclass(frozen=True)
class Problem:
    """A question as reasoning-gym words it, with what a worked solution needs."""

    family: str
    question: str
    answer: str
    expression: str

    @property
    def terms(self) -> list[int]:
        return [int(term) for term in self.expression.split()[::2]]

    @property
    def operators(self) -> list[str]:
        return self.expression.split()[1::2]

    def partial_results(self) -> list[int]:
        """The value after every operator, left to right; the last one is the answer."""
        total, results = self.terms[0], []
        for operator, term in zip(self.operators, self.terms[1:], strict=True):
            total = {"+": total + term, "-": total - term, "*": total * term}[operator]
            results.append(total)
        return results


def part_of(question: str) -> Part:
    """The part that a question belongs to, for ever."""
    percent = int.from_bytes(blake2b(question.encode(), digest_size=4).digest(), "big") % 100
    return next(part for part, bound in PART_BOUNDS.items() if percent < bound)


def problems(part: Part, seed: int, levels: Sequence[Source] = LEVELS) -> Iterator[Problem]:
    """Endless problems of one part, families and difficulties mixed by their weights; questions can repeat."""
    rng = random.Random(f"{part} {seed}")
    sources = [level.problems(rng.getrandbits(31)) for level in levels]
    weights = [level.weight for level in levels]
    while True:
        problem = next(rng.choices(sources, weights)[0])
        if part_of(problem.question) == part:
            yield problem


def distinct_problems(part: Part, count: int, seed: int, levels: Sequence[Source] = LEVELS) -> list[Problem]:
    """`count` problems of one part with different questions. Six terms alone give 32 million questions to draw from."""
    found: dict[str, Problem] = {}
    source = problems(part, seed, levels)
    while len(found) < count:
        problem = next(source)
        found.setdefault(problem.question, problem)
    return list(found.values())


def balanced_problems(part: Part, count: int, seed: int, levels: Sequence[Source] = LEVELS) -> list[Problem]:
    """The same with as many problems of each family (the first ones get what does not divide): where accuracy is the
    plain mean over families, a rare one would bring its chance into it with the weight of a common one.

    Raises:
        ValueError: a family has not as many.
    """
    families = list(dict.fromkeys(level.family for level in levels))
    wanted = {family: len(range(place, count, len(families))) for place, family in enumerate(families)}
    found: dict[str, Problem] = {}
    tries = 0
    for problem in problems(part, seed, levels):
        if not any(wanted.values()):
            break
        tries += 1
        if wanted[problem.family] and problem.question not in found:
            found[problem.question] = problem
            wanted[problem.family] -= 1
            tries = 0
        if tries == TRIES:
            lacking = {family: number for family, number in wanted.items() if number}
            raise ValueError(f"of {count} problems {lacking} could not be found: ask for fewer (--val-prompts)")
    return list(found.values())


def numbers() -> list[int]:
    """Every number that a problem or its worked solution can show."""
    products = {a * b * c for a in range(10) for b in range(10) for c in range(10)}
    return sorted(set(range(-60, 100)) | products)


def verl_row(problem: Problem, index: int, split: str) -> dict[str, Any]:
    """A row of verl's data schema."""
    return {
        "data_source": problem.family,
        "prompt": [{"role": "user", "content": problem.question}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": problem.answer},
        "extra_info": {"index": index, "split": split, "terms": len(problem.terms), "expression": problem.expression},
    }


def entries(family: str, seed: int, sizes: dict[str, int]) -> Iterator[dict[str, Any]]:
    """Endless entries of one of reasoning-gym's data sets."""
    dataset = reasoning_gym.create_dataset(family, seed=seed, size=2**31, **sizes)
    return (dataset[index] for index in itertools.count())
