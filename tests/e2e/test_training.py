"""POISE trains through verl for real: Ray, FSDP2 over gloo, vLLM with weight sync, the probe in the critic's seat."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from probe.study.dump import read_dumps

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]
ROOT = Path(__file__).parents[2]


def test_rollout_and_actor_agree_while_the_weights_move(unbroken):
    assert sorted(unbroken.metrics) == [1, 2, 3, 4]
    for step in unbroken.metrics.values():
        assert step["training/rollout_actor_probs_pearson_corr"] > 0.999
        assert step["actor/grad_norm"] > 0
    shards = [
        (unbroken.checkpoints / f"global_step_{n}/actor/model_world_size_2_rank_0.pt").read_bytes() for n in (2, 4)
    ]
    assert shards[0] != shards[1]


def test_the_probe_is_there_from_the_first_step_and_reports(unbroken):
    first, last = unbroken.metrics[1], unbroken.metrics[4]
    assert first["poise/share_probe"] == 1.0  # cross-fitted on the step's other prompts: nothing is earlier
    for step in unbroken.metrics.values():
        assert step["poise/rows"] == 32
        assert {"poise/time_capture_s", "poise/time_predict_s", "poise/time_fit_s"} <= set(step)
        assert {"poise/advantage_variance", "poise/advantage_variance_rloo"} <= set(step)
    assert last["poise/window_rows"] == 4 * 32
    assert {"poise/correlation", "poise/mae", "poise/brier_skill", "poise/penalty"} <= set(last)


@pytest.fixture
def launched(unbroken, assets, kill_marked, tmp_path):
    """A function that starts the same run by `python -m launch local`: the process. The run's folder. Its output."""
    settings = {
        "base": str(ROOT / "launch/runs/cpu_poise.yaml"),
        "name": "small",
        "folder": str(tmp_path / "run"),
        "gpus_per_node": 2,
        "prepare": [],
        "preflight": {"at_start": False},
        "overrides": {
            "data.train_files": str(assets / "train.parquet"),
            "data.val_files": str(assets / "val.parquet"),
            "actor_rollout_ref.model.path": str(assets / "model"),
        },
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(settings))
    own = ("trainer.n_gpus_per_node", "trainer.save_freq")
    overrides = [item for item in unbroken.overrides if not item.startswith(own)]
    command = [sys.executable, "-m", "launch", "local", str(tmp_path / "small.yaml")]
    mark = uuid.uuid4().hex

    def start():
        with open(tmp_path / "log.txt", "a") as log:
            return subprocess.Popen(
                [*command, *overrides, "trainer.save_freq=100"],
                cwd=ROOT,
                env=os.environ | {"POISE_TEST_RUN": mark},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    yield start, tmp_path / "run", lambda: (tmp_path / "log.txt").read_text()[-6000:]
    assert kill_marked(mark) == 0, "processes were left behind"


def test_a_run_that_is_stopped_at_request_goes_on_as_if_never_stopped(unbroken, launched):
    """USR1 to the launcher: the trainer saves at the step's end; the same command goes on from there."""
    start, root, output = launched
    process = start()
    logged = root / "logs/attempt_1/metrics.jsonl"
    deadline = time.monotonic() + 600
    while not logged.exists() or not logged.read_text().strip():
        assert process.poll() is None and time.monotonic() < deadline, output()
        time.sleep(0.2)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=300) == 75, output()
    first = json.loads((root / "attempts.json").read_text())["attempts"][0]
    assert 1 <= first["last_step"] < 4
    assert [path.name for path in (root / "checkpoints").glob("global_step_*")] == [f"global_step_{first['last_step']}"]

    assert start().wait(timeout=600) == 0, output()
    attempts = json.loads((root / "attempts.json").read_text())["attempts"]
    assert [item["outcome"] for item in attempts] == ["stopped", "done"]
    assert attempts[1]["resumed_from"] == first["last_step"]
    lines = map(json.loads, (root / "metrics.jsonl").read_text().splitlines())
    metrics = {line["step"]: line["data"] for line in lines}
    assert sorted(metrics) == [1, 2, 3, 4]
    compared = ("critic/score/mean", "response_length/mean", "actor/entropy", "actor/grad_norm")
    # seconds differ, and a bin of the calibration jumps where rounding moves one of its few rows over an edge
    left_out = ("poise/time_", "poise/calibration_")
    for step in metrics:
        expected, found = unbroken.metrics[step], metrics[step]
        names = [*compared, *(name for name in expected if name.startswith("poise/") and not name.startswith(left_out))]
        assert {name: found[name] for name in names} == pytest.approx(
            {name: expected[name] for name in names}, rel=2e-3, abs=2e-4
        )
    for path in (unbroken.checkpoints / "global_step_4/critic").glob("*.safetensors"):
        expected, found = load_file(path), load_file(root / "checkpoints/global_step_4/critic" / path.name)
        assert expected.keys() == found.keys()
        for name in expected:
            first, second = (tensors[name].double() for tensors in (expected, found))
            if len(first) == 4 * 32:  # rows stand in the order in which their generation happened to finish
                first, second = (tensor.sort(dim=0).values for tensor in (first, second))
            assert second.numpy() == pytest.approx(first.numpy(), rel=2e-3, abs=2e-3, nan_ok=True), name


