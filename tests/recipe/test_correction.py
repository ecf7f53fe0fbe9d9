"""What cannot be had without a log-prob pass is refused at start, with the reason; the rest passes."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from recipe.poise.config import check_config
from recipe.poise.correction import bypasses, rejects

CONFIG_DIR = str(Path(__file__).parents[2] / "recipe/poise/config")
BYPASS = "algorithm.rollout_correction.bypass_mode=True"
PROMPT, REWARDS = ("poise.states=[prompt]", "poise.signals=[]"), ("poise.states=[]", "poise.signals=[]")
LOSS = "actor_rollout_ref.actor.policy_loss"


def composed(*overrides):
    with initialize_config_dir(CONFIG_DIR, version_base=None):
        return compose("poise_trainer", overrides=list(overrides))


@pytest.mark.parametrize("mode", ["sync", "colocate_async"])
@pytest.mark.parametrize(
    "features",
    [
        PROMPT,
        (*PROMPT, "actor_rollout_ref.rollout.n=1"),
        (*PROMPT, "poise.select.candidates=4"),
        REWARDS,
        (*REWARDS, "poise.probe.guard=rloo"),
        (*REWARDS, "actor_rollout_ref.rollout.n=1", "poise.probe.guard=constant"),
        ("poise.states=[prompt]", "poise.signals=[reward]"),
        (*PROMPT, f"{LOSS}.loss_mode=bypass_mode", f"+{LOSS}.rollout_correction.rollout_is=token"),
    ],
)
def test_what_is_there_without_a_pass(mode, features):
    config = composed(BYPASS, f"trainer.v1.trainer_mode={mode}", *features)
    check_config(config)
    assert bypasses(config) and not rejects(config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), "poise.states=.*first be there in the actor's update.* Set poise.states=.prompt."),
        (("poise.states=[prompt]",), "poise.signals=.'entropy_response'.* Set poise.signals=.., or bypass_mode=False"),
        (
            ("poise.states=[prompt]", "poise.signals=[reward,length]"),
            r"from which poise.signals=\['length'\] would come",
        ),
        ((*PROMPT, "poise.dump_features.folder=/nowhere"), "dump_features.folder asks for. Set it to null"),
        ((*PROMPT, "actor_rollout_ref.actor.calculate_sum_pi_squared=True"), "calculate_sum_pi_squared=False"),
        ((*PROMPT, "actor_rollout_ref.rollout.calculate_log_probs=False"), "set .*calculate_log_probs=True"),
        (
            (*PROMPT, "algorithm.rollout_correction.rollout_is=token"),
            rf"does not look at it.* Set {LOSS}.loss_mode=bypass_mode \+{LOSS}.rollout_correction.rollout_is=token",
        ),
        ((*PROMPT, "algorithm.rollout_correction.rollout_rs=seq_max_k2"), "rollout_rs=seq_max_k2: with bypass_mode"),
        ((*REWARDS, "actor_rollout_ref.rollout.n=1", "poise.probe.guard=rloo"), "no siblings whose rewards"),
        ((*REWARDS, "poise.probe.guard=off"), "poise.states=.*probe.guard=off leaves the probe alone"),
    ],
)
def test_what_is_not(overrides, message):
    with pytest.raises(ValueError, match=message):
        check_config(composed(BYPASS, *overrides))


def test_with_a_pass_nothing_of_this_is_refused():
    config = composed("algorithm.rollout_correction.rollout_rs=seq_max_k2", "poise.signals=[length]")
    check_config(config)
    assert rejects(config) and not bypasses(config)
    assert not rejects(composed())


def test_the_loss_reads_the_correction_where_the_refusal_says():
    """verl's own loss, with the settings that the message names."""
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.utils.config import omega_conf_to_dataclass

    config = composed(
        f"{LOSS}.loss_mode=bypass_mode", f"+{LOSS}.rollout_correction.rollout_rs=seq_max_k2",
        f"+{LOSS}.rollout_correction.rollout_rs_threshold=0.01", "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    )  # fmt: skip
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    sizes = {"dp_size": 1, "batch_num_tokens": 4, "global_batch_size": 2, "loss_scale_factor": None}
    actor.global_batch_info.update(sizes)
    old_BL = torch.full((2, 2), -1.0)
    new_BL = old_BL + torch.tensor([[0.0, 0.0], [0.0, 0.5]])
    loss = get_policy_loss_fn("bypass_mode")(old_BL, new_BL, torch.ones(2, 2), torch.ones(2, 2), "token-mean", actor)
    assert loss[1]["rollout_corr/rollout_rs_masked_fraction"] == 0.5  # the second row
    assert float(loss[0]) == pytest.approx(-0.5)
