"""A row of a source as a row of verl's schema."""

import json
import math
import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from recipe.poise.data.catalogue import TEMPLATES, Entry
from recipe.poise.data.errors import DataError
from recipe.poise.data.schema import problem_of
from reward import answer_region

MISSING = object()


class MalformedRow(DataError):
    """One row cannot be used: no prompt, no answer, or one that cannot be read."""


@dataclass(frozen=True)
class Question:
    """What a row asks and the answer that counts as right."""

    messages: list[dict[str, str]]
    answer: str

    @property
    def key(self) -> str:
        """Equal for prompts that differ in nothing but white space or the coding of a character."""
        text = "\0".join(f"{message['role']}\0{message['content']}" for message in self.messages)
        return " ".join(unicodedata.normalize("NFC", text).split())

    @property
    def answer_key(self) -> str:
        """Equal for answers that differ in nothing but spelling: ``1,000`` and ``$1000$``, ``27.0`` and ``27``."""
        text = unicodedata.normalize("NFC", self.answer).strip().strip("$").strip()
        text = re.sub(r"\\[,;! ]|\s", "", text)
        text = re.sub(r"(?<=\d),(?=\d{3}(\D|$))", "", text)
        return re.sub(r"^(-?\d+)\.0+$", r"\1", text)


def at(row: dict[str, Any], path: str) -> Any:
    """The value at a dotted path, or MISSING. A column whose own name has dots comes first."""
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if not isinstance(value, dict) or part not in value:
            return MISSING
        value = value[part]
    return value


def first(row: dict[str, Any], paths: tuple[str, ...]) -> Any:
    """The first of several alternatives that the row has, or MISSING."""
    return next((value for path in paths if (value := at(row, path)) is not MISSING), MISSING)


def text_of(value: Any) -> str:
    """An answer as text: whole floats and decimals without their point, structures as JSON.

    Raises:
        MalformedRow: there is none (null, NaN, empty), or it holds what neither text nor JSON has.
    """
    if value is None:
        raise MalformedRow("the answer is null (None)")
    if isinstance(value, str):
        if not value.strip():
            raise MalformedRow("the answer is empty")
        return value.strip()
    if isinstance(value, float | Decimal) and not math.isfinite(value):
        raise MalformedRow(f"the answer is {value}")
    if isinstance(value, Decimal):
        text = f"{value:f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_not_json)
    except RecursionError as error:
        raise MalformedRow("the answer is nested too deeply") from error
    except ValueError as error:
        if isinstance(error, MalformedRow):
            raise
        raise MalformedRow("the answer holds a number that is not finite") from error


def _not_json(value: Any) -> None:
    raise MalformedRow(f"the answer holds a {type(value).__name__}; write it as text in the source")


def after_hashes(solution: str) -> str:
    """What follows the last ``####``, without thousands separators; GSM8K's form."""
    _, found, answer = solution.rpartition("####")
    if not found or not answer.strip():
        raise MalformedRow("the answer has no '#### NUMBER'")
    return answer.strip().replace(",", "")


def last_boxed(solution: str) -> str:
    r"""What the last ``\boxed{...}`` (or ``\boxed x``, ``\fbox{...}``) of a worked solution holds.

    Raises:
        MalformedRow: there is none, it is never closed, or it is empty.
    """
    found = answer_region.last_boxed(solution)
    if found is None:
        raise MalformedRow("the solution has no \\boxed{}")
    if found[1] is None:
        raise MalformedRow("the solution's last \\boxed{ is never closed")
    return text_of(found[1])


FORMS = {"text": lambda text: text, "hashes": after_hashes, "boxed": last_boxed}


def worded(problem: str, template: str) -> str:
    """The problem in a template: the name of one, or a text with ``{problem}`` in it."""
    return TEMPLATES.get(template, template).replace("{problem}", problem)


def unworded(prompt: str, template: str) -> str:
    """The problem that stands in a worded prompt."""
    before, after = TEMPLATES[template].split("{problem}")
    if not (prompt.startswith(before) and prompt.endswith(after)):
        raise MalformedRow(f"the prompt is not worded as the template {template!r}, so it cannot be worded anew")
    return prompt[len(before) : len(prompt) - len(after)]


def question_of(row: dict[str, Any], entry: Entry) -> Question:
    """Raises MalformedRow where the row has no usable prompt or answer."""
    problem, answer = first(row, entry.problem), first(row, entry.answer)
    if problem is MISSING:
        raise MalformedRow(f"no {' or '.join(entry.problem)}")
    if answer is MISSING:
        raise MalformedRow(f"no {' or '.join(entry.answer)}")
    return Question(_messages(problem, entry), FORMS[entry.answer_form](text_of(answer)))


def _messages(problem: Any, entry: Entry) -> list[dict[str, str]]:
    if isinstance(problem, str):
        if not problem.strip():
            raise MalformedRow("the prompt is empty")
        return [{"role": "user", "content": worded(problem.strip(), entry.template or "plain")}]
    try:
        messages = [{"role": message["role"], "content": message["content"]} for message in problem]
    except (TypeError, KeyError) as error:
        raise MalformedRow("the prompt is neither text nor a list of messages with role and content") from error
    if entry.template and messages:
        if not entry.worded_as:
            if entry.template == "plain":
                return messages
            raise MalformedRow("the prompt is whole messages, which are taken as they are: --template plain")
        if not isinstance(messages[-1]["content"], str):
            raise MalformedRow("the prompt's last message is not text")
        messages[-1]["content"] = worded(unworded(messages[-1]["content"], entry.worded_as), entry.template)
    return messages


def verl_row(row: dict[str, Any], question: Question, entry: Entry, split: str, index: int, source_row: int) -> dict:
    """The row in `schema.SCHEMA`.

    Raises:
        MalformedRow: what comes out would not be valid.
    """
    kept = {path: value for path in entry.extra if (value := at(row, path)) is not MISSING}
    made = {
        "data_source": entry.data_source or row.get("data_source"),
        "prompt": question.messages,
        "ability": entry.ability or row.get("ability") or "",
        "reward_model": {"style": "rule", "ground_truth": question.answer},
        "extra_info": {
            "index": index,
            "split": split,
            "source_row": source_row,
            "metadata": _metadata(kept),
        },
    }
    if wrong := problem_of(made):
        raise MalformedRow(wrong)
    return made


def _metadata(kept: dict[str, Any]) -> str:
    try:
        return json.dumps(kept, ensure_ascii=False, default=str)
    except RecursionError as error:
        raise MalformedRow(f"one of {', '.join(kept)} is nested too deeply") from error


def columns_used(entry: Entry) -> list[str]:
    """Top-level columns that `question_of` and `verl_row` look at."""
    paths = [*entry.problem, *entry.answer, *entry.extra, *([] if entry.data_source else ["data_source"])]
    paths += [] if entry.ability else ["ability"]
    return list(dict.fromkeys(path for full in paths for path in (full, full.split(".")[0])))
