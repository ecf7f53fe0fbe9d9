"""Real runs, small: one helper that starts the entry with a time limit and leaves no process behind."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
MARK = "POISE_TEST_RUN"


def processes_of(mark: str) -> list[psutil.Process]:
    """Every process that inherited the run's mark, Ray's daemons and workers among them."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def kill_all(mark: str) -> int:
    """Kill what a run left; the number of processes that were still there after it had half a minute to end."""
    deadline = time.monotonic() + 30
    while processes_of(mark) and time.monotonic() < deadline:
        time.sleep(0.5)
    left = processes_of(mark)
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=10)
    return len(left)


SMALL = (
    "data.train_batch_size=16",
    "actor_rollout_ref.actor.ppo_mini_batch_size=16",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=512",
    "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=512",
    "actor_rollout_ref.actor.optim.lr=5e-4",
    "trainer.val_before_train=False",
    "trainer.test_freq=-1",
    "poise.probe.min_rows=16",
)
TWO_RANKS = (
    *SMALL,
    "trainer.n_gpus_per_node=2",
    "trainer.total_training_steps=4",
    "trainer.save_freq=2",
    "trainer.max_actor_ckpt_to_keep=null",
    "trainer.max_critic_ckpt_to_keep=null",
)


@dataclass
class Run:
    """A finished run: exit code, log, metrics by step, folder of checkpoints, overrides."""

    code: int
    log: str
    metrics: dict[int, dict[str, float]]
    checkpoints: Path
    overrides: tuple[str, ...] = ()


def cpu_environment(mark: str, metrics: Path) -> dict[str, str]:
    return os.environ | {
        MARK: mark,
        "VERL_PLATFORM": "cpu",
        "VERL_FILE_LOGGER_PATH": str(metrics),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "TORCHDYNAMO_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_worker_niceness": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }


@contextmanager
def started(folder: Path, assets: Path, *overrides: str) -> Iterator[subprocess.Popen]:
    """`python -m recipe.poise.main_poise` on the embedded default; nothing of it is left afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex
    command = [
        sys.executable, "-m", "recipe.poise.main_poise", "--config-name", "poise_quickstart",
        f"hydra.run.dir={folder}/hydra",
        f"data.train_files={assets}/train.parquet",
        f"data.val_files={assets}/val.parquet",
        f"actor_rollout_ref.model.path={assets}/model",
        f"reward.custom_reward_function.path={ROOT}/reward/reasoning_gym_verifier.py",
        "reward.custom_reward_function.name=compute_score",
        f"trainer.default_local_dir={folder}/checkpoints",
        *overrides,
    ]  # fmt: skip
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=cpu_environment(mark, folder / "metrics.jsonl"),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        process.mark = mark  # type: ignore[attr-defined]  # for `processes_of`
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            kill_all(mark)


def result_of(folder: Path, code: int, overrides: tuple[str, ...] = ()) -> Run:
    """What a run in `folder` has written."""
    metrics = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    text = (folder / "log.txt").read_text(errors="replace")
    return Run(code, text, {line["step"]: line["data"] for line in lines}, folder / "checkpoints", overrides)


def start_and_wait(folder: Path, assets: Path, *overrides: str, limit_s: int = 600) -> Run:
    """A run to its end, at most `limit_s` seconds."""
    with started(folder, assets, *overrides) as process:
        try:
            code = process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            code = -1
    run = result_of(folder, code, overrides)
    assert code == 0, f"run ended with {code} (-1: over {limit_s} s):\n" + run.log[-6000:]
    return run


@pytest.fixture(scope="session")
def run_poise():
    """The function that runs the entry: ``run_poise(folder, assets, *overrides, limit_s=600) -> Run``."""
    return start_and_wait


@pytest.fixture(scope="session")
def running_poise():
    """A run under way, its processes, and what it has written: ``started``, ``processes_of(process.mark)``,
    ``result_of(folder, code)``."""
    return started, processes_of, result_of


@pytest.fixture(scope="session")
def kill_marked():
    """The function that ends every process that inherited ``POISE_TEST_RUN=mark``: ``kill_marked(mark) -> int``."""
    return kill_all


@pytest.fixture(scope="session")
def assets(tmp_path_factory) -> Path:
    """The embedded default's model, which is right about four times of ten, and few of its data."""
    folder = tmp_path_factory.mktemp("assets")
    command = [sys.executable, "-m", "recipe.poise.quickstart.prepare", "--out", str(folder)]
    command += ["--train-prompts", "128", "--val-prompts", "16"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=240, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    return folder


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    """Overrides of a run of 16 prompts a step."""
    return SMALL


@pytest.fixture(scope="session")
def unbroken(assets, tmp_path_factory) -> Run:
    """Four such steps on two ranks with two vLLM replicas, checkpoints at steps 2 and 4."""
    return start_and_wait(tmp_path_factory.mktemp("unbroken"), assets, *TWO_RANKS)
