"""Equality of two mathematical answers by math-verify; runs in worker processes, where a time limit can be enforced.

math-verify's own time limit is a signal, which only works in a main thread and does not interrupt every computation.
"""

import functools
import logging


class UnreadableGold(ValueError):
    """The ground truth is no mathematics that math-verify knows."""


def start_worker() -> None:
    """Called before there are workers: load what they need, so that no answer's clock runs meanwhile."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that the time limit is ours
    equal("1", "1/1")


@functools.lru_cache(maxsize=4096)
def _parse_gold(text: str):
    from math_verify import parse

    parsed = parse(f"${text}$", parsing_timeout=None) or parse(text, parsing_timeout=None)
    if not parsed:
        raise UnreadableGold(f"math-verify cannot read the ground truth {text[:200]!r}")
    return parsed


def equal(answer: str, gold: str) -> bool:
    """Whether `answer` is mathematically equal to `gold`. Raises UnreadableGold."""
    from math_verify import parse, verify

    expected = _parse_gold(gold)
    for text in (f"\\boxed{{{answer}}}", answer):
        found = parse(text, parsing_timeout=None)
        if found and verify(expected, found, timeout_seconds=None, raise_on_error=False):
            return True
    return False
