"""The optimal token baseline: verl's function with what the log-prob pass left, against a loop over tokens."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from recipe.poise.trainer import otb, select


def a_batch():
    """Two prompts with three rollouts each, of different lengths; outcome rewards on the last token."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([4, 2, 3, 1, 4, 4])
    mask_BL = (torch.arange(4) < lengths[:, None]).float()
    log_prob_BL = -torch.rand(6, 4, generator=generator) * mask_BL
    sum_BL = (log_prob_BL.mul(2).exp() + 0.1) * mask_BL
    reward_BL = torch.zeros(6, 4)
    reward_BL[torch.arange(6), lengths - 1] = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    return np.array(list("aaabbb")), mask_BL, log_prob_BL, sum_BL, reward_BL


def test_the_baseline_is_the_groups_mean_weighted_by_energy_so_far():
    index, mask_BL, log_prob_BL, sum_BL, reward_BL = a_batch()
    with otb.using(otb.Tokens(log_prob_BL, sum_BL)):
        advantage_BL, _ = otb.otb_advantage(reward_BL, mask_BL, config=None, index=index)
    outcome_B = reward_BL.sum(1)
    for row in range(6):
        members = [other for other in range(6) if index[other] == index[row]]
        for token in range(int(mask_BL[row].sum())):
            alive = [other for other in members if mask_BL[other, token]]
            energy = [(1 - 2 * log_prob_BL[m].exp() + sum_BL[m])[: token + 1].sum() for m in alive]
            baseline = sum(e * outcome_B[m] for e, m in zip(energy, alive, strict=True)) / sum(energy)
            if alive == [row]:  # verl's handling of the tail that the longest rollout has alone
                baseline = 0.0
            assert advantage_BL[row, token] == pytest.approx(float(outcome_B[row] - baseline), abs=1e-5)
    assert (advantage_BL[mask_BL == 0] == 0).all()


def test_it_needs_its_trainer():
    index, mask_BL, _, _, reward_BL = a_batch()
    with pytest.raises(RuntimeError, match="main_poise"):
        otb.otb_advantage(reward_BL, mask_BL, index=index)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("algorithm.rollout_correction.bypass_mode", True),
        ("algorithm.rollout_correction.rollout_is", "token"),
        ("actor_rollout_ref.model.use_fused_kernels", True),
    ],
)
def test_what_would_change_the_estimate_is_refused(key, value):
    config = OmegaConf.create(
        {
            "algorithm": {"adv_estimator": "otb", "rollout_correction": {"bypass_mode": False, "rollout_is": None}},
            "actor_rollout_ref": {"model": {"use_fused_kernels": False}},
            "trainer": {"v1": {"trainer_mode": "sync"}},
        }
    )
    before = dict(select.TRAINER_REGISTRY)
    try:
        select.select_trainers(config)
        assert select.TRAINER_REGISTRY["sync"] is select.OtbTrainerSync
        OmegaConf.update(config, key, value)
        with pytest.raises(ValueError, match=key):
            select.select_trainers(config)
    finally:
        select.TRAINER_REGISTRY.update(before)
