"""Structured answers (grids, tables, orders, names) equal as values; and answers of several parts.

Written for the logic, simulation and table sets of GURU (arXiv 2506.14965), whose answers stand in ``<answer>``, in a
fenced JSON block, or in a box with bars between the parts.
"""

import ast
import re
from collections.abc import Mapping
from typing import Any

from reward.answer_region import TAG, answer_region, final_answer
from reward.json_verifier import equal, loads
from reward.math_verifier import MathVerifier
from reward.options import flag
from reward.verdict import RIGHT, WRONG, Verdict

_FENCE = re.compile(r"```(?:json|python)?[ \t]{0,8}\n(.*?)```", re.DOTALL)
_BARE_LIST = re.compile(r"\[([^\[\]]*)\]")


def read(text: str) -> Any:
    """JSON, a Python literal, ``"name": value`` without its braces, a list of bare words, or else the text itself."""
    text = text.strip()
    for form in (text, f"{{{text}}}") if text[:1] == '"' else (text,):
        try:
            return loads(form)
        except ValueError:
            continue
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # TypeError: a list as a key
        bare = _BARE_LIST.fullmatch(text)
        return [word.strip(" \n\t'\"") for word in bare[1].split(",")] if bare else text


def canonical(value: Any, case: bool = False) -> Any:
    """Without regard to tuple or list, JSON inside of text, a lone ``output`` or ``input`` around, and mostly case."""
    if isinstance(value, str):
        word = " ".join(value.split())
        if word.casefold() in ("true", "false"):
            return word.casefold() == "true"
        inner = read(word) if word[:1] in ("[", "{") else word
        if isinstance(inner, str):
            return word if case else word.casefold()
        return canonical(inner, case)
    if isinstance(value, Mapping):
        if len(value) == 1 and (name := next(iter(value))) in ("output", "input"):
            return canonical(value[name], case)
        return {str(name) if case else str(name).casefold(): canonical(item, case) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item, case) for item in value]
    return value


def given_text(response: str) -> str:
    """The last ``<answer>``, else the last fenced block, else another form of a final answer, else the whole region."""
    text = answer_region(response)
    if tags := TAG.findall(text):
        text = tags[-1]
    if blocks := _FENCE.findall(text):
        return blocks[-1]
    return text if tags else final_answer(response) or text


class ValueVerifier:
    """The value that a response gives against the ground truth's; all of it or nothing.

    Args:
        case: whether capitals count.
    """

    def __init__(self, case: bool = False):
        self.case = flag("case", case)

    async def verify(self, response: str, ground_truth: Any, extra_info: Mapping[str, Any]) -> Verdict:
        """Judge. Raises ValueError for an empty ground truth."""
        gold = canonical(read(ground_truth) if isinstance(ground_truth, str) else ground_truth, self.case)
        if gold in ("", None):
            raise ValueError("empty ground truth")
        try:
            return RIGHT if equal(canonical(read(given_text(response)), self.case), gold) else WRONG
        except (RecursionError, ValueError):  # ValueError: a whole number as a key, too long to be written out
            return WRONG


class PartsVerifier:
    """Mathematical or textual answers with bars between them (``12|Peru``), in any order.

    The options are those of `MathVerifier`, which judges each part.
    """

    def __init__(self, time_limit_s: float = 5.0, workers: int = 2, text: bool = True):
        self.math = MathVerifier(time_limit_s, workers, text)

    async def verify(self, response: str, ground_truth: Any, extra_info: Mapping[str, Any]) -> Verdict:
        """Judge. Raises ValueError for an empty part of the ground truth."""
        golds = str(ground_truth).split("|")
        answer = final_answer(response)
        left = [] if answer is None else answer.split("|")
        if len(left) != len(golds):
            return WRONG
        for gold in golds:
            for place, part in enumerate(left):
                verdict = await self.math.verify(f"\\boxed{{{part}}}", gold, extra_info)
                if verdict.failed:
                    return verdict
                if verdict.acc:
                    del left[place]
                    break
            else:
                return WRONG
        return RIGHT
