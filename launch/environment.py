"""Environment variables of a run: the public ones, which are written down, and the secrets, which never are."""

import fnmatch
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from launch.runfile import ROOT, RunFile, RunFileError

# The same as launch/env.sh exports (a test compares): what is set already stays.
COMMON = {
    "TOKENIZERS_PARALLELISM": "false",
    "HYDRA_FULL_ERROR": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "DO_NOT_TRACK": "1",
}
CPU = {
    "VERL_PLATFORM": "cpu",
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TORCHDYNAMO_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
    "RAY_memory_monitor_refresh_ms": "0",
}
# By these the trackers go on with a run's curve; what the shell has set gives way to the ids.
TRACKING_IDS = ("WANDB_RUN_ID", "SWANLAB_RUN_ID", "POISE_TRACKING_ID")
TRACKING = (*TRACKING_IDS, "WANDB_RESUME", "SWANLAB_RESUME", "TENSORBOARD_DIR")
# Names that match a secret's pattern and are none.
PUBLIC = ("TOKENIZERS_PARALLELISM",)
MASK = "***"
SHORTEST_SECRET = 8  # shorter values would mask ordinary words


def public_environment(run: RunFile, tracking_id: str | None = None) -> dict[str, str]:
    """Variables of the run that may be written to files.

    Raises:
        RunFileError: `env` names a secret.
    """
    secret = [name for name in run.env if is_secret(name, run)]
    if secret:
        raise RunFileError(
            f"env.{secret[0]} looks like a secret, and run files are kept and shared: remove it there and set it in "
            "your shell instead; it is forwarded from there"
        )
    values = COMMON | (CPU if run.accelerator == "cpu" else {})
    if run.interface:
        values |= {"NCCL_SOCKET_IFNAME": run.interface, "GLOO_SOCKET_IFNAME": run.interface}
    if tracking_id:
        values |= dict.fromkeys(TRACKING_IDS, tracking_id)
        values |= {"WANDB_RESUME": "allow", "SWANLAB_RESUME": "allow", "TENSORBOARD_DIR": str(run.root / "tensorboard")}
    return values | run.env


def with_project(env: dict[str, str]) -> dict[str, str]:
    """The project can be imported, and `python` is the interpreter that runs this, by whatever path it was started."""
    paths = {"PYTHONPATH": str(ROOT), "PATH": str(Path(sys.executable).parent)}
    return env | {name: os.pathsep.join([first, *filter(None, [env.get(name)])]) for name, first in paths.items()}


def is_secret(name: str, run: RunFile) -> bool:
    return name not in PUBLIC and any(fnmatch.fnmatchcase(name.upper(), pattern) for pattern in run.secrets)


def secrets(run: RunFile, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The secrets in this process's environment."""
    environ = os.environ if environ is None else environ
    return {name: value for name, value in environ.items() if value and is_secret(name, run)}


class Redactor:
    """Masks the values of secrets in bytes that go to a file or a terminal."""

    def __init__(self, run: RunFile):
        values = {value.encode() for value in secrets(run).values() if len(value) >= SHORTEST_SECRET}
        self.values = sorted(values, key=len, reverse=True)

    def __call__(self, line: bytes) -> bytes:
        for value in self.values:
            line = line.replace(value, MASK.encode())
        return line

    def copy(self, source: Path, target: Path) -> None:
        """Copy a log, line by line."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(source, "rb") as reader, open(target, "wb") as writer:
            for line in reader:
                writer.write(self(line))


def check_public(what: str, text: str, run: RunFile) -> None:
    """Raises RunFileError where the text holds the value of a secret of this process's environment."""
    for name, value in secrets(run).items():
        if len(value) >= SHORTEST_SECRET and value in text:
            raise RunFileError(
                f"{what} would hold the value of ${name}. Take it out of the run file and the overrides: it is "
                "forwarded through the environment"
            )


def write_public(path: Path, text: str, run: RunFile, mode: int = 0o644) -> None:
    """Write a file of the run whole or not at all; RunFileError where it would hold a secret."""
    check_public(path.name, text, run)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with open(partial, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.chmod(mode)
    os.replace(partial, path)
