"""Where rows come from: a file, a folder, or a data set of the Hugging Face hub (downloaded once, then a folder)."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from recipe.poise.data.errors import DataError

SUFFIXES = (".parquet", ".jsonl", ".json")
BATCH = 1024
Splits = dict[str, list[Path]]


def locate(source: str, name: str, patterns: dict[str, tuple[str, ...]], revision: str | None) -> tuple[Path, Splits]:
    """The source's root and the files of each split.

    Args:
        source: a path, or a hub id (``owner/name``) where no such path exists.
        name: of the data set; files called after it are found in a folder of several.
        patterns: files of each split, below the root.
        revision: of a hub data set; None for the newest.

    Raises:
        DataError: nothing there, or files that no split claims.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path.parent, {_split_of(path, tuple(patterns)): [path]}
    if not path.exists():
        path = _download(source, name, patterns, revision)
    found = {split: _matching(path, split, name, wanted) for split, wanted in patterns.items()}
    if missing := [split for split, files in found.items() if not files]:
        raise DataError(
            f"{source} has no file of {name}'s split {missing[0]!r}: looked for {', '.join(patterns[missing[0]])} and "
            f"{name}_{missing[0]}.*. It holds {_listing(path)}. Name the files: --files {missing[0]}=PATTERN"
        )
    return path, found


def _matching(root: Path, split: str, name: str, wanted: tuple[str, ...]) -> list[Path]:
    """Files of the data set's own layout, else files called ``NAME_SPLIT`` or ``NAME``, else ``SPLIT``."""
    flat = [f"{stem}{suffix}" for stem in (f"{name}[_-]{split}", name, split) for suffix in SUFFIXES]
    for patterns in (wanted, *([pattern] for pattern in flat)):
        files = {file for pattern in patterns for file in root.glob(pattern)}
        if files := {file for file in files if file.is_file() and file.suffix in SUFFIXES}:
            return sorted(files)
    return []


def _split_of(file: Path, splits: tuple[str, ...]) -> str:
    """The split that a lone file is, by its name where there are several."""
    if file.suffix not in SUFFIXES:
        raise DataError(f"{file} is not one of {', '.join(SUFFIXES)}; convert it, or name another --source")
    named = [split for split in splits if re.search(rf"(?<![a-z]){split}(?![a-z])", file.stem.lower())]
    if len(splits) > 1 and len(named) != 1:
        raise DataError(f"{file}: which of {', '.join(splits)} is this? Say it: --split {splits[0]}")
    return named[0] if named else splits[0]


def _download(source: str, name: str, patterns: dict[str, tuple[str, ...]], revision: str | None) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or source.startswith("."):
        raise DataError(f"{source}: no such file or folder, and no hub id (owner/name) either")
    wanted = [pattern for files in patterns.values() for pattern in files]
    try:
        return Path(snapshot_download(source, repo_type="dataset", revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise DataError(
            f"{source}: not to be had from the hub ({type(error).__name__}: {str(error).splitlines()[0]}). "
            f"Without network, fetch {', '.join(wanted)} of it elsewhere, then: "
            f"python -m recipe.poise.data {name} --source DIR --out DATA"
        ) from error


def _listing(root: Path, most: int = 8) -> str:
    files = sorted(str(file.relative_to(root)) for file in root.rglob("*") if file.suffix in SUFFIXES)
    return ", ".join(files[:most]) + (f" and {len(files) - most} more" if len(files) > most else "") or "no data file"


def count(file: Path) -> int:
    """Number of rows, for a progress bar; of JSON lines an upper bound (blank lines count)."""
    if file.suffix == ".parquet":
        return pq.ParquetFile(file).metadata.num_rows
    if file.suffix == ".jsonl":
        with open(file, "rb") as lines:
            return sum(1 for _ in lines)
    return len(_array(file))


def columns_of(file: Path) -> list[str]:
    """Names of the columns: a parquet file's schema, or the first row's keys. Empty for an empty JSON file."""
    if file.suffix == ".parquet":
        return list(pq.read_schema(file).names)
    return list(next(iter(rows(file)), {}))


def rows(file: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of one file in order, as plain Python values.

    Args:
        columns: top-level columns to read of a parquet file; None for all. JSON rows are always whole.

    Raises:
        DataError: a line or file that is not JSON, or not an object per row; it names the line.
    """
    if file.suffix == ".parquet":
        for batch in pq.ParquetFile(file).iter_batches(batch_size=BATCH, columns=columns):
            yield from batch.to_pylist()
    elif file.suffix == ".jsonl":
        with open(file, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _object(line, f"{file}:{number}")
    else:
        yield from _array(file)


def _object(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place} is not JSON ({error.msg}): {line[:80]!r}") from error
    if not isinstance(row, dict):
        raise DataError(f"{place} is not an object with named fields: {line[:80]!r}")
    return row


def _array(file: Path) -> list[dict[str, Any]]:
    try:
        whole = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file}:{error.lineno} is not JSON ({error.msg}). One object per line? Call it .jsonl"
        ) from error
    if not isinstance(whole, list) or not all(isinstance(row, dict) for row in whole):
        raise DataError(f"{file} is not a list of objects. Write it so, or as one object per line (.jsonl)")
    return whole
