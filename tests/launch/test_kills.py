"""kill -9 of the trainer, a worker or the vLLM engine at random moments of real training, ten times."""

import json
import os
import random
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest
import yaml
from safetensors import safe_open

from launch.attempts import Attempts
from launch.checkpoints import Contents, newest_complete
from launch.compose import resolved
from launch.runfile import ROOT, load

pytestmark = [pytest.mark.long, pytest.mark.timeout(7200)]
KILLS, STEPS, SEED = 10, 24, 0
# how the processes of a run call themselves
VICTIMS = {
    "trainer": ("recipe.poise.main_poise", "ray::PoiseTaskRunner"),
    "worker": ("ray::WorkerDict",),
    "vLLM engine": ("VLLM::EngineCor", "VLLM::Worker"),
}
MARK = "POISE_TEST_RUN"


@pytest.fixture
def path(tmp_path):
    settings = {
        "base": str(ROOT / "launch/runs/cpu_poise.yaml"),
        "name": "kills",
        "folder": str(tmp_path / "run"),
        "prepare": ["python -m recipe.poise.quickstart.prepare --out ${folder}/assets --fast"],
        "preflight": {"at_start": False},
        # verl hangs where the engine dies while it takes the weights; a start on one core is silent for a minute
        "waits": {"silence_s": 120},
        # the same step may be hit twice by chance here
        "resume": {"max_crashes": 0},
        "overrides": {
            "data.train_batch_size": 16,
            "actor_rollout_ref.actor.ppo_mini_batch_size": 16,
            "trainer.val_before_train": False,
            "trainer.test_freq": -1,
            "trainer.save_freq": 1,
            "trainer.total_training_steps": STEPS,
            "poise.probe.min_rows": 16,
        },
    }
    (tmp_path / "kills.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "kills.yaml"


def marked(mark: str) -> list[psutil.Process]:
    """Every process of the run, by a variable in its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            pass
    return found


def of_kind(kind: str, mark: str) -> list[psutil.Process]:
    found = []
    for process in marked(mark):
        try:
            line = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        if any(name in line for name in VICTIMS[kind]) and "-m launch" not in line:
            found.append(process)
    return found


def newest_step(root: Path) -> int:
    tracker = root / "checkpoints/latest_checkpointed_iteration.txt"
    return int(tracker.read_text()) if tracker.exists() else 0


def test_ten_kills_lose_nothing(path, tmp_path):
    root, rng = tmp_path / "run", random.Random(SEED)
    kinds = [*VICTIMS] * (KILLS // len(VICTIMS) + 1)
    rng.shuffle(kinds)
    saved, mark = 0, uuid.uuid4().hex
    command = [sys.executable, "-m", "launch", "local", str(path), "--retry"]
    environment = os.environ | {MARK: mark}
    for number, kind in enumerate([*kinds[:KILLS], None], 1):
        with open(tmp_path / f"launch_{number}.txt", "w") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
            if kind:
                deadline = time.monotonic() + 900
                while not (victims := of_kind(kind, mark)):
                    assert process.poll() is None and time.monotonic() < deadline, Path(log.name).read_text()[-4000:]
                    time.sleep(0.5)
                # half of the kills hit the start of Ray and vLLM, half the steps, which save each time
                if number % 2:
                    while newest_step(root) <= saved:
                        assert process.poll() is None and time.monotonic() < deadline, Path(log.name).read_text()[
                            -4000:
                        ]
                        time.sleep(0.2)
                time.sleep(rng.uniform(0, 8))
                victims = of_kind(kind, mark)
                if victims:
                    rng.choice(victims).kill()
            code = process.wait(timeout=1800)
        time.sleep(1)
        assert not (left := marked(mark)), [" ".join(item.cmdline())[:100] for item in left]
        now, warnings = newest_complete(root / "checkpoints", Contents.of(resolved(load(path), cluster=False)))
        print(f"{number}: {kind}, step {now}, status {code}", *warnings, flush=True)
        assert now >= saved
        saved = now
        for file in (root / f"checkpoints/global_step_{now}/critic").glob("*.safetensors"):
            with safe_open(file, "pt") as tensors:
                assert all(tensors.get_tensor(name) is not None for name in tensors.keys())
    assert code == 0
    attempts = Attempts.read(root).items
    assert attempts[-1].outcome == "done" and len(attempts) == KILLS + 1
    steps = [json.loads(line)["step"] for line in (root / "metrics.jsonl").read_text().splitlines()]
    # verl saves a step before it logs it: a kill between the two leaves a step without metrics, which was gone on from
    silent = set(range(1, STEPS + 1)) - set(steps)
    assert steps == sorted(set(steps)) and silent <= {item.resumed_from for item in attempts}
