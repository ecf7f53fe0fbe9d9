"""State of a `ProbeBank` on disk: tensors in safetensors, the rest in a JSON manifest; loading executes nothing.

A folder is written under a temporary name, synced, and renamed, so that a reader finds the old state or the new one.
"""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from probe.bank import ProbeBank

VERSION = 1
MANIFEST, TENSORS = "probe.json", "probe.safetensors"
WINDOW_TENSORS = ("feature_NF", "reward_N", "target_N", "group_N", "step_N")
RIDGE_TENSORS = ("mean_F", "basis_PK", "weight_F")


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


def save(bank: "ProbeBank", folder: Path) -> None:
    """Write `bank` to `folder`, replacing a state that is there."""
    tensors: dict[str, torch.Tensor] = {}
    domains: dict[str, dict] = {}
    for name, probe in zip(bank.settings.domain_names, bank.probes, strict=True):
        tensors |= {f"{name}.window.{key}": getattr(probe.window, key) for key in WINDOW_TENSORS}
        tensors |= {f"{name}.ridge.{k}": v for k in RIDGE_TENSORS if (v := getattr(probe.ridge, k)) is not None}
        domains[name] = {
            "next_group": probe.window.next_group,
            "intercept": probe.ridge.intercept,
            "penalty": probe.ridge.penalty if probe.ridge.fitted else None,
            "low": probe.low,
            "high": probe.high,
            "trusted": probe.trusted,
        }
    manifest = _identity(bank) | {"updates": bank.updates, "domains": domains}

    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, temporary / TENSORS)
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
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


def load(bank: "ProbeBank", folder: Path) -> None:
    """Fill `bank` from `folder`.

    Raises:
        FileNotFoundError: no state there. ValueError: damaged, or written under other settings; says which.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        tensors = load_file(folder / TENSORS)
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
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
    try:
        for name, probe in zip(bank.settings.domain_names, bank.probes, strict=True):
            entry = manifest["domains"][name]
            for key in WINDOW_TENSORS:
                setattr(probe.window, key, tensors[f"{name}.window.{key}"].to(bank.device))
            for key in RIDGE_TENSORS:
                tensor = tensors.get(f"{name}.ridge.{key}")
                setattr(probe.ridge, key, None if tensor is None else tensor.to(bank.device))
            probe.window.next_group = int(entry["next_group"])
            probe.ridge.intercept = float(entry["intercept"])
            probe.ridge.penalty = float("nan") if entry["penalty"] is None else float(entry["penalty"])
            probe.low, probe.high, probe.trusted = float(entry["low"]), float(entry["high"]), bool(entry["trusted"])
        bank.updates = int(manifest["updates"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"the probe's state in {folder} lacks {error}: use an older checkpoint") from error
    if any(probe.window.feature_NF.shape[1:] != (bank.layout.num_features,) for probe in bank.probes):
        raise ValueError(f"the probe's window in {folder} has another width than its manifest says: damaged")
