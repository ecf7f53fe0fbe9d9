"""Evaluation with the real vLLM: killed and resumed, no sample is drawn twice; figures are those of the samples."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.extended, pytest.mark.timeout(1500)]
ROOT = Path(__file__).parents[2]
PROBLEMS, K = 16, 16  # all that the small default has


@pytest.fixture
def evaluation(assets, kill_marked, tmp_path):
    """A function that starts an evaluation of the embedded default; the process, and the results' folder."""
    pd.read_parquet(assets / "val.parquet").head(PROBLEMS).to_parquet(tmp_path / "small.parquet")
    mark = uuid.uuid4().hex

    def start(*options, model=assets / "model"):
        return subprocess.Popen(
            [sys.executable, "-m", "recipe.poise.evaluate", "--model", str(model), "--out", str(tmp_path / "out"),
             "--suites", str(tmp_path / "small.parquet"), "-k", str(K), "--max-tokens", "48", *options],
            cwd=ROOT, env=os.environ | {"POISE_TEST_RUN": mark, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1",
                                        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    yield start, tmp_path / "out"
    assert kill_marked(mark) == 0, "processes were left behind"


def samples(out):
    path = out / "samples/small.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()[1:]] if path.exists() else []


def test_killed_and_resumed(evaluation):
    start, out = evaluation
    # one at a time: the verifier starts its process at the first answer, and the others wait for it meanwhile
    process = start("--max-num-seqs", "1")
    deadline = time.monotonic() + 400
    while len(samples(out)) < 5:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0][-4000:]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    time.sleep(3)  # its engine notices and ends
    before = samples(out)
    assert 5 <= len(before) < PROBLEMS * K

    process = start("--data-parallel", "2")
    text, _ = process.communicate(timeout=500)
    assert process.returncode == 0, text[-4000:]
    assert sorted(file.name for file in (out / "logs").iterdir()) == ["worker_0.log", "worker_1.log"]
    assert f"{len(before)} of {PROBLEMS * K} samples are there already" in text
    after = samples(out)
    assert after[: len(before)] == before
    drawn = [(s["problem"], s["sample"]) for s in after]
    assert len(drawn) == len(set(drawn)) == PROBLEMS * K

    results = json.loads((out / "results.json").read_text())
    suite = results["suites"]["small"]
    table = np.zeros((PROBLEMS, K))
    for s in after:
        table[s["problem"], s["sample"]] = s["acc"]
    assert suite["avg"]["value"] == pytest.approx(table.mean())
    assert suite["pass_at"][str(K)]["value"] == pytest.approx(table.any(axis=1).mean())
    assert suite["mean_tokens"] == pytest.approx(np.mean([s["tokens"] for s in after]))
    assert suite["truncated"] == pytest.approx(np.mean([s["truncated"] for s in after]))
    assert suite["avg"]["low"] <= suite["avg"]["value"] <= suite["avg"]["high"]
    assert 0 < table.mean() < 1 and len({s["response"] for s in after if s["problem"] == 0}) > 1
    assert results["protocol"]["temperature"] == 0.6 and results["protocol"]["top_p"] == 0.95
    assert "| small | 16 |" in (out / "results.md").read_text() and f"avg@{K}" in text

    done = start()  # nothing is left to do: no engine starts
    begun = time.monotonic()
    assert done.communicate(timeout=200)[0].count("small") and done.returncode == 0
    assert time.monotonic() - begun < 60 and samples(out) == after
    other = start("--temperature", "1.0")
    text, _ = other.communicate(timeout=200)
    assert other.returncode == 1 and "temperature: 0.6 -> 1.0" in text


def test_a_checkpoint_of_training_is_merged(unbroken, evaluation):
    """Named as the folder of all steps: the newest one counts, and its two shards become one model."""
    start, out = evaluation
    process = start("-k", "1", model=unbroken.checkpoints)
    text, _ = process.communicate(timeout=500)
    assert process.returncode == 0, text[-4000:]
    merged = unbroken.checkpoints / "global_step_4/actor_merged"
    assert (merged / "config.json").exists() and len(samples(out)) == PROBLEMS
