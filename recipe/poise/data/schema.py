"""verl's data schema, one fixed Arrow type for all data sets: verl concatenates files, and that needs equal types."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recipe.poise.data.errors import DataError

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
        if message["role"] not in ROLES:
            return f"prompt has a message of role {message['role']!r}, want one of {', '.join(sorted(ROLES))}"
        if not isinstance(message["content"], str):
            return "prompt has a message whose content is not text"
    if messages[-1]["role"] == "assistant" or not messages[-1]["content"].strip():
        return "prompt ends with an empty or an assistant's message, so nothing is asked"
    truth = row["reward_model"].get("ground_truth") if isinstance(row["reward_model"], dict) else None
    if not isinstance(truth, str) or not truth.strip():
        return "reward_model.ground_truth is empty or not text"
    return None


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
    check_columns(list(pq.read_schema(file).names), file)
    found = pq.read_table(file).to_pylist()
    if not found:
        raise DataError(f"{file} has no rows")
    for number, row in enumerate(found):
        if wrong := problem_of(row):
            raise DataError(f"{file}, row {number}: {wrong}")
    return found
