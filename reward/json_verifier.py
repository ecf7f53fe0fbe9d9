"""Tool calls and other JSON answers: equal as data, whatever the order of their keys."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from reward.answer_region import answer_region
from reward.options import flag
from reward.verdict import RIGHT, WRONG, Verdict

_CALL = re.compile(r"<tool_call>((?:(?!<tool_call>).)*?)</tool_call>", re.DOTALL)
_FENCE = re.compile(r"```(?:json)?[ \t]{0,8}\n(.*?)```", re.DOTALL)


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:20]} is no finite number")
    return value


def loads(text: str) -> Any:
    """Strict JSON. Raises ValueError for anything else: nesting beyond the parser's depth, numbers beyond floats."""
    try:
        return json.loads(text, parse_constant=_constant, parse_float=_float)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def equal(a: Any, b: Any) -> bool:
    """Equality of JSON values: 1 equals 1.0, but True does not equal 1; objects without regard to order.

    Whole numbers are equal to the digit, others to nine. Raises RecursionError for values nested very deeply.
    """
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, int | float) and isinstance(b, int | float):
        if a == b or isinstance(a, int) and isinstance(b, int):
            return a == b
        try:
            return math.isclose(a, b, rel_tol=1e-9)
        except OverflowError:  # a whole number beyond all floats
            return False
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def given_values(response: str) -> list[Any] | None:
    """The values of a response: all ``<tool_call>`` blocks, else the last fenced block, else the whole region; None
    where one of them is no JSON."""
    text = answer_region(response)
    blocks = _CALL.findall(text) or _FENCE.findall(text)[-1:] or [text]
    try:
        values = [loads(block) for block in blocks]
    except ValueError:
        return None
    if len(values) == 1 and isinstance(values[0], list):
        return values[0]
    return values


class JsonVerifier:
    """The values that a response gives against the ground truth's (JSON, one value or a list).

    Args:
        ordered: whether the order of several calls counts.
    """

    def __init__(self, ordered: bool = False):
        self.ordered = flag("ordered", ordered)

    async def verify(self, response: str, ground_truth: Any, extra_info: Mapping[str, Any]) -> Verdict:
        """Judge. Raises ValueError for a ground truth that is no JSON."""
        gold = loads(ground_truth) if isinstance(ground_truth, str) else ground_truth
        expected = list(gold) if isinstance(gold, list | tuple) else [gold]
        given = given_values(response)
        if given is None or len(given) != len(expected):
            return WRONG
        try:
            same = all(map(equal, given, expected)) if self.ordered else _matched(given, expected)
        except RecursionError:
            return WRONG
        return RIGHT if same else WRONG


def _matched(given: list[Any], expected: list[Any]) -> bool:
    """Equal as multisets; equality is transitive, so taking the first match loses none."""
    left = list(expected)
    for value in given:
        place = next((i for i, other in enumerate(left) if equal(value, other)), None)
        if place is None:
            return False
        del left[place]
    return True
