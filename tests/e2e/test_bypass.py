"""Without a log-prob pass, and with turns of a tool: real runs."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]
HERE = Path(__file__).parent
BYPASS = (
    "algorithm.rollout_correction.bypass_mode=True",
    "poise.states=[prompt]",
    "poise.signals=[]",
    "trainer.n_gpus_per_node=2",
    "trainer.total_training_steps=3",
    "trainer.max_actor_ckpt_to_keep=null",
    "trainer.max_critic_ckpt_to_keep=null",
    # the loss that tells how far rollout and actor are apart
    "actor_rollout_ref.actor.policy_loss.loss_mode=bypass_mode",
    "+actor_rollout_ref.actor.policy_loss.rollout_correction.loss_type=reinforce",
    "+actor_rollout_ref.actor.policy_loss.rollout_correction.rollout_is=sequence",
)


@pytest.fixture(scope="module")
def unbroken(run_poise, small, assets, tmp_path_factory):
    """Three steps on two ranks, a checkpoint at step 2."""
    return run_poise(tmp_path_factory.mktemp("bypass"), assets, *small, *BYPASS, "trainer.save_freq=2", limit_s=600)


def test_a_pass_over_prompts_stands_for_the_log_prob_pass(unbroken):
    assert sorted(unbroken.metrics) == [1, 2, 3]
    for number, step in unbroken.metrics.items():
        # 16 prompts in chat form, and none of the 32 responses
        assert 16 * 4 < step["poise/state_pass_tokens"] < 16 * step["prompt_length/max"] + 1
        assert "actor/entropy" not in step and step["poise/time_capture_s"] == 0.0
        assert step["poise/share_probe"] == 1.0 if number == 1 else step["poise/share_no_baseline"] == 0.0
        assert step["poise/rows"] == 32 and step["poise/left_out_features"] == 0
        assert step["actor/grad_norm"] > 0
    last = unbroken.metrics[3]
    assert last["poise/window_rows"] == 3 * 32 and {"poise/mae", "poise/weight_probe"} <= set(last)


def test_rollout_and_actor_agree_though_nothing_is_recomputed(unbroken):
    """verl's measure, of the update's own log-probs: in mode sync a step's only mini-batch is on policy."""
    for step in unbroken.metrics.values():
        assert abs(step["actor/rollout_corr/kl"]) < 1e-4 and step["actor/rollout_corr/chi2_seq"] < 1e-3
        assert step["actor/rollout_corr/rollout_is_mean"] == pytest.approx(1.0, abs=1e-3)


def test_rows_of_a_prompt_have_its_state_and_weigh_by_the_rollouts_log_probs(unbroken):
    folder = unbroken.checkpoints / "global_step_2/critic"
    manifest = json.loads((folder / "probe.json").read_text())
    assert manifest["identity"]["feature_order"] == ["prompt"]
    tensors = load_file(folder / "probe.safetensors")
    group_N, state_ND, weight_N = (tensors[f"0.window.{name}"] for name in ("group", "feature", "weight"))
    assert len(group_N) == 2 * 32 and len(group_N.unique()) == 2 * 16
    first_N, second_N = (group_N.argsort(stable=True)[side::2] for side in (0, 1))
    assert torch.equal(state_ND[first_N], state_ND[second_N])
    assert len(state_ND.unique(dim=0)) > 16  # prompts differ, and the policy between steps
    assert (weight_N > 0).all() and len(weight_N.unique()) > 32


def test_a_resumed_run_goes_on_as_the_unbroken_one(unbroken, run_poise, small, assets, tmp_path):
    run = run_poise(
        tmp_path, assets, *small, *BYPASS, "trainer.save_freq=-1", "trainer.resume_mode=resume_path",
        f"trainer.resume_from_path={unbroken.checkpoints}/global_step_2", limit_s=600,
    )  # fmt: skip
    assert sorted(run.metrics) == [3]
    left_out = ("poise/time_", "poise/calibration_")
    names = [name for name in unbroken.metrics[3] if name.startswith("poise/") and not name.startswith(left_out)]
    names += ["critic/score/mean", "response_length/mean", "actor/grad_norm"]
    assert {name: run.metrics[3][name] for name in names} == pytest.approx(
        {name: unbroken.metrics[3][name] for name in names}, rel=2e-3, abs=2e-4
    )
