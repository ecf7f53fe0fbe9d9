"""What `--model` names, as a folder that vLLM can load; verl's checkpoints are merged on the way."""

import json
import pickle
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from recipe.poise.data.errors import DataError, first_line
from recipe.poise.data.sources import NOT_TO_BE_HAD, local
from recipe.poise.evaluate.settings import EvaluationError

STAMP = "merged_from.json"
BY_HAND = "python -m verl.model_merger merge --backend fsdp --local_dir {actor} --target_dir NEW"
WEIGHTS = ("*.safetensors", "*.bin")
EDGE = 1 << 20  # bytes of a file's beginning and end that its fingerprint reads


@dataclass(frozen=True)
class Model:
    """A folder in Hugging Face's format. `fingerprint` changes with the weights, not with the place."""

    name: str
    path: Path
    fingerprint: str


def resolve(name: str) -> Model:
    """Find, merge or download a model.

    Args:
        name: a model folder; a checkpoint of verl (the folder of all steps, ``global_step_N``, or its ``actor``); or a
            hub id.

    Raises:
        EvaluationError: none of these, an incomplete one, or a failed merge.
    """
    try:
        path = local(name)
    except DataError as error:
        raise EvaluationError(f"--model {error}") from error
    if name and path.is_dir():
        actor = actor_of(path)
        folder = path if actor is None else merged(actor)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        try:
            folder = Path(snapshot_download(name, ignore_patterns=["*.gguf", "*.pth", "original/*"]))
        except NOT_TO_BE_HAD as error:
            raise EvaluationError(
                f"--model {name}: no folder here, and not to be had from the hub ({first_line(error)}). "
                "Name a folder, or mend the id or the network"
            ) from error
    else:
        raise EvaluationError(f"--model {name!r}: no such folder, and no hub id (owner/name) either; mend the path")
    if not (folder / "config.json").is_file() or not weight_files(folder):
        raise EvaluationError(
            f"{folder} is neither a model folder (config.json and weights) nor a checkpoint of verl "
            "(global_step_N with actor/fsdp_config.json)"
        )
    check_weights(folder)
    return Model(name, folder, fingerprint(folder))


def actor_of(path: Path) -> Path | None:
    """The actor's folder where `path` is in a checkpoint of verl, else None."""
    latest = path / "latest_checkpointed_iteration.txt"
    if latest.is_file():
        step = latest.read_text(errors="replace").strip()
        if not step.isdecimal():
            raise EvaluationError(f"{latest} holds {step[:40]!r}, no step; name a global_step_N folder")
        path = path / f"global_step_{step}"
        if not path.is_dir():
            raise EvaluationError(f"{latest} names {path.name}, which is not there; name a global_step_N folder")
    for actor in (path / "actor", path):
        if (actor / "fsdp_config.json").is_file():
            return actor
        if (actor / "model" / "huggingface").is_dir():
            raise EvaluationError(
                f"{actor} is a Megatron checkpoint; merge it with `python -m verl.model_merger` first"
            )
    return None


def merged(actor: Path) -> Path:
    """The whole model of an FSDP checkpoint, in ``actor_merged`` beside it. Merged again where the shards changed.

    verl's merger writes bfloat16, whatever the shards hold. A checkpoint that has whole weights is used as it is.
    """
    whole = actor / "huggingface"
    if weight_files(whole):
        return whole
    shards = sorted(actor.glob("model_world_size_*_rank_*.pt"))
    if not shards:
        raise EvaluationError(
            f"{actor} holds no model shards: was it saved without `model` in checkpoint.save_contents?"
        )
    stamp = json.dumps({file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in shards})
    target = actor.parent / f"{actor.name}_merged"
    if (target / STAMP).is_file() and (target / STAMP).read_bytes() == stamp.encode():
        return target
    check_shards(shards)
    with tempfile.TemporaryDirectory(dir=actor.parent, prefix=f".{target.name}.") as scratch:
        fresh, old = Path(scratch, "fresh"), Path(scratch, "old")
        # Its own process: the merge holds all weights, and imports what vLLM's processes should not inherit.
        command = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp"]
        command += ["--local_dir", str(actor), "--target_dir", str(fresh)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
            raise EvaluationError(
                f"merging {actor} failed ({said[-1]}). To see all of it: {BY_HAND.format(actor=actor)}"
            )
        if (fresh / "lora_adapter").exists():
            raise EvaluationError(
                f"{actor} is a LoRA checkpoint: verl's merger leaves the adapter apart. Merge it into the base model "
                "(peft: merge_and_unload) and evaluate that folder"
            )
        (fresh / STAMP).write_text(stamp)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
    return target


def check_weights(folder: Path) -> None:
    """Raise EvaluationError where a file of weights is not whole. Headers are read only."""
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, framework="np"):
                pass
        except SafetensorError as error:
            raise EvaluationError(f"{file} is not whole ({first_line(error)}); copy or fetch it anew") from error


def check_shards(shards: list[Path]) -> None:
    """Refuse shards that would run code: verl's merger unpickles them, and a pickle may call any function.

    Only the names of what a shard would call are read; nothing of it is loaded.

    Raises:
        EvaluationError: a shard calls more than torch's own loader of weights allows, or is none.
    """
    import torch.distributed.tensor  # its classes are among the allowed ones once they are imported

    for shard in shards:
        try:
            called = torch.serialization.get_unsafe_globals_in_checkpoint(shard)
        except (ValueError, RuntimeError, LookupError, pickle.UnpicklingError) as error:
            raise EvaluationError(f"{shard} is no checkpoint that torch can read ({first_line(error)})") from error
        if called:
            raise EvaluationError(
                f"{shard} is not only weights: loading it would call {', '.join(called[:5])}. Do not load it. "
                f"If you know where it comes from: {BY_HAND.format(actor=shard.parent)}, and evaluate NEW"
            )


def weight_files(folder: Path) -> list[Path]:
    return sorted(file for pattern in WEIGHTS for file in folder.glob(pattern))


def fingerprint(folder: Path) -> str:
    """Of names, sizes and both ends of every file that decides what the model says."""
    state = blake2b(digest_size=16)
    small = [*folder.glob("*.json"), *folder.glob("*.jinja"), *folder.glob("*.model")]
    for file in sorted({*weight_files(folder), *small}):
        if file.name == STAMP:
            continue
        size = file.stat().st_size
        state.update(f"{file.name}\0{size}\0".encode())
        with open(file, "rb") as content:
            state.update(content.read(EDGE))
            content.seek(max(0, size - EDGE))
            state.update(content.read(EDGE))
    return state.hexdigest()
