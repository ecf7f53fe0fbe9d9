"""Where rows come from: a file, a folder, or a data set of the Hugging Face hub (downloaded once, then a folder)."""

import re
from pathlib import Path

from httpx import HTTPError
from huggingface_hub import snapshot_download

from recipe.poise.data.errors import DataError, first_line
from recipe.poise.data.files import SUFFIXES

# What the hub's client raises: without network, for what the hub has not, and for names that it does not take.
NOT_TO_BE_HAD = (OSError, HTTPError, ValueError)
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
    path = local(source)
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


def local(source: str) -> Path:
    """The source as a path, whether or not there is one. Raises DataError."""
    try:
        return Path(source).expanduser()
    except RuntimeError as error:  # ~somebody
        raise DataError(f"{source}: {error}; write the folder's path in full") from error


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
    named = [split for split in splits if re.search(rf"(?<![a-z]){re.escape(split)}(?![a-z])", file.stem.lower())]
    if len(splits) > 1 and len(named) != 1:
        raise DataError(f"{file}: which of {', '.join(splits)} is this? Say it: --split {splits[0]}")
    return named[0] if named else splits[0]


def _download(source: str, name: str, patterns: dict[str, tuple[str, ...]], revision: str | None) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or source.startswith("."):
        raise DataError(f"{source}: no such file or folder, and no hub id (owner/name) either")
    wanted = [pattern for files in patterns.values() for pattern in files]
    try:
        return Path(snapshot_download(source, repo_type="dataset", revision=revision, allow_patterns=wanted))
    except NOT_TO_BE_HAD as error:
        raise DataError(
            f"{source}: not to be had from the hub ({first_line(error)}). "
            f"Without network, fetch {', '.join(wanted)} of it elsewhere, then: "
            f"python -m recipe.poise.data {name} --source DIR --out DATA"
        ) from error


def _listing(root: Path, most: int = 8) -> str:
    files = sorted(str(file.relative_to(root)) for file in root.rglob("*") if file.suffix in SUFFIXES)
    return ", ".join(files[:most]) + (f" and {len(files) - most} more" if len(files) > most else "") or "no data file"
