"""Environment variables of a run: the public ones, which are written down, and the secrets, which never are."""

import os
import sys
from pathlib import Path

from launch.redact import SHORTEST, Secrets, is_secret
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
    # at Ray's 15 workers would wait for whatever else the machine does
    "RAY_worker_niceness": "0",
}
# By these the trackers go on with a run's curve; what the shell has set gives way to the ids.
TRACKING_IDS = ("WANDB_RUN_ID", "SWANLAB_RUN_ID", "POISE_TRACKING_ID")
TRACKING = (*TRACKING_IDS, "WANDB_RESUME", "SWANLAB_RESUME", "TENSORBOARD_DIR")


def public_environment(run: RunFile, tracking_id: str | None = None) -> dict[str, str]:
    """Variables of the run that may be written to files.

    Raises:
        RunFileError: `env` names a secret.
    """
    secret = [name for name in run.env if is_secret(name, run.secrets)]
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


def secrets(run: RunFile) -> Secrets:
    """The secrets in this process's environment."""
    return Secrets(run.secrets)


def check_secrets(run: RunFile) -> None:
    """Raises RunFileError where a secret could not be kept out of logs."""
    if short := secrets(run).too_short:
        raise RunFileError(
            f"${short[0]} has fewer than {SHORTEST} characters: in logs it could not be told from ordinary text. Unset "
            f"it, or, if it is no secret, add '!{short[0]}' to `secrets` in the run file"
        )


def check_public(what: str, text: str, run: RunFile) -> None:
    """Raises RunFileError where the text holds the value of a secret of this process's environment, in any form."""
    if name := secrets(run).found_in(text):
        raise RunFileError(
            f"{what} would hold the value of ${name}. Take it out of the run file and the overrides: it is forwarded "
            f"through the environment. If it is no secret, add '!{name}' to `secrets` in the run file"
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
