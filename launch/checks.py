"""What preflight looks at on one node. Each check returns what was found and, where it failed, what to do."""

import importlib.util
import json
import os
import platform
import shutil
import socket
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from launch.ports import EPHEMERAL_START, ephemeral_start
from launch.runfile import RunFile

GB = 1e9
PACKAGES = ("verl", "vllm", "torch", "ray", "transformers")
OPTIONAL = ("flash-attn",)  # without it attention is torch's sdpa
PINNED = {"verl": "0.9.1"}


@dataclass(frozen=True)
class Check:
    """One line of the table; `remedy` says what to do where it failed."""

    name: str
    ok: bool
    found: str
    remedy: str = ""
    node: str = ""


def versions() -> dict[str, str]:
    """Versions of the packages that must be the same everywhere; missing where they are, none where they may be."""
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *OPTIONAL):
        found[name] = "none" if name in OPTIONAL else "missing"
        for distribution in (name, f"{name}-cpu"):  # vLLM's build for CPUs has a name of its own
            try:
                found[name] = version(distribution)
                break
            except PackageNotFoundError:
                continue
    return found


def check_versions() -> list[Check]:
    found = versions()
    wrong = [f"{name} {found[name]}" for name in found if found[name] == "missing"]
    wrong += [
        f"{name} {found[name]}, not {want}" for name, want in PINNED.items() if found[name] not in (want, "missing")
    ]
    text = ", ".join(f"{name} {value}" for name, value in found.items())
    return [
        Check(
            "versions", not wrong, text, f"wrong: {'; '.join(wrong)}. Install the project here: pip install -e .[gpu]"
        )
    ]


def check_plugin() -> list[Check]:
    from recipe.poise.plugin import check_registered

    try:
        check_registered()
    except (RuntimeError, ValueError) as error:  # ValueError: verl knows no such platform
        return [Check("plug-in", False, "not registered", str(error))]
    return [Check("plug-in", True, "registered")]


def _looks_local(path: str) -> bool:
    return path.startswith(("/", "~", "."))


