"""Where the answer stands in a response: the final region, and the last of the usual forms in it."""

import re

OPEN, CLOSE = "<think>", "</think>"
TAIL = 16_000  # characters at the end that are looked at; an answer is not longer, a runaway response is

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_HASHES = re.compile(r"####[ \t]*(\S[^\n]*)")
_LABEL = re.compile(r"\banswer[ \t]*(?:\*\*)?[ \t]*:[ \t]*(?:\*\*)?[ \t]*\n?[ \t]*(\S[^\n]*)", re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*(\{)?")


def final_part(response: str) -> str:
    """What comes after the last ``</think>``, all of it where there is none; but nothing from an open ``<think>`` on.

    So reasoning that was cut off is no answer. (Where the chat template opens the reasoning, a response has no
    ``<think>`` of its own, and one that never closes it counts as a whole.)
    """
    return response.rpartition(CLOSE)[2].partition(OPEN)[0]


def answer_region(response: str) -> str:
    """The last `TAIL` characters of the final part."""
    return final_part(response)[-TAIL:]


def _closing(text: str, start: int) -> int | None:
    """Index of the brace that closes the one before `start`; escaped braces do not count."""
    depth, index = 1, start
    while index < len(text):
        if text[index] == "\\":
            index += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return index
        index += 1
    return None


def last_boxed(text: str) -> tuple[int, str | None] | None:
    """Start and content of the last ``\\boxed{...}``; content None where it is never closed; None without a box."""
    matches = list(_BOX.finditer(text))
    if not matches:
        return None
    last = matches[-1]
    # a box in a box: the outer one is the answer
    for match in matches:
        if match[1] and (end := _closing(text, match.end())) is not None and match.start() < last.start() < end:
            last = match
            break
    if last[1]:
        end = _closing(text, last.end())
        return last.start(), None if end is None else text[last.end() : end].strip()
    word = re.match(r"\S+", text[last.end() :])
    return last.start(), word[0].strip("$.") if word else None


def final_answer(response: str) -> str | None:
    """The answer that is given last: ``<answer>..</answer>``, ``\\boxed{..}``, ``#### ..`` or ``Answer: ..``.

    Returns:
        Its text, out of its box; None where no form is there, or the last one is empty or never closed.
    """
    text = answer_region(response)
    found: list[tuple[int, str | None]] = [
        (match.start(1), match[1].strip()) for pattern in (_TAG, _HASHES, _LABEL) for match in pattern.finditer(text)
    ]
    if (box := last_boxed(text)) is not None:
        found.append(box)
    if not found:
        return None
    # the latest one; a box inside another form starts later than the form and is what counts
    answer = max(found, key=lambda item: item[0])[1]
    return answer or None
