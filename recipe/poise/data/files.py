"""What is in a source's file: parquet, JSON lines or one JSON list. Text and plain values only; nothing is executed.

A file that cannot be read is a DataError that says where and what to do; what the system refuses stays an OSError.
"""

import codecs
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recipe.poise.data.errors import DataError, first_line

SUFFIXES = (".parquet", ".jsonl", ".json")
BATCH = 1024
# What pyarrow raises on damaged bytes, and on values that Python's types cannot hold (dates, time zones, texts).
BROKEN = (pa.ArrowException, OSError, ValueError, OverflowError, LookupError)
WIDE = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def count(file: Path) -> int:
    """Number of rows, for a progress bar; of JSON lines an upper bound (blank lines count)."""
    if file.suffix == ".parquet":
        with readable(file):
            return pq.ParquetFile(file).metadata.num_rows
    if file.suffix == ".jsonl":
        with open(file, "rb") as lines:
            return sum(1 for _ in lines)
    return len(_array(file))


def columns_of(file: Path) -> list[str]:
    """Names of the columns: a parquet file's schema, or the first row's keys. Empty for an empty JSON file."""
    if file.suffix == ".parquet":
        with readable(file):
            return list(pq.read_schema(file).names)
    return list(next(iter(rows(file)), {}))


def rows(file: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of one file in order, as plain Python values.

    Args:
        columns: top-level columns to read of a parquet file; None for all. JSON rows are always whole.

    Raises:
        DataError: a file or line that cannot be read, or that is not an object per row; it names the line.
    """
    if file.suffix == ".parquet":
        with readable(file):
            for batch in pq.ParquetFile(file).iter_batches(batch_size=BATCH, columns=columns):
                yield from batch.to_pylist()
    elif file.suffix == ".jsonl":
        with open(file, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                text = _text(line, f"{file}:{number}", first=number == 1)
                if text.strip():
                    yield _object(text, f"{file}:{number}")
    else:
        yield from _array(file)


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Parquet's errors as a DataError that names the file."""
    try:
        yield
    except BROKEN as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's, e.g. a file that may not be read; a damaged file is an OSError without a number
        raise DataError(
            f"{file} cannot be read as parquet ({first_line(error)}). Is it whole? Fetch or convert it anew"
        ) from error


def _text(content: bytes, place: str, first: bool = True) -> str:
    """Bytes as text. Raises DataError for what is not UTF-8; a byte order mark at the beginning is left out."""
    if first and content.startswith(WIDE):
        raise DataError(f"{place} is UTF-16 or UTF-32; save it as UTF-8 (iconv -f UTF-16 -t UTF-8 OLD > NEW)")
    try:
        return content.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place} is not UTF-8 (byte {error.start}: 0x{content[error.start]:02x}). Save it as UTF-8 "
            "(from an older Western coding: iconv -f CP1252 -t UTF-8 OLD > NEW)"
        ) from error


def _parsed(text: str, place: str, remedy: str = "") -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = "" if "\n" not in text.strip() else f" at line {error.lineno}"
        raise DataError(f"{place} is not JSON ({error.msg}{line}){remedy}: {text[:80]!r}") from error
    except RecursionError as error:
        raise DataError(f"{place} is nested too deeply to be a row; leave it out or flatten it") from error
    except ValueError as error:  # a whole number of more digits than Python reads
        raise DataError(f"{place} holds a number that is too long ({first_line(error)}); write it as text") from error


def _object(line: str, place: str) -> dict[str, Any]:
    row = _parsed(line, place)
    if not isinstance(row, dict):
        raise DataError(f"{place} is not an object with named fields: {line[:80]!r}")
    return row


def _array(file: Path) -> list[dict[str, Any]]:
    whole = _parsed(_text(file.read_bytes(), str(file)), str(file), ". One object per line? Call it .jsonl")
    if not isinstance(whole, list) or not all(isinstance(row, dict) for row in whole):
        raise DataError(f"{file} is not a list of objects. Write it so, or as one object per line (.jsonl)")
    return whole
