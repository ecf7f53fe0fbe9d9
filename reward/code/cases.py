"""Test cases of a programming task, and the program in a response.

A ground truth is JSON (or its value) of one of these forms:

    {"inputs": ["1 2\\n", ...], "outputs": ["3\\n", ...]}                 standard input and output
    {"fn_name": "add", "inputs": [[1, 2], ...], "outputs": [3, ...]}     calls of a function (or of Solution().add)
    {"asserts": ["assert add(1, 2) == 3", ...]}, or the text itself      statements
    {"functional": "def check(f): ...\ncheck(add)"}                      statements, in one case (GURU's form)
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from reward.answer_region import final_part

MAX_SOURCE = 100_000  # characters
_FENCE = re.compile(r"```[ \t]{0,8}(?:python3?|py)?[ \t]{0,8}\n(.*?)```", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Cases:
    """kind: "stdio", "call" or "assert"; inputs and outputs as long as each other ("assert": no outputs)."""

    kind: str
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    fn_name: str = ""


def read_cases(ground_truth: Any) -> Cases:
    """Raises ValueError for another form, or no case at all."""
    value = ground_truth
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = {"asserts": [value]}
    if isinstance(value, list | tuple):
        value = {"asserts": list(value)}
    if not isinstance(value, dict):
        raise ValueError(f"test cases are a JSON object or assert statements, not {str(ground_truth)[:200]!r}")
    if asserts := value.get("asserts") or value.get("assert_case") or value.get("functional"):
        return Cases("assert", tuple([asserts] if isinstance(asserts, str) else asserts), ())
    inputs, outputs = list(value.get("inputs") or []), list(value.get("outputs") or [])
    if not inputs or len(inputs) != len(outputs):
        raise ValueError(f"test cases: {len(inputs)} inputs and {len(outputs)} outputs; want as many, and at least one")
    if name := value.get("fn_name"):
        return Cases("call", tuple(inputs), tuple(outputs), str(name))
    return Cases("stdio", tuple(map(_text, inputs)), tuple(map(_text, outputs)))


def _text(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def program_of(response: str) -> str | None:
    """The last fenced Python block after the reasoning; None where there is none, or it is over `MAX_SOURCE`."""
    blocks = _FENCE.findall(final_part(response))
    return blocks[-1] if blocks and blocks[-1].strip() and len(blocks[-1]) <= MAX_SOURCE else None


def same_output(found: str, expected: str) -> bool:
    """Equal line by line, without regard to trailing space and empty lines at the end; numbers to 1e-6."""
    found_lines, expected_lines = ([line.split() for line in text.strip().splitlines()] for text in (found, expected))
    if len(found_lines) != len(expected_lines):
        return False
    return all(
        len(a) == len(b) and all(_same_word(x, y) for x, y in zip(a, b, strict=True))
        for a, b in zip(found_lines, expected_lines, strict=True)
    )


def _same_word(found: str, expected: str) -> bool:
    if found == expected:
        return True
    if "." not in expected:
        return False
    try:
        return abs(float(found) - float(expected)) <= 1e-6 * max(1.0, abs(float(expected)))
    except ValueError:
        return False


def same_value(found: Any, expected: Any) -> bool:
    """Equality of JSON values; a one-element list of the value counts too (the form of some data sets)."""
    from reward.json_verifier import equal

    return equal(found, expected) or (isinstance(expected, list) and len(expected) == 1 and equal(found, expected[0]))
