"""A trainer and a rollout server that stand apart, for real: it trains, the server is killed, it ends, it goes on; the
same without a log-prob pass.

Four starts: each costs a minute or more.
"""

import json
import subprocess
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

pytestmark = [pytest.mark.e2e, pytest.mark.extended, pytest.mark.timeout(1500)]

SEPARATE = (
    "trainer.v1.trainer_mode=separate_async",
    "trainer.v1.separate_async.parameter_sync_step=2",
    "actor_rollout_ref.actor.ppo_mini_batch_size=8",
    "actor_rollout_ref.rollout.nnodes=1",
    "actor_rollout_ref.rollout.n_gpus_per_node=1",
    "actor_rollout_ref.rollout.checkpoint_engine.backend=gloo",
    "ray_kwargs.ray_init.num_gpus=2",
    "actor_rollout_ref.actor.optim.lr=2e-4",
    "algorithm.rollout_correction.rollout_is=token",
    "trainer.n_gpus_per_node=1",
    "trainer.max_actor_ckpt_to_keep=null",
    "trainer.max_critic_ckpt_to_keep=null",
)
END_S = 180  # from the kill to the end of the run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("async")


@pytest.fixture(scope="module")
def killed(running_poise, assets, small, folder):
    """Standalone rollouts only; after the checkpoint of step 2 the server is killed. The run, seconds to its end."""
    started, processes_of, result_of = running_poise
    overrides = (
        *small, *SEPARATE, "actor_rollout_ref.hybrid_engine=False", "trainer.total_training_steps=1000",
        "trainer.save_freq=2",
    )  # fmt: skip
    with started(folder, assets, *overrides) as process:
        deadline = time.monotonic() + 900
        while 2 not in result_of(folder, 0).metrics:
            assert process.poll() is None and time.monotonic() < deadline, result_of(folder, 0).log[-6000:]
            time.sleep(0.2)
        servers = [found for found in processes_of(process.mark) if "vLLMHttpServer" in " ".join(found.cmdline())]
        assert len(servers) == 1
        servers[0].kill()
        start = time.monotonic()
        try:
            code = process.wait(timeout=2 * END_S)
        except subprocess.TimeoutExpired:
            code = -1
        return result_of(folder, code), time.monotonic() - start


@pytest.fixture(scope="module")
def resumed(killed, run_poise, assets, small, folder):
    """The same command, with replicas on the trainer's devices as well; a step more than the newest checkpoint."""
    newest = int((killed[0].checkpoints / "latest_checkpointed_iteration.txt").read_text())
    overrides = (f"trainer.total_training_steps={newest + 1}", "trainer.save_freq=-1")
    return newest, run_poise(folder, assets, *small, *SEPARATE, *overrides, limit_s=900)


def test_rollout_and_actor_agree_as_far_as_rollouts_are_young(killed):
    run, _ = killed
    assert {1, 2} <= set(run.metrics)
    first, second = run.metrics[1], run.metrics[2]
    # step 1 was generated with the weights that it began with, and both of its updates have their log-probs from them
    assert first["training/rollout_actor_probs_pearson_corr"] > 0.999
    assert first["rollout_corr/kl"] == pytest.approx(0.0, abs=1e-4)
    assert first["poise/staleness_max"] == 0.0
    # verl counts over the same rows
    for step in (first, second):
        for name in ("mean", "max"):
            assert step[f"poise/staleness_{name}"] == pytest.approx(
                step[f"training/off_policy/trajectory_staleness/{name}"]
            )
        assert step["actor/grad_norm"] > 0


def test_a_step_is_two_updates_and_two_fits(killed):
    run, _ = killed
    for number in (1, 2):
        step = run.metrics[number]
        assert step["poise/rows"] == step["rollout/rows"] == 32 and step["rollout/prompts"] == 16
        assert step["rollout/generated_tokens"] == pytest.approx(32 * step["response_length/mean"])
        assert step["poise/window_rows"] == 32 * number
        assert sum(
            step[f"poise/share_{name}"] for name in ("probe", "rloo", "constant", "no_baseline")
        ) == pytest.approx(1)
    tensors = load_file(run.checkpoints / "global_step_2/critic/probe.safetensors")
    assert torch.unique(tensors["0.window.step"]).tolist() == [1, 2, 3, 4]
    saved = json.loads((run.checkpoints / "global_step_2/critic/probe.json").read_text())
    assert saved["content"]["updates"] == 4


def test_a_run_whose_rollout_server_is_killed_ends_and_says_so(killed):
    run, seconds = killed
    assert run.code not in (0, -1) and seconds < END_S, run.log[-6000:]
    assert "the rollout server at " in run.log and "goes on from its newest checkpoint" in run.log


def test_it_goes_on_from_its_newest_checkpoint(resumed, killed):
    newest, run = resumed
    assert newest % 2 == 0 and newest >= 2 and newest + 1 in run.metrics
    step = run.metrics[newest + 1]
    assert step["training/global_step"] == newest + 1 and step["poise/window_rows"] == 32 * (newest + 1)
    assert step["rollout/rows"] == 32 and step["actor/grad_norm"] > 0


BYPASS = (
    *(item for item in SEPARATE if "rollout_is" not in item),  # where there is no pass the loss corrects
    "actor_rollout_ref.actor.policy_loss.loss_mode=bypass_mode",
    "+actor_rollout_ref.actor.policy_loss.rollout_correction.loss_type=reinforce",
    "+actor_rollout_ref.actor.policy_loss.rollout_correction.rollout_is=sequence",
    "actor_rollout_ref.hybrid_engine=False", "algorithm.rollout_correction.bypass_mode=True",
    "poise.states=[prompt]", "poise.signals=[]", "trainer.save_freq=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def bypassed(run_poise, assets, small, tmp_path_factory):
    """Without a log-prob pass: a step, and a second one by the same command that goes on from its checkpoint."""
    folder = tmp_path_factory.mktemp("bypassed")
    runs = [
        run_poise(folder, assets, *small, *BYPASS, f"trainer.total_training_steps={steps}", limit_s=900)
        for steps in (1, 2)
    ]
    assert [sorted(run.metrics) for run in runs] == [[1], [2]]  # each writes its log anew
    return replace(runs[1], metrics=runs[0].metrics | runs[1].metrics)


def test_it_trains_and_goes_on_without_a_log_prob_pass(bypassed):
    for number in (1, 2):
        step = bypassed.metrics[number]
        assert "actor/entropy" not in step and step["poise/state_pass_tokens"] > 16 * 4
        assert step["poise/rows"] == 32 and step["poise/window_rows"] == 32 * number
        assert step["poise/left_out_features"] == 0 and step["actor/grad_norm"] > 0
    saved = json.loads((bypassed.checkpoints / "global_step_2/critic/probe.json").read_text())
    assert saved["identity"]["feature_order"] == ["prompt"] and saved["content"]["updates"] == 4
    assert bypassed.metrics[1]["actor/rollout_corr/rollout_is_mean"] == pytest.approx(1.0, abs=0.2)
