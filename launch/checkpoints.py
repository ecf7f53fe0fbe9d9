"""Which checkpoint a run may go on from: the newest complete one.

verl writes ``global_step_N/{actor,critic,data.pt[,transfer_queue]}`` piece by piece and then, not atomically,
``latest_checkpointed_iteration.txt``; a process that dies in between leaves a torn folder. Its shards carry the world
size, and it forgets about older folders when it restarts. So before each attempt `prepare` looks at what is on disk.
"""

import json
import logging
import os
import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig
from safetensors import SafetensorError, safe_open

TRACKER = "latest_checkpointed_iteration.txt"
STOP_FILE = "stop_requested"  # the trainer looks for it after each step
logger = logging.getLogger(__name__)


class WorldSizeError(ValueError):
    """The checkpoint was written by another number of devices."""


@dataclass(frozen=True)
class Contents:
    """What a complete checkpoint of a run holds."""

    shards: tuple[str, ...] = ("model", "optim", "extra_state")
    critic: bool = True
    queue: bool = False  # TransferQueue's state, in asynchronous modes

    @classmethod
    def of(cls, config: DictConfig) -> "Contents":
        names = {"model": "model", "optimizer": "optim", "extra": "extra_state"}
        saved = config.actor_rollout_ref.actor.checkpoint.save_contents
        return cls(
            shards=tuple(names[item] for item in saved if item in names),
            critic=bool(config.critic.enable),
            queue=config.trainer.v1.trainer_mode != "sync",
        )


def steps(folder: Path) -> dict[int, Path]:
    """Checkpoint folders by step, newest first, complete or not."""
    found = {}
    for path in folder.glob("global_step_*"):
        match = re.fullmatch(r"global_step_(\d+)", path.name)
        if match and path.is_dir():
            found[int(match[1])] = path
    return dict(sorted(found.items(), reverse=True))


def _torch_file(path: Path) -> str | None:
    """torch.save writes a zip archive whose directory comes last: a file that was cut short has none."""
    if not path.is_file():
        return f"{path.parent.name}/{path.name} is missing"
    return None if zipfile.is_zipfile(path) else f"{path.parent.name}/{path.name} is cut short"


def world_size(path: Path) -> int | None:
    """World size that wrote the FSDP shards in a folder; None where it does not say."""
    try:
        return int(json.loads((path / "fsdp_config.json").read_text())["world_size"])
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _fsdp_fault(path: Path, contents: Contents) -> str | None:
    size = world_size(path)
    if size is None:
        return f"{path.name}/fsdp_config.json is missing or cut short"
    if not (path / "huggingface/config.json").is_file():
        return f"{path.name}/huggingface/config.json is missing"
    shards = (path / f"{shard}_world_size_{size}_rank_{rank}.pt" for shard in contents.shards for rank in range(size))
    return next((fault for shard in shards if (fault := _torch_file(shard))), None)


def _probe_fault(path: Path) -> str | None:
    try:
        json.loads((path / "probe.json").read_text())
        with safe_open(path / "probe.safetensors", framework="numpy"):  # compares the header with the file's length
            return None
    except (OSError, ValueError, SafetensorError) as error:
        return f"the probe cannot be read ({error})"


def fault(path: Path, contents: Contents) -> str | None:
    """What is missing or broken in a checkpoint; None where it is complete."""
    found = _fsdp_fault(path / "actor", contents)
    if not found and contents.critic:
        critic = path / "critic"
        if (critic / "fsdp_config.json").exists():
            found = _fsdp_fault(critic, contents)
        elif not critic.is_dir():
            found = "critic/ is missing"
        else:
            found = _probe_fault(critic)
    if not found:
        found = _torch_file(path / "data.pt")
    if not found and contents.queue and not any((path / "transfer_queue").glob("*")):
        found = "transfer_queue/ is missing"
    return found


def newest_complete(folder: Path, contents: Contents) -> tuple[int, dict[int, str]]:
    """The newest complete step (0: none), and the faults of the newer ones."""
    faults: dict[int, str] = {}
    for step, path in steps(folder).items():
        found = fault(path, contents)
        if found is None:
            return step, faults
        faults[step] = found
    return 0, faults


def write_tracker(folder: Path, step: int) -> None:
    """Say atomically where verl is to go on; step 0: from the start."""
    tracker = folder / TRACKER
    if step == 0:
        tracker.unlink(missing_ok=True)
        return
    partial = folder / f".{TRACKER}.{os.getpid()}"
    with open(partial, "w") as file:
        file.write(str(step))
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, tracker)


def check_world_size(path: Path, devices: int) -> None:
    """Raises WorldSizeError where the shards are not for so many devices."""
    written = world_size(path / "actor")
    if written == devices:
        return
    raise WorldSizeError(
        f"{path} was written on {written} devices, this run has {devices}: FSDP's shards and the optimizer's state "
        f"cannot be spread anew. Either go on with nodes x gpus_per_node = {written}, or merge the weights\n"
        f"  python -m verl.model_merger merge --backend fsdp --local_dir {path}/actor --target_dir MODEL\n"
        "and start a new run (another name or folder) with the override actor_rollout_ref.model.path=MODEL; the "
        "optimizer and the probe then start anew."
    )


def rotate(folder: Path, keep: int | None, contents: Contents) -> list[int]:
    """Remove all but the newest `keep` complete checkpoints (verl forgets the earlier attempts'); what was removed."""
    if not keep:
        return []
    complete = [step for step, path in steps(folder).items() if fault(path, contents) is None]
    removed = [step for step in steps(folder) if len(complete) >= keep and step < complete[keep - 1]]
    for step in removed:
        doomed = folder / f".removing_global_step_{step}"  # never a torn folder under a checkpoint's name
        os.replace(folder / f"global_step_{step}", doomed)
        shutil.rmtree(doomed)
    return removed


def prepare(folder: Path, config: DictConfig, devices: int) -> int:
    """Make a folder ready for an attempt: torn checkpoints set aside, tracker right, old ones rotated out.

    Returns:
        The step to go on from; 0: from the start.

    Raises:
        WorldSizeError: the checkpoint is of another number of devices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STOP_FILE).unlink(missing_ok=True)  # of an earlier attempt
    for left in folder.glob(".removing_global_step_*"):
        shutil.rmtree(left)
    contents = Contents.of(config)
    step, faults = newest_complete(folder, contents)
    if step:
        check_world_size(folder / f"global_step_{step}", devices)
    for torn, found in faults.items():
        # Under its own name, shards of two attempts could later mix in it and look complete.
        aside = folder / f"torn_global_step_{torn}"
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder / f"global_step_{torn}", aside)
        logger.warning(
            "global_step_%d is torn (%s): set aside as %s, the run goes on from %s",
            torn, found, aside.name, f"global_step_{step}" if step else "the start",
        )  # fmt: skip
    write_tracker(folder, step)
    limits = [config.trainer[f"max_{kind}_ckpt_to_keep"] for kind in ("actor", "critic")]
    kept = [limit for limit in limits if limit]
    rotate(folder, max(kept) if len(kept) == len(limits) else None, contents)
    return step
