"""Names that become folders and files: one plain path component each, so that nothing is written elsewhere."""

import re
from pathlib import PurePosixPath

from recipe.poise.data.errors import DataError

PLAIN = re.compile(r"\w[\w.-]*")
LONGEST = 100  # bytes; file systems hold 255, suffixes and temporary names take some
WANTED = f"want letters, digits, '.', '-' and '_', beginning with a letter, a digit or '_', at most {LONGEST} bytes"


def is_plain(name: str) -> bool:
    """Whether a name can be a folder's or a file's, without a way out of the folder that it is put in."""
    return PLAIN.fullmatch(name) is not None and len(name.encode()) <= LONGEST


def check_name(name: str, what: str) -> str:
    """The name itself. Raises DataError, which says `what` it should have named."""
    if not is_plain(name):
        raise DataError(f"{what} {name!r}: {WANTED}")
    return name


def check_pattern(pattern: str, what: str) -> str:
    """A pattern of files below a folder, itself. Raises DataError for one that is no such, or leads out of it."""
    parts = PurePosixPath(pattern).parts
    odd = not parts or {"/", ".."} & set(parts) or any("**" in part and part != "**" for part in parts)
    if odd or not pattern.isprintable():
        raise DataError(f"{what} {pattern!r}: want files below the source's folder, e.g. data/train-*.parquet")
    return pattern