@pytest.mark.extended
def test_colocate_async_with_choosing_padding_lora_and_a_feature_dump(run_poise, small, assets, tmp_path):
    """On two ranks, with gradient checkpointing and a reference policy, whose passes must not be captured. Prompts are
    cut to 26 tokens, as the rollout cuts them (most have more); micro-batches have a fixed size."""
    run = run_poise(
        tmp_path, assets, *small, "trainer.v1.trainer_mode=colocate_async", "trainer.total_training_steps=3",
        "trainer.n_gpus_per_node=2", "trainer.save_freq=2", "actor_rollout_ref.model.use_remove_padding=False",
        "actor_rollout_ref.model.lora_rank=4", "actor_rollout_ref.model.lora.merge=True",
        "actor_rollout_ref.model.enable_gradient_checkpointing=True", "actor_rollout_ref.actor.use_kl_loss=True",
        "poise.select.candidates=4", "poise.select.rule=energy", "poise.select.max_age=3", "data.max_prompt_length=26",
        "actor_rollout_ref.actor.use_dynamic_bsz=False", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=False",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.ref.log_prob_use_dynamic_bsz=False",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=8", "critic.ppo_micro_batch_size_per_gpu=8",
        f"poise.dump_features.folder={tmp_path}/dump", "poise.dump_features.blocks=[0,1]",
        "poise.dump_features.num_tokens=[1,10]",
    )  # fmt: skip
    assert sorted(run.metrics) == [1, 2, 3]
    # from step 2 on some rollouts are of the weights before the update: that is this mode's bargain
    assert run.metrics[1]["training/rollout_actor_probs_pearson_corr"] > 0.999
    assert run.metrics[1]["actor/kl_loss"] == 0.0 and run.metrics[2]["actor/kl_loss"] > 0  # the adapters start at zero
    for number, step in run.metrics.items():
        assert step["actor/grad_norm"] > 0 and step["prompt_length/max"] <= 26
        assert step["poise/rows"] == 32 and step["poise/window_rows"] == 32 * number
        assert sum(step[f"poise/share_{name}"] for name in ("probe", "rloo", "constant")) == pytest.approx(1.0)
    assert run.metrics[3]["poise/prompt_pass_tokens"] <= 64 * 26
    assert (run.checkpoints / "global_step_2/select/probe.json").exists()
    assert {"rate", "value", "energy"} == {
        path.name for path in (run.checkpoints / "global_step_2/critic/prompts").iterdir()
    }

    dump = read_dumps([tmp_path / "dump"])
    assert dump.files == 3 * 2 and len(dump.reward_N) == 96 and len(dump.group_N.unique()) == 48
    rewards = [step["critic/score/mean"] for step in run.metrics.values()]
    assert float(dump.reward_N.mean()) == pytest.approx(sum(rewards) / 3, abs=1e-6)
    assert torch.equal(dump.columns(("reward",))[0][:, 0], dump.reward_N)
    for place in ("0/1", "0/10", "1/1", "1/10"):
        prompt_ND, _ = dump.columns((f"prompt@{place}",))
        response_ND, _ = dump.columns((f"response@{place}",))
        # rollouts of a prompt share its state, not their own
        first, second = (prompt_ND[dump.group_N.argsort()][side::2] for side in (0, 1))
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)
        assert len(response_ND.unique(dim=0)) > 32
    command = [sys.executable, "-m", "probe.study", str(tmp_path / "dump"), "--out", str(tmp_path / "study")]
    command += ["--estimators", "subspace_ridge"]
    subprocess.run(command, check=True, timeout=120)
    assert (tmp_path / "study/poise.yaml").exists()
