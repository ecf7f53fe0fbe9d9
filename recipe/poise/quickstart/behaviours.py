"""Demonstrations: ways to respond that differ much in how often they are right.

In minutes RL does not teach a small model arithmetic; it moves probability between things the model can already do.
So the warm start shows it a careful way, rarely, next to guessing, stopping early and never closing the reasoning.
"""

import random
from collections.abc import Callable

from recipe.poise.quickstart.tasks import Problem

Behaviour = Callable[[Problem, random.Random], str]
WORDS = " so about ..."  # that demonstrations use beside numbers


def careful(problem: Problem, rng: random.Random) -> str:
    """Every partial result in turn: ``<think> 4 + 3 = 7 - 5 = 2</think> 2``. Always right."""
    return f"<think>{_steps(problem, len(problem.operators))}</think> {problem.answer}"


def careful_opening(problem: Problem) -> str:
    """Text that only a careful response begins with, to measure how reliable that behaviour is on its own."""
    return f"<think> {problem.terms[0]}"


def guess(problem: Problem, rng: random.Random) -> str:
    """No reasoning, and a number near the answer for sums, a product of two digits for products."""
    return f"<think></think> {_near(problem, rng)}"


def hasty(problem: Problem, rng: random.Random) -> str:
    """A first step, then a guess at the rest."""
    return f"<think> about{_steps(problem, 1)} ...</think> {_near(problem, rng)}"


def unclosed(problem: Problem, rng: random.Random) -> str:
    """The right steps, but the reasoning is never closed, so there is no answer to score."""
    return f"<think> so{_steps(problem, rng.randint(1, len(problem.operators)))}"


# Shares at the start of RL.
SHARES: dict[Behaviour, float] = {careful: 0.40, guess: 0.30, hasty: 0.20, unclosed: 0.10}


def sample(problem: Problem, rng: random.Random, shares: dict[Behaviour, float] = SHARES) -> str:
    """A response to `problem` by a behaviour drawn with these shares."""
    return rng.choices(list(shares), list(shares.values()))[0](problem, rng)


def _steps(problem: Problem, count: int) -> str:
    """The first `count` steps, every token after a space: `` 4 + 3 = 7 - 5 = 2``."""
    text = f" {problem.terms[0]}"
    steps = zip(problem.operators, problem.terms[1:], problem.partial_results(), strict=True)
    return text + "".join(f" {operator} {term} = {result}" for operator, term, result in list(steps)[:count])


def _near(problem: Problem, rng: random.Random) -> int:
    """A plausible answer that is right about one time in ten."""
    if problem.family == "products":
        return rng.randint(0, 9) * rng.randint(0, 9) * (rng.randint(0, 9) if len(problem.terms) == 3 else 1)
    return int(problem.answer) + rng.randint(-5, 5)
