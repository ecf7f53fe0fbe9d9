"""The state of a probe on disk: tensors in safetensors, the rest in a JSON manifest; loading executes nothing.

A folder is written under a temporary name, synced, and renamed: no reader finds half a state. (Where it replaces
another folder, a reader finds neither for a moment between two renames.) The manifest holds a digest of every byte of
both files, its own digits aside, so whatever has changed since is found.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

VERSION = 6
MANIFEST, TENSORS = "probe.json", "probe.safetensors"
BLANK = "0" * 32  # stands for the digest while it is computed
REMEDY = "use an older checkpoint (trainer.resume_mode=resume_path trainer.resume_from_path=.../global_step_N)"

Entry = TypeVar("Entry")
Tensors = dict[str, Tensor]
Declared = Mapping[str, tuple[str, torch.dtype]]  # name -> a letter per dimension, and the type


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(manifest: bytes, tensors: Path) -> str:
    """Of the manifest, with a blank in the digest's place, and of the tensors' file."""
    digest = hashlib.blake2b(manifest, digest_size=16)
    with tensors.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write(folder: Path, identity: dict, content: dict, tensors: Tensors) -> None:
    """Write a state to `folder`, replacing one that is there.

    Args:
        identity: what must be the same where it is read. content: the rest. Both as JSON can hold, of finite numbers.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    # copies: safetensors refuses tensors that share memory
    copies = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    save_file(copies, temporary / TENSORS)
    whole = {"version": VERSION, "digest": BLANK, "identity": identity, "content": content}
    text = json.dumps(whole, indent=1, allow_nan=False)
    digest = _digest(text.encode(), temporary / TENSORS)
    (temporary / MANIFEST).write_text(text.replace(BLANK, digest, 1))  # names and numbers come after it
    for path in (temporary / TENSORS, temporary / MANIFEST, temporary):
        _sync(path)
    if folder.exists():
        replaced = folder.with_name(f".{folder.name}.{os.getpid()}.old")
        folder.rename(replaced)
        temporary.rename(folder)
        shutil.rmtree(replaced)
    else:
        temporary.rename(folder)
    _sync(folder.parent)


def read(folder: Path) -> tuple[dict, dict, Tensors]:
    """Identity, content and tensors of the state in `folder`, as they were written.

    Raises:
        FileNotFoundError: no state there. ValueError: another format, or damaged; says what to do.
    """
    try:
        raw = (folder / MANIFEST).read_bytes()
        manifest = json.loads(raw.decode(), parse_constant=_refuse)
        version, digest = manifest["version"], manifest["digest"]
        if version == VERSION:
            if not isinstance(digest, str) or digest != _digest(
                raw.replace(digest.encode(), BLANK.encode(), 1), folder / TENSORS
            ):
                raise ValueError("its digest is another")
            return manifest["identity"], manifest["content"], load_file(folder / TENSORS)
    except (ValueError, KeyError, TypeError, SafetensorError, RecursionError) as error:
        raise damaged(folder, error) from error
    raise ValueError(
        f"the probe's state in {folder} is of format {version}, this program reads format {VERSION}: go on with the "
        f"program that wrote it, {REMEDY}, or start anew with trainer.resume_mode=disable"
    )


def damaged(folder: Path, error: Exception) -> ValueError:
    """What to raise for a state that cannot be used, with the remedy."""
    return ValueError(f"the probe's state in {folder} is damaged ({error}): {REMEDY}")


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no number")


def check_identity(folder: Path, expected: dict, found: dict) -> None:
    """Raises ValueError with the differences, if there are any."""
    differences = _differences(json.loads(json.dumps(expected)), found)  # as JSON gives it back
    if differences:
        raise ValueError(
            f"the probe's state in {folder} was written under other settings:\n  " + "\n  ".join(differences) + "\n"
            "Give the run the checkpoint's settings, or start with trainer.resume_mode=disable."
        )


def _differences(expected: Any, found: Any, path: str = "") -> list[str]:
    if isinstance(expected, dict) and isinstance(found, dict):
        keys = sorted(expected.keys() | found.keys())
        start = f"{path}." if path else ""
        return [
            line
            for key in keys
            for line in _differences(expected.get(key, "absent"), found.get(key, "absent"), start + key)
        ]
    return [] if expected == found else [f"{path}: this run {expected}, checkpoint {found}"]


def prefixed(prefix: str, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The entries under names that start with the prefix and a dot."""
    return {f"{prefix}.{name}": entry for name, entry in entries.items()}


def split(entries: Mapping[str, Entry], prefixes: Iterable[str]) -> list[dict[str, Entry]]:
    """What `prefixed` put together, by prefix. Raises ValueError for a name that has none of them."""
    parts: dict[str, dict[str, Entry]] = {prefix: {} for prefix in prefixes}
    for name, entry in entries.items():
        prefix, _, rest = name.partition(".")
        if prefix not in parts:
            raise ValueError(f"{name}: there is no such entry")
        parts[prefix][rest] = entry
    return list(parts.values())


def check_tensors(path: str, tensors: Tensors, declared: Declared, sizes: Mapping[str, int], holes=()) -> None:
    """Compare tensors with what they must be.

    Args:
        path: of the tensors, for the error.
        declared: which there may be; a letter means one size throughout.
        sizes: of the letters that are known.
        holes: names of tensors that may hold NaN where there is nothing; infinite numbers are refused everywhere.

    Raises:
        ValueError: a tensor of another name, type or shape, or with a number that is not finite.
    """
    known = dict(sizes)
    for name, tensor in tensors.items():
        if name not in declared:
            raise ValueError(f"{path}.{name}: there is no such tensor")
        letters, dtype = declared[name]
        wanted = tuple(known.get(letter, size) for letter, size in zip(letters, tensor.shape, strict=False))
        if tensor.dtype != dtype or tensor.ndim != len(letters) or tuple(tensor.shape) != wanted:
            shape = ", ".join(str(known.get(letter, letter)) for letter in letters)
            raise ValueError(f"{path}.{name}: {tensor.dtype} of shape {tuple(tensor.shape)}, want {dtype} of ({shape})")
        known |= dict(zip(letters, tensor.shape, strict=True))
        if tensor.is_floating_point() and not (tensor.isfinite() | (tensor.isnan() & (name in holes))).all():
            raise ValueError(f"{path}.{name}: a number is not finite")
