"""Make one data set's folder: parquet files in verl's schema and a manifest. Whole or not at all, and only once."""

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recipe.poise.data import files as data_files
from recipe.poise.data import sources
from recipe.poise.data.catalogue import Entry, Kind
from recipe.poise.data.clean import Kept, check_columns, digest, numbered, select
from recipe.poise.data.convert import columns_used, question_of, verl_row
from recipe.poise.data.errors import DataError
from recipe.poise.data.lengths import Limit
from recipe.poise.data.manifest import MANIFEST, checksum, is_whole, of_folder, refuse_link
from recipe.poise.data.names import check_pattern
from recipe.poise.data.schema import SCHEMA
from recipe.poise.progress import progress as progress_of

FORMAT = 1  # raise it when the same request would give other files
ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Request:
    """What is to be made."""

    entry: Entry
    source: str
    revision: str | None = None
    limit: Limit | None = None

    @property
    def drop(self) -> frozenset[Kind]:
        return self.entry.drop

    def record(self) -> dict[str, Any]:
        """As plain data, for the manifest."""
        entry = self.entry
        return {
            "format": FORMAT,
            "name": entry.name,
            "source": self.source,
            "revision": self.revision,
            "splits": {split: list(files) for split, files in entry.splits.items()},
            "data_source": entry.data_source,
            "ability": entry.ability,
            "columns": {"prompt": list(entry.problem), "answer": list(entry.answer), "extra": list(entry.extra)},
            "answer_form": entry.answer_form,
            "template": entry.template,
            "drop": sorted(self.drop),
            "tokenizer": self.limit.tokenizer if self.limit else None,
            "max_prompt_length": self.limit.tokens if self.limit else None,
        }


def is_made(folder: Path, request: Request) -> bool:
    """Whether the folder holds what the request would give: same request, same local source, files intact.

    Raises:
        DataError, FileExistsError: see `build`.
    """
    manifest = of_folder(folder)
    if manifest is None or manifest["request"] != request.record() or not is_whole(folder, manifest):
        return False
    if not sources.local(request.source).exists():
        return True  # a hub data set: its files were checked when they came
    root, splits = sources.locate(request.source, request.entry.name, request.entry.splits, request.revision)
    return manifest.get("source_files") == _checksums(root, splits)


def _checksums(root: Path, splits: sources.Splits) -> dict[str, str]:
    return {str(file.relative_to(root)): checksum(file) for files in splits.values() for file in files}


def build(out: Path, request: Request, progress: bool = True) -> dict[str, Any] | None:
    """Make the data set's folder `out`; its manifest, or None where it was there already.

    Raises:
        DataError: bad input; then nothing is written, and what was there stays.
        FileExistsError: `out` holds something that this program did not write.
        OSError: the system refuses to read or write.
    """
    if is_made(out, request):
        return None
    refuse_link(out)
    entry = request.entry
    root, splits = sources.locate(request.source, entry.name, entry.splits, request.revision)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        fresh, old = Path(scratch, "fresh"), Path(scratch, "old")
        fresh.mkdir()
        made: dict[str, dict[str, Any]] = {}
        keys: dict[str, set[bytes]] = {}
        for split, files in splits.items():
            check_columns(files, entry)
            total = sum(data_files.count(file) for file in files)
            with progress_of(total=total, desc=f"{entry.name} {split}", unit="rows", disable=not progress) as bar:
                kept = select(files, entry, request.limit, request.drop, bar.update)
            file = fresh / f"{split}.parquet"
            _write(file, files, entry, split, kept, progress)
            keys[split] = kept.keys
            made[split] = {"file": file.name, "sha256": checksum(file), **kept.counts.record()}
        manifest = {
            "request": request.record(),
            "source_files": _checksums(root, splits),
            "splits": made,
            # Not dropped: published results stand on the splits as they are.
            "prompts_in_train_and_test": len(keys.get("train", set()) & keys.get("test", set())),
        }
        (fresh / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        if out.exists():
            os.rename(out, old)
        try:
            os.rename(fresh, out)
        except BaseException:  # an interrupt too: `old` would go with the scratch folder
            if old.exists():
                os.rename(old, out)
            raise
    return manifest


def _write(file: Path, files: list[Path], entry: Entry, split: str, kept: Kept, progress: bool) -> None:
    """Second pass: the chosen rows, in the source's order."""
    with pq.ParquetWriter(file, SCHEMA) as writer:
        desc = f"{entry.name} {split}, writing"
        with progress_of(total=len(kept.rows), desc=desc, unit="rows", disable=not progress) as bar:
            chosen = _chosen(files, entry, split, kept)
            while batch := list(islice(chosen, ROWS_AT_ONCE)):
                writer.write_table(pa.Table.from_pylist(batch, schema=SCHEMA))
                bar.update(len(batch))


def _chosen(files: list[Path], entry: Entry, split: str, kept: Kept) -> Iterator[dict[str, Any]]:
    wanted = iter(enumerate(kept.rows))
    following = next(wanted, None)
    for number, file, row in numbered(files, columns_used(entry)):
        if following is None:
            return
        index, source_row = following
        if number == source_row:
            question = question_of(row, entry)
            if digest(question.key) not in kept.keys:
                raise DataError(f"{file} changed while it was read; run again when it is complete")
            yield verl_row(row, question, entry, split, index, source_row)
            following = next(wanted, None)
    if following is not None:
        raise DataError(f"{files[-1]} became shorter while it was read; run again when it is complete")


def with_options(
    entry: Entry,
    *,
    fields: dict[str, str] | None = None,
    files: dict[str, str] | None = None,
    split: str | None = None,
    **changes: Any,
) -> Entry:
    """The entry with what the command line says in place of its own values; None changes nothing.

    Args:
        fields: columns of `prompt`, `answer` and `extra` (``a,b`` for several).
        files: patterns of the splits.
        split: the only split to make.

    Raises:
        DataError: a field or split that does not exist, or a name or pattern that leads out of its folder.
    """
    columns = {"prompt": "problem", "answer": "answer", "extra": "extra"}
    for name, column in (fields or {}).items():
        if name not in columns:
            raise DataError(f"--field {name}=...: there are {', '.join(columns)}")
        changes[columns[name]] = tuple(column.split(",")) if name == "extra" else (column,)
    if files:
        changes["splits"] = {
            name: (check_pattern(pattern, f"--files {name}=... says"),) for name, pattern in files.items()
        }
    if split:
        splits = changes.get("splits") or entry.splits
        # A lone local file may be any split; patterns matter for folders only.
        changes["splits"] = {split: splits.get(split, next(iter(splits.values())))}
    return replace(entry, **{name: value for name, value in changes.items() if value is not None})
