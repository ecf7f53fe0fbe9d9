"""State of a `ProbeBank` on disk: tensors in safetensors, the rest in a JSON manifest; loading executes nothing.

A folder is written under a temporary name, synced, and renamed: no reader finds half a state. (Where it replaces
another folder, a reader finds neither for a moment between two renames.) The manifest holds a digest of the tensors'
file, so that flipped bits are found too.
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from probe.guard import Verdict

if TYPE_CHECKING:
    from probe.bank import ProbeBank
    from probe.estimators import Estimator

VERSION = 3
MANIFEST, TENSORS = "probe.json", "probe.safetensors"


def _identity(bank: "ProbeBank") -> dict:
    """What must agree between the state and the bank that loads it, as JSON gives it back."""
    identity = {
        "version": VERSION,
        "features": dict(zip(bank.layout.names, bank.layout.sizes, strict=True)),
        "settings": asdict(bank.settings),
        "self_target": bank.self_target,
    }
    return json.loads(json.dumps(identity))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _number(value: float | int | None) -> float | int | None | str:
    """JSON has no NaN and no infinity: they become words that float() reads."""
    return str(value) if isinstance(value, float) and not (abs(value) < float("inf")) else value


def _content(bank: "ProbeBank") -> tuple[dict[str, torch.Tensor], dict]:
    """All tensors, and the manifest's own part of the state."""
    tensors: dict[str, torch.Tensor] = {}

    def add(prefix: str, estimator: "Estimator", slots: torch.Tensor) -> dict:
        learned, numbers = estimator.state(slots)
        tensors.update({f"{prefix}.{key}": value for key, value in learned.items()})
        return {key: _number(value) for key, value in numbers.items()}

    domains: dict[str, dict] = {}
    for name, probe in zip(bank.settings.domain_names, bank.probes, strict=True):
        rows, counters = probe.window.state()
        tensors |= {f"{name}.window.{key}": value for key, value in rows.items()}
        if probe.estimator.left_out_ is not None:
            tensors[f"{name}.left_out"] = probe.estimator.left_out_
        domains[name] = {
            "window": counters,
            "estimator": add(f"{name}.estimator", probe.estimator, probe.window.order),
            "weights": list(probe.verdict.weight_E),
            "errors": [_number(error) for error in probe.verdict.error_E],
        }
    shared = add("shared", bank.shared, torch.empty(0, dtype=torch.int64, device=bank.device))
    return tensors, {"updates": bank.updates, "domains": domains, "shared": shared}


def save(bank: "ProbeBank", folder: Path) -> None:
    """Write `bank` to `folder`, replacing a state that is there."""
    tensors, content = _content(bank)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    # copies: safetensors refuses tensors that share memory
    copies = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    save_file(copies, temporary / TENSORS)
    content["digest"] = _digest(temporary / TENSORS)
    (temporary / MANIFEST).write_text(json.dumps(_identity(bank) | content, indent=1, allow_nan=False))
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


def _differences(expected: dict, found: dict, path: str = "") -> list[str]:
    lines = []
    for key in sorted(expected.keys() | found.keys()):
        here, there = expected.get(key, "absent"), found.get(key, "absent")
        if isinstance(here, dict) and isinstance(there, dict):
            lines += _differences(here, there, f"{path}{key}.")
        elif here != there:
            lines.append(f"{path}{key}: this run {here}, checkpoint {there}")
    return lines


def _read(bank: "ProbeBank", folder: Path) -> tuple[dict[str, torch.Tensor], dict]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        tensors = load_file(folder / TENSORS)
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError, RecursionError) as error:
        raise ValueError(f"the probe's state in {folder} is damaged ({error}): use an older checkpoint") from error
    if not isinstance(manifest, dict):
        raise ValueError(f"the probe's state in {folder} is damaged (no manifest): use an older checkpoint")
    identity = _identity(bank)
    differences = _differences(identity, {key: manifest.get(key, "absent") for key in identity})
    if differences:
        raise ValueError(
            f"the probe's state in {folder} was written under other settings:\n  " + "\n  ".join(differences) + "\n"
            "Give the run the checkpoint's settings, or start with trainer.resume_mode=disable."
        )
    if manifest.get("digest") != _digest(folder / TENSORS):
        raise ValueError(f"the probe's state in {folder} is damaged (its digest is another): use an older checkpoint")
    return {key: tensor.to(bank.device) for key, tensor in tensors.items()}, manifest


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(f"{prefix}."): t for key, t in tensors.items() if key.startswith(f"{prefix}.")}


def _numbers(entry: dict) -> dict[str, float | int | None]:
    return {key: float(value) if isinstance(value, str) else value for key, value in entry.items()}


def load(bank: "ProbeBank", folder: Path) -> None:
    """Fill `bank` from `folder`; a bank that could not be filled is of no use afterwards.

    Raises:
        FileNotFoundError: no state there. ValueError: damaged, or written under other settings; says which.
    """
    tensors, manifest = _read(bank, folder)
    try:
        for name, probe in zip(bank.settings.domain_names, bank.probes, strict=True):
            entry = manifest["domains"][name]
            probe.window.load_state(_part(tensors, f"{name}.window"), entry["window"])
            learned = _part(tensors, f"{name}.estimator")
            probe.estimator.load_state(learned, _numbers(entry["estimator"]), probe.window.rows)
            probe.estimator.left_out_ = tensors.get(f"{name}.left_out")
            weights, errors = (tuple(map(float, entry[key])) for key in ("weights", "errors"))
            probe.verdict = Verdict(weights, errors)  # type: ignore[arg-type]
        bank.shared.load_state(_part(tensors, "shared"), _numbers(manifest["shared"]), 0)
        bank.updates = int(manifest["updates"])
        # tensors that do not fit each other are found here rather than in the first step
        bank.predict(torch.zeros(1, bank.layout.num_features))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the probe's state in {folder} lacks {error}: use an older checkpoint") from error
    except (ValueError, RuntimeError, IndexError) as error:
        raise ValueError(f"the probe's state in {folder} is damaged ({error}): use an older checkpoint") from error
