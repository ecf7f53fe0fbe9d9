"""Which rows of a split stay: no repeated prompts, no prompts with several answers, none too long, none malformed.

A first pass over the source that keeps 16 bytes per distinct prompt, so a file of two million rows needs no memory.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from recipe.poise.data import files as data_files
from recipe.poise.data.catalogue import Entry, Kind
from recipe.poise.data.convert import MISSING, MalformedRow, Question, columns_used, first, question_of, verl_row
from recipe.poise.data.errors import DataError
from recipe.poise.data.lengths import Limit

SHOWN = 3  # so many bad rows are named in an error


@dataclass
class Counts:
    """What happened to the rows of one split."""

    read: int = 0
    malformed: int = 0
    duplicates: int = 0  # further rows with a prompt that came before, and the same answer
    conflicting_prompts: int = 0  # distinct prompts that occur with different answers
    conflicting_rows: int = 0  # all rows with such a prompt
    overlong: int = 0
    written: int = 0

    record = asdict


@dataclass
class Kept:
    """Source rows that stay, in order, and where examples of the others are."""

    rows: list[int] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    keys: set[bytes] = field(default_factory=set)


@dataclass
class _Seen:
    row: int
    answer: bytes
    times: int = 1
    conflict: bool = False
    overlong: bool = False


def digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def numbered(files: Iterable[Path], columns: list[str]) -> Iterator[tuple[int, Path, dict[str, Any]]]:
    """Rows of a split's files, numbered through."""
    number = 0
    for file in files:
        present = data_files.columns_of(file)
        wanted = [column for column in columns if column in present] if file.suffix == ".parquet" else None
        for row in data_files.rows(file, wanted):
            yield number, file, row
            number += 1


def check_columns(files: Iterable[Path], entry: Entry) -> None:
    """Raise DataError, naming what the file has, where it lacks a column that the entry needs."""
    for file in files:
        row = next(islice(data_files.rows(file), 1), None)
        if row is None:
            continue
        needed = {"prompt": entry.problem, "answer": entry.answer}
        if not entry.data_source:
            needed["data_source"] = ("data_source",)
        for what, paths in needed.items():
            if first(row, paths) is MISSING and not any(row.get(path.split(".")[0], MISSING) is None for path in paths):
                option = "--data-source NAME" if what == "data_source" else f"--field {what}=COLUMN"
                raise DataError(
                    f"{file} has no column {' or '.join(paths)} for the {what}; it has {', '.join(row)}. "
                    f"Say which one it is: {option}"
                )


def select(
    files: list[Path], entry: Entry, limit: Limit | None, drop: frozenset[Kind], step: Callable[[], Any] = lambda: None
) -> Kept:
    """Choose the rows of a split.

    Args:
        drop: what is left out and counted; each other kind raises where it occurs.
        step: called once per row.

    Raises:
        DataError: see `drop`; also for an empty split.
    """
    seen: dict[bytes, _Seen] = {}
    kept, counts = Kept(), Counts()
    kept.counts = counts
    bad: dict[Kind, list[str]] = {"malformed": [], "duplicates": [], "overlong": []}

    def note(kind: Kind, file: Path, number: int, why: str) -> None:
        if len(bad[kind]) < SHOWN:
            bad[kind].append(f"{file.name}, row {number}: {why}")

    for number, file, row in numbered(files, columns_used(entry)):
        counts.read += 1
        step()
        try:
            question = question_of(row, entry)
            verl_row(row, question, entry, "", 0, number)
        except MalformedRow as error:
            counts.malformed += 1
            note("malformed", file, number, str(error))
            continue
        key, answer = digest(question.key), digest(question.answer_key)
        old = seen.get(key)
        if old:
            old.times += 1
            old.conflict |= old.answer != answer
            note("duplicates", file, number, f"the prompt of row {old.row} again: {_start(question)}")
            continue
        seen[key] = new = _Seen(number, answer)
        if limit and (tokens := _tokens(limit, question, file, number)) > limit.tokens:
            new.overlong = True
            note("overlong", file, number, f"{tokens} tokens, the limit is {limit.tokens}: {_start(question)}")

    for key, one in seen.items():
        if one.conflict:
            counts.conflicting_prompts += 1
            counts.conflicting_rows += one.times
            continue
        counts.duplicates += one.times - 1
        counts.overlong += one.overlong
        if not one.overlong:
            kept.rows.append(one.row)
            kept.keys.add(key)
    counts.written = len(kept.rows)
    _refuse(bad, drop, counts)
    if not kept.rows:
        raise DataError(
            f"{', '.join(file.name for file in files)}: no row is left of {counts.read} ({counts.record()})"
        )
    return kept


def _tokens(limit: Limit, question: Question, file: Path, number: int) -> int:
    try:
        return limit.length(question.messages)
    except DataError as error:
        raise DataError(f"{file.name}, row {number}: {error}") from error


def _start(question: Question) -> str:
    return repr(question.messages[-1]["content"][:60])


def _refuse(bad: dict[Kind, list[str]], drop: frozenset[Kind], counts: Counts) -> None:
    totals: dict[Kind, int] = {
        "malformed": counts.malformed,
        "duplicates": counts.duplicates + counts.conflicting_rows,
        "overlong": counts.overlong,
    }
    for kind, examples in bad.items():
        if totals[kind] and kind not in drop:
            raise DataError(
                f"{totals[kind]} {kind} of {counts.read} rows. " + "; ".join(examples) + ". "
                f"Mend the source, or leave them out: --drop {kind}"
            )
