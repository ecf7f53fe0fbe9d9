"""Without a log-prob pass, and with turns of a tool: real runs."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from recipe.poise.capture.hook import resolve_block

pytestmark = [pytest.mark.e2e, pytest.mark.extended, pytest.mark.timeout(1200)]
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
    folder = tmp_path_factory.mktemp("bypass")
    saved = ("trainer.save_freq=2", f"trainer.rollout_data_dir={folder}/rollouts")
    return run_poise(folder, assets, *small, *BYPASS, *saved, limit_s=900)


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


@torch.no_grad()
def states_of(model: Path, questions: list[str], block: int) -> torch.Tensor:
    """The means over the last 10 tokens of the questions in chat form, by a plain forward each."""
    tokenizer, policy = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model).eval()
    states: list[torch.Tensor] = []
    policy.model.layers[block].register_forward_hook(
        lambda module, args, out: states.append((out[0] if isinstance(out, tuple) else out).squeeze(0))
    )
    for question in questions:
        chat = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        policy(ids["input_ids"], use_cache=False)
    return torch.stack([state[-10:].mean(0) for state in states])


def test_rows_of_a_prompt_have_its_state_and_weigh_by_the_rollouts_log_probs(unbroken, assets):
    folder = unbroken.checkpoints / "global_step_2/critic"
    manifest = json.loads((folder / "probe.json").read_text())
    assert manifest["identity"]["feature_order"] == ["prompt"]
    tensors = load_file(folder / "probe.safetensors")
    names = ("group", "feature", "weight", "step", "reward")
    group_N, state_ND, weight_N, step_N, reward_N = (tensors[f"0.window.{name}"] for name in names)
    assert len(group_N) == 2 * 32 and (weight_N > 0).all() and len(weight_N.unique()) > 32

    scores: dict[str, list[float]] = {}
    for line in (unbroken.checkpoints.parent / "rollouts/1.jsonl").read_text().splitlines():
        row = json.loads(line)
        question = row["input"].removeprefix("user\n").removesuffix("\nassistant\n")
        scores.setdefault(question, []).append(row["score"])
    layers = AutoConfig.from_pretrained(assets / "model").num_hidden_layers
    # step 1's states are the start model's
    expected_PD = states_of(assets / "model", list(scores), resolve_block(19 / 36, layers))
    seen = set()
    for group in group_N[step_N == 1].unique():
        rows = (group_N == group).nonzero().flatten()
        assert len(rows) == 2 and torch.equal(state_ND[rows[0]], state_ND[rows[1]])
        nearest = int((expected_PD - state_ND[rows[0]]).norm(dim=1).argmin())
        torch.testing.assert_close(state_ND[rows[0]], expected_PD[nearest], rtol=1e-4, atol=1e-4)
        assert sorted(reward_N[rows].tolist()) == sorted(list(scores.values())[nearest])
        seen.add(nearest)
    assert len(seen) == 16


def test_a_resumed_run_goes_on_as_the_unbroken_one(unbroken, run_poise, small, assets, tmp_path):
    run = run_poise(
        tmp_path, assets, *small, *BYPASS, "trainer.save_freq=-1", "trainer.resume_mode=resume_path",
        f"trainer.resume_from_path={unbroken.checkpoints}/global_step_2",
        f"trainer.rollout_data_dir={tmp_path}/rollouts", limit_s=900,
    )  # fmt: skip
    assert sorted(run.metrics) == [3] and (tmp_path / "rollouts/3.jsonl").exists()
    left_out = ("poise/time_", "poise/calibration_")
    names = [name for name in unbroken.metrics[3] if name.startswith("poise/") and not name.startswith(left_out)]
    names += ["critic/score/mean", "response_length/mean", "actor/grad_norm"]
    assert {name: run.metrics[3][name] for name in names} == pytest.approx(
        {name: unbroken.metrics[3][name] for name in names}, rel=2e-3, abs=2e-4
    )


TOSSED = '''
"""Half of the responses are right, by their text's hash."""
from zlib import crc32

def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    return float(crc32(f"{extra_info['index']} {solution_str}".encode()) % 2)
'''


@pytest.fixture(scope="module")
def turns(run_poise, small, assets, tmp_path_factory):
    """Two steps of two turns with a tool between (`two_turns`). The rollout leaves unlikely tokens out, which the actor
    does not, so that verl has rows to reject; the threshold is about the median of the rows."""
    folder = tmp_path_factory.mktemp("turns")
    (folder / "tossed.py").write_text(TOSSED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
        return run_poise(
            folder, assets, *small, "trainer.n_gpus_per_node=1",
            f"reward.custom_reward_function.path={folder}/tossed.py",
            "trainer.total_training_steps=2", "trainer.save_freq=2", "poise.seeded_rollouts=False",
            "actor_rollout_ref.rollout.agent.default_agent_loop=two_turns",
            f"actor_rollout_ref.rollout.agent.agent_loop_config_path={HERE}/agent_loops.yaml",
            "actor_rollout_ref.rollout.top_p=0.5", "algorithm.rollout_correction.rollout_rs=seq_mean_k2",
            "algorithm.rollout_correction.rollout_rs_threshold=0.03", limit_s=900,
        )  # fmt: skip


def test_a_session_is_one_rollout_however_many_outputs_it_gives(turns):
    assert sorted(turns.metrics) == [1, 2]
    for step in turns.metrics.values():
        # of each prompt, a session of one output and one of two
        assert step["rollout/rows"] == 16 * 3 and step["poise/rows"] == 16 * 2
        assert step["poise/left_out_features"] == 0 and step["actor/grad_norm"] > 0
    tensors = load_file(turns.checkpoints / "global_step_2/critic/probe.safetensors")
    group_N, feature_ND = (tensors[f"0.window.{name}"] for name in ("group", "feature"))
    pairs = [rows for group in group_N.unique() if len(rows := (group_N == group).nonzero().flatten()) == 2]
    assert pairs
    width = (feature_ND.shape[1] - 3) // 2
    for first, second in pairs:
        # the second session's last output has another prompt, in which the policy has spoken already
        torch.testing.assert_close(feature_ND[first, :width], feature_ND[second, :width], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(feature_ND[first, width:-3], feature_ND[second, width:-3], rtol=1e-2, atol=1e-2)


def test_rejected_rows_are_not_learned(turns):
    learned = 0.0
    for step in turns.metrics.values():
        assert 0 < step["poise/rejected_share"] < 1
        assert step["rollout_corr/rollout_rs_masked_fraction"] > 0
        assert 0 < step["poise/left_out_reward"] < 32
        learned += 32 - step["poise/left_out_reward"] - step["poise/left_out_alone"]
        # a row whose reward is left out has no advantage; its sibling has one from its states
        assert step["poise/share_no_baseline"] >= step["poise/left_out_reward"] / 32 - 1e-6
        assert step["poise/window_rows"] == learned
