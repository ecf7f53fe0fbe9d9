"""What `--model` names, as a folder that vLLM can load; verl's checkpoints are merged on the way."""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from recipe.poise.evaluate.settings import EvaluationError

STAMP = "merged_from.json"
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
    path = Path(name).expanduser()
    if path.is_dir():
        actor = actor_of(path)
        folder = path if actor is None else merged(actor)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        try:
            folder = Path(snapshot_download(name, ignore_patterns=["*.gguf", "*.pth", "original/*"]))
        except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
            raise EvaluationError(
                f"{name} is no folder here, and not to be had from the hub ({str(error).splitlines()[0]})"
            ) from error
    else:
        raise EvaluationError(f"{name}: no such folder, and no hub id (owner/name) either")
    if not (folder / "config.json").is_file() or not weight_files(folder):
        raise EvaluationError(
            f"{folder} is neither a model folder (config.json and weights) nor a checkpoint of verl "
            "(global_step_N with actor/fsdp_config.json)"
        )
    return Model(name, folder, fingerprint(folder))


def actor_of(path: Path) -> Path | None:
    """The actor's folder where `path` is in a checkpoint of verl, else None."""
    latest = path / "latest_checkpointed_iteration.txt"
    if latest.is_file():
        path = path / f"global_step_{latest.read_text().strip()}"
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
    stamp = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in shards}
    target = actor.parent / f"{actor.name}_merged"
    if (target / STAMP).is_file() and json.loads((target / STAMP).read_text()) == stamp:
        return target
    with tempfile.TemporaryDirectory(dir=actor.parent, prefix=f".{target.name}.") as scratch:
        fresh, old = Path(scratch, "fresh"), Path(scratch, "old")
        # Its own process: the merge holds all weights, and imports what vLLM's processes should not inherit.
        command = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp"]
        command += ["--local_dir", str(actor), "--target_dir", str(fresh)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise EvaluationError(f"merging {actor} failed:\n{done.stderr[-3000:]}")
        if (fresh / "lora_adapter").exists():
            raise EvaluationError(
                f"{actor} is a LoRA checkpoint: verl's merger leaves the adapter apart. Merge it into the base model "
                "(peft: merge_and_unload) and evaluate that folder"
            )
        (fresh / STAMP).write_text(json.dumps(stamp))
        if target.exists():
            target.rename(old)
        fresh.rename(target)
    return target


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
