"""Multiple choice: the letter that a response settles on."""

import re
from collections.abc import Mapping
from typing import Any

from reward.answer_region import answer_region, final_answer
from reward.verdict import RIGHT, WRONG, Verdict

_WRAPPED = re.compile(r"^\W*(?:\\text(?:bf)?\{)?\W*(?:option|choice)?\s*\(?\[?([A-Z])(?![A-Za-z])", re.IGNORECASE)
_SAID = re.compile(
    r"\b(?:answer|choice|option)\b(?:\s{1,8}is)?(?:\s{1,8}therefore)?\s{0,8}:?\s{0,8}\(?\*{0,4}\\?\(?([A-Z])\b(?!\s+[a-z])",
    re.IGNORECASE,
)
# Another letter beside the chosen one: that is no choice. After a comma it may be an article (B, A cat).
_OTHER = re.compile(
    r"[\s.)*}\]$]{0,8}(?:(?:\b(?:or|and)\b|[/|&]|\\(?:lor|vee|text\{\s?(?:or|and)\s?\})|,\s?(?:or|and)\b)\W{0,8}"
    r"(?:(?:maybe|perhaps|possibly|also|option|choice)\W{1,8}){0,2}([A-Z])(?![A-Za-z'])"
    r"|[,;]\W{0,8}([A-Z])(?![A-Za-z']|\s+[a-z])|\W{1,8}([A-Z])\W{0,8}$)"
)
LONGEST = 200  # characters of an answer that names a letter
_ALONE = re.compile(r"^\W*([A-Z])\W*$")


def chosen_letter(response: str) -> str | None:
    """The letter of the last answer form (``\\boxed{B}``, ``Answer: (B)``, ``the answer is B``), or of a last line
    that is nothing else; upper case; None where no letter is chosen."""
    if (answer := final_answer(response)) is not None and (match := _WRAPPED.match(answer[:LONGEST])):
        return _only(match, answer[match.end() : LONGEST])
    text = answer_region(response)
    if said := list(_SAID.finditer(text)):
        return _only(said[-1], text[said[-1].end() :][:LONGEST])
    lines = [line for line in text.splitlines() if line.strip()]
    if lines and (match := _ALONE.match(lines[-1])):
        return match[1]
    return None


def _only(match: re.Match, rest: str) -> str | None:
    """The letter of a match; None where the rest of the answer names another one."""
    letter = match[1].upper()
    other = _OTHER.match(rest)
    return letter if other is None or letter in other.groups() else None


class ChoiceVerifier:
    """The chosen letter against the ground truth's."""

    async def verify(self, response: str, ground_truth: Any, extra_info: Mapping[str, Any]) -> Verdict:
        """Judge. Raises ValueError for a ground truth that is no letter."""
        gold = str(ground_truth).strip("() .").upper()
        if not re.fullmatch(r"[A-Z]", gold):
            raise ValueError(f"ground truth of a multiple-choice question is one letter, not {ground_truth!r}")
        return RIGHT if chosen_letter(response) == gold else WRONG