def missing_model_file(folder: Path) -> str | None:
    """What a model's folder lacks; None where it is complete."""
    if not (folder / "config.json").is_file():
        return f"{folder}/config.json"
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text())["weight_map"].values())
        return next((f"{folder}/{shard}" for shard in sorted(shards) if not (folder / shard).is_file()), None)
    weights = (*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin"))
    return None if weights else f"{folder}/model.safetensors"


def check_model(path: str) -> list[Check]:
    """A folder must hold a model here; a hub id must be in the cache, or the hub allowed."""
    if "://" in path:  # verl copies it
        return [Check("model", True, f"{path}, not looked at")]
    if _looks_local(path):
        missing = missing_model_file(Path(path).expanduser())
        remedy = f"{missing} is not visible here: put the whole model on a shared filesystem"
        return [Check("model", missing is None, path, remedy)]
    from huggingface_hub import try_to_load_from_cache

    cached = isinstance(try_to_load_from_cache(path, "config.json"), str)
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    where = "in the cache" if cached else "to be downloaded by this node"
    remedy = (
        f"not in this node's cache, and HF_HUB_OFFLINE is set: hf download {path}, with HF_HOME on a shared filesystem"
    )
    return [Check("model", cached or not offline, f"{path}, {where}", remedy)]


def check_files(name: str, files: list[str]) -> list[Check]:
    found = []
    for file in files:
        if file.startswith("pkg://"):
            module = file.removeprefix("pkg://")
            try:
                ok = importlib.util.find_spec(module) is not None
            except ModuleNotFoundError:
                ok = False
            found.append(Check(name, ok, file, f"{module} cannot be imported here: install it, or set PYTHONPATH"))
            continue
        if "://" in file:  # verl copies it
            found.append(Check(name, True, f"{file}, not looked at"))
            continue
        path = Path(file).expanduser()
        if not path.is_file():
            remedy = "not visible here: make it (docs/data.md), or put it on a filesystem that all nodes share"
            found.append(Check(name, False, file, remedy))
            continue
        if path.suffix == ".parquet":
            import pyarrow
            import pyarrow.parquet

            try:
                rows = pyarrow.parquet.ParquetFile(path).metadata.num_rows
            except (pyarrow.ArrowException, OSError) as error:
                found.append(Check(name, False, file, f"not a readable parquet file ({error}): copy or make it again"))
                continue
            found.append(Check(name, rows > 0, f"{path.name}, {rows} rows", f"{file} has no rows"))
        else:
            found.append(Check(name, True, str(path)))
    return found


def _free(path: Path) -> float:
    """GB free where `path` is or will be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free / GB


def check_disk(run: RunFile) -> list[Check]:
    limits = run.preflight
    found = []
    for name, path, least in (
        ("disk of the run", run.root, limits.min_folder_gb),
        ("disk /tmp", Path("/tmp"), limits.min_tmp_gb),
    ):
        free = _free(path)
        remedy = (
            f"{least:.0f} GB wanted at {path}: free some, choose another folder, or lower the threshold in preflight"
        )
        found.append(Check(name, free >= least, f"{free:.0f} GB free", remedy))
    return found


def check_devices(run: RunFile) -> list[Check]:
    """Devices and their free memory; on the CPU platform the machine's memory."""
    least = run.preflight.min_device_gb
    remedy = f"{least:.0f} GB wanted: another job on this node? Or lower preflight.min_device_gb"
    if run.accelerator == "cpu":
        import psutil

        free = psutil.virtual_memory().available / GB
        return [Check("memory", free >= least, f"{free:.1f} GB available", remedy)]
    import torch

    count = torch.cuda.device_count()
    if count < run.gpus_per_node:
        text = f"gpus_per_node={run.gpus_per_node}: see nvidia-smi, CUDA_VISIBLE_DEVICES, and what Slurm was asked for"
        return [Check("devices", False, f"{count} visible", text)]
    free = [torch.cuda.mem_get_info(index)[0] / GB for index in range(count)]
    text = f"{count} x {torch.cuda.get_device_name(0)}, {min(free):.0f} GB free"
    return [Check("devices", min(free) >= least, text, remedy)]


def check_pools(run: RunFile) -> list[Check]:
    """Where some devices only generate: how many do what, and what carries the weights from the ones to the others."""
    if run.generating is None:
        return []
    nodes, devices = run.generating
    text = f"{run.devices} devices train, {nodes * devices} generate"
    found = [Check("pools", True, text)]
    if run.accelerator == "gpu":
        there = importlib.util.find_spec("cupy") is not None
        remedy = "verl's nccl checkpoint engine needs CuPy: poise_env gpu async, or pip install -e .[async]"
        found.append(Check("cupy", there, "installed" if there else "missing", remedy))
    return found


def check_ports(run: RunFile, ray_runs: bool) -> list[Check]:
    start = ephemeral_start()
    if run.ports.last >= start:
        remedy = f"this machine hands out ports from {start} (default {EPHEMERAL_START}): lower ports.base"
        return [Check("ports", False, f"{run.ports.base} to {run.ports.last}", remedy)]
    taken = [] if ray_runs else run.ports.taken()
    remedy = f"{taken} taken: another Ray cluster here? Set ports.base to another value"
    return [Check("ports", not taken, f"{run.ports.base} to {run.ports.last}", remedy)]


def check_shm() -> list[Check]:
    free = _free(Path("/dev/shm"))
    return [
        Check("/dev/shm", free >= 1, f"{free:.1f} GB free", "1 GB wanted: containers need --shm-size or --ipc=host")
    ]


def check_environment(run: RunFile) -> list[Check]:
    """What is known to break training."""
    value = os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS")
    remedy = "CUDA_DEVICE_MAX_CONNECTIONS=1 serialises FSDP2's communication: unset it"
    return (
        [] if run.accelerator == "cpu" else [Check("environment", value != "1", "CUDA_DEVICE_MAX_CONNECTIONS", remedy)]
    )


def node_checks(run: RunFile, inputs: dict[str, list[str]], ray_runs: bool) -> list[Check]:
    """Everything that one node can say by itself.

    Args:
        inputs: from `preflight.inputs`: the model's path under "model", files under their names.
        ray_runs: Ray holds its ports already.
    """
    found = [*check_versions(), *check_plugin(), *check_devices(run), *check_disk(run), *check_shm()]
    found += [*check_pools(run), *check_ports(run, ray_runs), *check_environment(run)]
    for path in inputs["model"]:
        found += check_model(path)
    for name, files in inputs.items():
        if name != "model":
            found += check_files(name, files)
    host = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    return [Check(item.name, item.ok, item.found, "" if item.ok else item.remedy, host) for item in found]
