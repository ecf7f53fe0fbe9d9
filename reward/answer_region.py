"""Where the answer stands in a response: the final region, and the last of the usual forms in it."""

import re

OPEN, CLOSE = "<think>", "</think>"
TAIL = 16_000  # characters at the end that are looked at; an answer is not longer, a runaway response is

# Repetitions are bounded and tags do not run across each other, so that no text takes time beyond its length.
TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)
_HASHES = re.compile(r"####[ \t]*(\S[^\n]*)")
_LABEL = re.compile(
    r"\banswer[ \t]{0,8}(?:\*\*)?[ \t]{0,8}:[ \t]{0,8}(?:\*\*)?[ \t]{0,8}\n?[ \t]{0,8}(\S[^\n]*)", re.IGNORECASE
)
_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*(\{)?")
MAX_JOINT = 40
_JOINED = re.compile(
    r"[\s$.]{0,9}(?:,|;|or|and|/|\\(?:text|mbox)\{\s{0,3},?(?:or|and)\s{0,3}\}|\\lor)[\s$,]{0,9}(?:or|and)?[\s$]{0,9}"
    r"(?:[A-Za-z]\s?=)?[\s$]{0,9}"
)


def final_part(response: str) -> str:
    """What comes after the last ``</think>``, all of it where there is none; but nothing from an open ``<think>`` on.

    So reasoning that was cut off is no answer. (Where the chat template opens the reasoning, a response has no
    ``<think>`` of its own, and one that never closes it counts as a whole.)
    """
    return response.rpartition(CLOSE)[2].partition(OPEN)[0]


def answer_region(response: str) -> str:
    """The last `TAIL` characters of the final part."""
    return final_part(response)[-TAIL:]


def _closings(text: str) -> dict[int, int]:
    """Places of closing braces by those of the opening ones; escaped braces do not count."""
    open_places, found, index = [], {}, 0
    while index < len(text):
        if text[index] == "\\":
            index += 1
        elif text[index] == "{":
            open_places.append(index)
        elif text[index] == "}" and open_places:
            found[open_places.pop()] = index
        index += 1
    return found


def last_boxed(text: str) -> tuple[int, str | None] | None:
    """Start and content of the last ``\\boxed{...}``; content None where it is never closed; None without a box.

    Boxes with no more than "or", "and" or a comma between them are one answer of several values.
    """
    matches = list(_BOX.finditer(text))
    if not matches:
        return None
    closings = _closings(text)
    last = matches[-1]
    # a box in a box: the outer one is the answer
    for match in matches:
        if match[1] and match.start() < last.start() < closings.get(match.start(1), -1):
            last = match
            break
    if last[1]:
        end = closings.get(last.start(1))
        if end is None:
            return last.start(), None
        contents, first = [text[last.end() : end].strip()], last
        for match in reversed(matches[: matches.index(last)]):
            closed = closings.get(match.start(1)) if match[1] else None
            if closed is None or not 0 < first.start() - closed <= MAX_JOINT:
                break
            if not _JOINED.fullmatch(text, closed + 1, first.start()):
                break
            contents.append(text[match.end() : closed].strip())
            first = match
        return last.start(), ", ".join(reversed(contents))
    word = re.match(r"\S+", text[last.end() :])
    return last.start(), word[0].strip("$.") if word else None


def final_answer(response: str) -> str | None:
    """The answer that is given last: ``<answer>..</answer>``, ``\\boxed{..}``, ``#### ..`` or ``Answer: ..``.

    Returns:
        Its text, out of its box; None where no form is there, or the last one is empty or never closed.
    """
    text = answer_region(response)
    found: list[tuple[int, str | None]] = [
        (match.start(1), match[1].strip()) for pattern in (TAG, _HASHES, _LABEL) for match in pattern.finditer(text)
    ]
    if (box := last_boxed(text)) is not None:
        found.append(box)
    if not found:
        return None
    # the latest one; a box inside another form starts later than the form and is what counts
    answer = max(found, key=lambda item: item[0])[1]
    return answer or None
