"""Demonstrations for `recipe.poise.quickstart.uneven`: a careful way in free words, and failures of each family.

Real policies choose among many right wordings, and some of their mistakes are made without a doubt. So careful traces
here differ from sample to sample, misreadings do not, and one failure goes round in circles up to the token limit.
"""

import random
from collections.abc import Callable

from recipe.poise.quickstart.tasks import Problem
from recipe.poise.quickstart.uneven import careful_share

Behaviour = Callable[[Problem, random.Random], str]

# Words to choose from. Their number is the same in every step, so that a step looks the same whatever was chosen.
OPENINGS, JOINS, WHO = ("ok", "well", "hm", "right"), ("then", "next", "now", "so"), ("we", "let", "take", "see")
REMARKS, YES, NO, ENDS = (".", "good", "sure", "fine"), ("prime", "yes"), ("no", "composite"), ("done", "finished")
WORDS = " ".join((*OPENINGS, *JOINS, *WHO, *REMARKS, *YES, *NO, *ENDS)) + " to wait and so on . , : .. * = + -"
LAPS_WORDS = 400  # past any limit of response tokens


def careful(problem: Problem, rng: random.Random) -> str:
    """Every step, said in words chosen freely. Always right."""
    return f"<think>{_opened(problem, rng)} {rng.choice(ENDS)}</think> {problem.answer}"


class _First(random.Random):
    """Chance that always takes the first word."""

    def choice(self, seq):
        return seq[0]


def plain(problem: Problem, rng: random.Random) -> str:
    """The careful way in one wording: what a first lesson shows, since free words only add noise to it."""
    return careful(problem, _First())


def careful_opening(problem: Problem) -> str:
    """Text that a careful response can begin with; tired and circling ones begin alike, and fail later."""
    return f"<think> ok {problem.terms[0]}"


def guess(problem: Problem, rng: random.Random) -> str:
    """No reasoning, and a number near the answer for sums and counts, a product of digits for products."""
    return f"<think></think> {_near(problem, rng)}"


def tired(problem: Problem, rng: random.Random) -> str:
    """Careful to begin with, then a guess at the rest."""
    steps = _steps(problem, rng)
    kept = "".join(steps[: rng.randint(1, max(1, len(steps) - 1))])
    return f"<think> {rng.choice(OPENINGS)} {problem.terms[0]} .{kept} and so on</think> {_near(problem, rng)}"


def circles(problem: Problem, rng: random.Random) -> str:
    """Careful, but it begins again instead of answering, and again: longer than any limit, no answer."""
    text = f"<think>{_opened(problem, rng)}"
    while text.count(" ") < LAPS_WORDS:
        text += f" wait{_opened(problem, rng)}"
    return text


def misread(problem: Problem, rng: random.Random) -> str:
    """Every minus taken for a plus, without a word."""
    return _terse(["+"] * len(problem.operators), problem.terms)


def dropped(problem: Problem, rng: random.Random) -> str:
    """The last term left out, without a word."""
    return _terse(problem.operators[:-1], problem.terms[:-1])


def added(problem: Problem, rng: random.Random) -> str:
    """The last factor added, without a word."""
    return _terse([*problem.operators[:-1], "+"], problem.terms)


def odd(problem: Problem, rng: random.Random) -> str:
    """Every odd number taken for a prime, without a word."""
    first, last = problem.terms
    text, count = f" {first} .", 0
    for number in range(first, last + 1):
        count += number % 2
        text += f" {number} to {last} , {count}"
    return f"<think>{text}</think> {count}"


# Of what is not careful, by family.
FAILURES: dict[str, dict[Behaviour, float]] = {
    "chain_sum": {misread: 0.35, tired: 0.3, circles: 0.25, guess: 0.1},
    "products": {added: 0.4, dropped: 0.25, guess: 0.2, circles: 0.15},
    "count_primes": {odd: 0.4, tired: 0.25, circles: 0.25, guess: 0.1},
}


def shares(problem: Problem) -> dict[Behaviour, float]:
    """Shares at the start of RL."""
    share = careful_share(problem)
    return {careful: share, **{failure: part * (1 - share) for failure, part in FAILURES[problem.family].items()}}


def _opened(problem: Problem, rng: random.Random) -> str:
    return f" {rng.choice(OPENINGS)} {problem.terms[0]} ." + "".join(_steps(problem, rng))


def _steps(problem: Problem, rng: random.Random) -> list[str]:
    """The careful steps, each of which can be told from the step before and one look at the problem."""
    if problem.family == "count_primes":
        return _counted(problem, rng)
    steps, total = [], problem.terms[0]
    worked = zip(problem.operators, problem.terms[1:], problem.partial_results(), strict=True)
    for number, (operator, term, result) in enumerate(worked, start=1):
        steps.append(_said(f"{number} : {total} {operator} {term} = {result}", rng))
        total = result
    return steps


def _counted(problem: Problem, rng: random.Random) -> list[str]:
    """A line per number: how far to go, prime or not, the count so far."""
    first, last = problem.terms
    steps, count = [], 0
    for number in range(first, last + 1):
        prime = number > 1 and all(number % k for k in range(2, number))
        count += prime
        steps.append(_said(f"{number} to {last} : {rng.choice(YES if prime else NO)} , {count}", rng))
    return steps


def _said(step: str, rng: random.Random) -> str:
    return f" {rng.choice(JOINS)} {rng.choice(WHO)} {step} {rng.choice(REMARKS)}"


def _terse(operators: list[str], terms: list[int]) -> str:
    total, text = terms[0], f" {terms[0]}"
    for operator, term in zip(operators, terms[1:], strict=True):
        total = {"+": total + term, "-": total - term, "*": total * term}[operator]
        text += f" {operator} {term} = {total}"
    return f"<think>{text}</think> {total}"


def _near(problem: Problem, rng: random.Random) -> int:
    """A plausible answer that is seldom right."""
    if problem.family == "products":
        return min(120, rng.randint(1, 9) * rng.randint(1, 9) * rng.choice([1, 1, 2, 3]))
    return max(0 if problem.family == "count_primes" else -20, int(problem.answer) + rng.randint(-4, 4))
