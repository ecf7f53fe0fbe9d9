"""A made data set's manifest: whose the folder is, what it was made from, whether its files are whole."""

import hashlib
import json
from pathlib import Path
from typing import Any

from recipe.poise.data.errors import DataError, first_line

MANIFEST = "manifest.json"


def checksum(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha(content)


def _sha(content) -> str:
    """`hashlib.file_digest` for Python 3.10."""
    state = hashlib.sha256()
    while block := content.read(1 << 20):
        state.update(block)
    return state.hexdigest()


def of_folder(folder: Path) -> dict[str, Any] | None:
    """The manifest of a data set's folder, or None where there is no folder, or an empty one.

    Raises:
        FileExistsError: something that this program did not write, or not to its end. It is never replaced.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise FileExistsError(f"{folder} is in the way: not a folder. Give another --out or remove it")
    present = {path.name for path in folder.iterdir()}
    if not present:
        return None
    if MANIFEST not in present:
        raise FileExistsError(f"{folder} is not empty and has no {MANIFEST}; give another --out or remove it")
    manifest = _read(folder / MANIFEST)
    if foreign := sorted(present - {MANIFEST} - {made["file"] for made in manifest["splits"].values()}):
        raise FileExistsError(
            f"{folder} holds {', '.join(foreign[:3])}, which is not of this data set and would be lost; move it away"
        )
    return manifest


def _read(file: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(file.read_bytes())
        splits = manifest["splits"].values()
        known = isinstance(manifest["request"], dict) and all(
            isinstance(made["file"], str) and isinstance(made["sha256"], str) for made in splits
        )
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise FileExistsError(
            f"{file} is damaged, or not of this program ({first_line(error)}); remove its folder, or give another --out"
        ) from error
    if not known:
        raise FileExistsError(f"{file} is not of this program; remove its folder, or give another --out")
    return manifest


def is_whole(folder: Path, manifest: dict[str, Any]) -> bool:
    """Whether every file is there as it was written."""
    return all(
        (folder / made["file"]).is_file() and checksum(folder / made["file"]) == made["sha256"]
        for made in manifest["splits"].values()
    )


def refuse_link(folder: Path) -> None:
    """Raise DataError for a link: replacing it would leave what it points to behind."""
    if folder.is_symlink():
        raise DataError(
            f"{folder} is a link (to {folder.readlink()}), and a data set's folder is made beside it and "
            "moved there whole; remove the link, or give the --out that it leads to"
        )
