"""verl's data schema, one fixed Arrow type for all data sets: verl concatenates files, and that needs equal types."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recipe.poise.data.errors import DataError
from recipe.poise.data.files import readable

SCHEMA = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
        (
            "extra_info",
            # index: row of this file; source_row: row of the source; metadata: JSON of what else the source says.
            pa.struct(
                [
                    ("index", pa.int64()),
                    ("split", pa.string()),
                    ("source_row", pa.int64()),
                    ("metadata", pa.string()),
                ]
            ),
        ),
    ]
)
REQUIRED = ("data_source", "prompt", "reward_model")  # what verl and the rewards cannot do without
ROLES = {"system", "user", "assistant", "tool"}


def problem_of(row: dict[str, Any]) -> str | None:
    """What is wrong with a row, or None."""
    if not row["data_source"] or not isinstance(row["data_source"], str):
        return "data_source is empty"
    messages = row["prompt"]
    if not isinstance(messages, list) or not messages:
        return "prompt is not a list of messages"
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            return "prompt has a message without role and content"
        if not isinstance(message["role"], str) or message["role"] not in ROLES:
            return f"prompt has a message of role {message['role']!r}, want one of {', '.join(sorted(ROLES))}"
        if not isinstance(message["content"], str):
            return "prompt has a message whose content is not text"
    if messages[-1]["role"] == "assistant" or not messages[-1]["content"].strip():
        return "prompt ends with an empty or an assistant's message, so nothing is asked"
    truth = row["reward_model"].get("ground_truth") if isinstance(row["reward_model"], dict) else None
    if not isinstance(truth, str) or not truth.strip():
        return "reward_model.ground_truth is empty or not text"
    if not isinstance(row.get("ability") or "", str):
        return "ability is not text"
    extra = row.get("extra_info") or {}
    if not isinstance(extra, dict):
        return "extra_info is not a struct of named fields"
    texts = (row["data_source"], row.get("ability"), truth, extra.get("metadata"))
    if torn := [text for text in (*texts, *(message["content"] for message in messages)) if _is_torn(text)]:
        return f"half of a character (a lone surrogate) in {torn[0][:60]!r}, which no parquet file can hold"
    return None


def _is_torn(text: Any) -> bool:
    r"""Whether a text holds half of a pair such as JSON's ``\ud83d`` without what follows it."""
    try:
        str(text).encode()
    except UnicodeEncodeError:
        return True
    return False


def check_columns(names: list[str], file: Path) -> None:
    """Raise DataError where a required column is missing."""
    if missing := [name for name in REQUIRED if name not in names]:
        raise DataError(
            f"{file} is not in verl's schema: it lacks {', '.join(missing)}, it has {', '.join(names) or 'nothing'}. "
            "Make it with `python -m recipe.poise.data jsonl --source FILE --field prompt=COLUMN --field answer=COLUMN`"
        )


def load(file: Path) -> list[dict[str, Any]]:
    """All rows of a parquet file in verl's schema, whoever wrote it.

    Raises:
        DataError: missing columns, a bad row, no rows.
        FileNotFoundError: no such file.
    """
    with readable(file):
        names = list(pq.read_schema(file).names)
    check_columns(names, file)
    with readable(file):
        found = pq.read_table(file).to_pylist()
    if not found:
        raise DataError(f"{file} has no rows")
    for number, row in enumerate(found):
        if wrong := problem_of(row):
            raise DataError(f"{file}, row {number}: {wrong}")
    return found
