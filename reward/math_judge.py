"""Equality of two mathematical answers by math-verify; runs in worker processes, where a time limit can be enforced.

math-verify's own time limit is a signal, which only works in a main thread and does not interrupt every computation.
It is given single expressions that `reward.math_answer` has cut out: left to find them itself, it takes the number
out of a hedge.
"""

import functools
import logging
import re
from typing import Any

from reward.math_answer import MAX_VALUES, WORD, NoReading, Value, base_of, prepare, read
from reward.math_units import Unit

NEAR = 0.01  # relative difference of a value that is said to be near another
SMALL = 1e-3  # below, math-verify's rounding to six places says nothing


class UnreadableGold(ValueError):
    """The ground truth is no mathematics that math-verify knows."""


def start_worker() -> None:
    """Called before there are workers: load what they need, so that no answer's clock runs meanwhile."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that the time limit is ours
    for answer, gold in (("1", "1/1"), (r"\sqrt{8}", r"2\sqrt{2}"), ("x^2-1", "(x-1)(x+1)"), ("[0, 1)", r"\{1, 2\}")):
        equal(answer, gold)


@functools.cache
def _strict() -> Any:
    """Settings of math-verify that read all of a text or nothing."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig

    forms = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="last")
    return [LatexExtractionConfig(normalization_config=forms)]


@functools.lru_cache(maxsize=8192)
def _parse(text: str) -> Any:
    """What math-verify makes of one expression; None where it cannot read all of it."""
    from math_verify import parse

    found = parse(f"\\boxed{{{text}}}", _strict(), "no_fallback", "first_match", parsing_timeout=None)
    return found[0] if found else None


@functools.lru_cache(maxsize=4096)
def _parse_gold(text: str) -> Any:
    """A ground truth that has no strict reading, as math-verify reads it by default."""
    from math_verify import parse

    parsed = parse(f"${text}$", parsing_timeout=None) or parse(text, parsing_timeout=None)
    if not parsed:
        raise UnreadableGold(f"math-verify cannot read the ground truth {text[:200]!r}")
    return parsed


def _number(value: Any) -> complex | None:
    try:
        return complex(value.evalf()) if not value.free_symbols else None
    except (AttributeError, TypeError, ValueError, ArithmeticError, NotImplementedError, RecursionError):
        return None


def _same(answer: str, gold: str) -> bool:
    """Whether two expressions are equal."""
    from math_verify import verify

    (answer, base), (gold, gold_base) = base_of(answer), base_of(gold)
    if base and gold_base and base != gold_base:
        return False
    if answer == gold:
        return True
    found, expected = _parse(answer), _parse(gold)
    if found is None:
        return False
    if not verify(_parse_gold(gold) if expected is None else [expected], [found], timeout_seconds=None):
        return False
    a, b = _number(found), _number(expected)
    if a is None or b is None or max(abs(a), abs(b)) >= SMALL:
        return True
    return abs(a - b) <= 1e-5 * max(abs(a), abs(b))


def _near(answer: str, gold: str) -> bool:
    found, expected = _parse(answer), _parse(gold)
    a, b = _number(found), _number(expected)
    return a is not None and b is not None and abs(a - b) <= NEAR * max(abs(a), abs(b))


def _same_value(answer: Value, gold: Value) -> bool:
    if gold.words and answer.words:
        return answer.words == gold.words
    if gold.words and not gold.sides or answer.words and not answer.sides:
        return False
    if gold.relation or answer.relation:
        if bool(answer.relation) != bool(gold.relation):
            return not answer.relation and not answer.label and _same(answer.whole, gold.whole)
        return (r"\ne" in answer.whole) == (r"\ne" in gold.whole) and _same(answer.whole, gold.whole)
    if len(answer.sides) == len(gold.sides) == 2 and _same(answer.whole, gold.whole):
        return True
    if gold.label and answer.label and gold.label != answer.label:
        return False
    if not answer.unit.agrees(gold.unit):
        return False
    golds = gold.sides[1:] if gold.label else gold.sides
    if gold.label and not gold.label.replace("'", "").isalnum() and len(gold.label) > 1 and "(" not in gold.label:
        return False  # an equation: it was compared as a whole
    target = golds[-1]
    sides = list(zip(answer.sides, answer.near, strict=True))
    if answer.label:
        sides = sides[1:]
        # AB = BC = 5; where the target has variables too, the first side alone may be a name
        while len(sides) > 1 and _is_name(sides[0][0]) and (not _is_name(target) or sides[0][0].isalpha()):
            sides = sides[1:]
    loose = any(near for _, near in sides)
    exact = [_same_quantity(side, answer.unit, target, gold.unit) for side, _ in sides]
    if not loose:
        return all(exact)
    return any(exact) and all(same or _near(side, target) for same, (side, _) in zip(exact, sides, strict=True))


def _is_name(side: str) -> bool:
    """Whether an expression has variables, so that it names something and is no value."""
    return bool(getattr(_parse(side), "free_symbols", None))


def _same_quantity(answer: str, unit: Unit, gold: str, gold_unit: Unit) -> bool:
    if _same(answer, gold):
        return True
    percent, gold_percent = unit.name == "percent", gold_unit.name == "percent"
    if percent and not gold_percent:
        return _same(rf"\frac{{{answer}}}{{100}}", gold)
    return gold_percent and not percent and _same(answer, rf"\frac{{{gold}}}{{100}}")


def _squashed(text: str) -> str:
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", prepare(text).replace(WORD, "")).casefold()


def equal(answer: str, gold: str) -> bool:
    """Whether `answer` names what `gold` names, and nothing else; both normalised. Raises UnreadableGold."""
    if _squashed(answer) == _squashed(gold):
        return True
    try:
        expected = read(gold)
    except NoReading:
        expected = None
        _parse_gold(gold)
    try:
        found = read(answer)
    except NoReading:
        return False
    if expected is None:
        return len(found) == 1 and bool(found[0].sides) and _same(found[0].sides[-1], gold)
    if len(found) == len(expected) <= MAX_VALUES:
        return _matched(found, expected)
    if len(found) == 1 or len(expected) == 1 and expected[0].whole[:1] in ("(", "[", "\\", "{"):
        if _same(_listed(found, in_order=True), _listed(expected)):
            return True
    # one value, said several times
    return len(expected) == 1 and len(found) <= MAX_VALUES and all(_same_value(value, expected[0]) for value in found)


def _listed(values: list[Value], in_order: bool = False) -> str:
    """All values as one list; coordinates in the order of their names."""
    if in_order and len({value.label for value in values}) == len(values):
        values = sorted(values, key=lambda value: value.label)
    return ", ".join(value.sides[-1] if value.sides else value.whole for value in values)


def _matched(found: list[Value], expected: list[Value]) -> bool:
    """Equal without regard to order, each value used once."""
    left = list(expected)
    for value in found:
        place = next((i for i, other in enumerate(left) if _same_value(value, other)), None)
        if place is None:
            return False
        del left[place]
    return True
