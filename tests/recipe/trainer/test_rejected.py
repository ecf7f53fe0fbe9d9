"""A rejected row's reward is no reward: it takes no part in its siblings' RLOO, and its own update is verl's mask's."""

import pytest
import torch
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_rejection_mask

from recipe.poise.baseline.estimator import Pairing, pairing, poise_advantage
from recipe.poise.baseline.rows import index_rows
from recipe.poise.trainer.rejected import without_tokens


def test_rows_without_a_token_left():
    mask_BL = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 1]])
    ratio_BL = torch.tensor([[0.0, 1.0, 9.0], [0.0, 0.0, 0.0], [5.0, 5.0, 5.0], [2.0, 2.0, 2.0]])
    kept = {
        name: compute_rollout_rejection_mask(ratio_BL, mask_BL, name, limits)[0]
        for name, limits in (("seq_max_k2", "0.1"), ("token_k2", "0.1"))
    }
    # a token of row 0 is kept where tokens are judged one by one; row 2 is padding
    assert without_tokens(mask_BL, kept["seq_max_k2"]).tolist() == [True, False, False, True]
    assert without_tokens(mask_BL, kept["token_k2"]).tolist() == [False, False, False, True]


def advantages(left_out, mask_BL, reward_BL, keys=("a_0_0", "a_1_0", "a_2_0")):
    inputs = Pairing(
        rows=index_rows(list(keys), [{}] * 3),
        value_B=torch.full((3,), float("nan")),
        weight_B3=torch.tensor([0.0, 1.0, 0.0]).expand(3, 3),
        constant_B=torch.full((3,), float("nan")),
        left_out_B=torch.tensor(left_out),
        own_value=False,
    )
    with pairing(inputs):
        return poise_advantage(reward_BL, mask_BL)[0]


def test_a_rejected_row_is_no_sibling():
    reward_BL = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    mask_BL = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]])  # verl has taken row 0 out of the loss
    advantage_BL = advantages([True, False, False], mask_BL, reward_BL)
    assert advantage_BL.tolist() == [[0.0, 0.0], [1.0, 1.0], [-1.0, -1.0]]


@pytest.mark.parametrize("last", [0.0, 1.0])
def test_a_reward_on_a_tools_token_counts(last):
    """A response whose budget ends in a tool's answer: verl puts the reward on its last token all the same."""
    reward_BL = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    mask_BL = torch.tensor([[1.0, last], [1.0, 1.0], [1.0, 1.0]])
    advantage_BL = advantages([False] * 3, mask_BL, reward_BL)
    assert advantage_BL.tolist() == [[1.0, last], [-0.5, -0.5], [-0.5, -0.5]]


def test_outputs_of_a_session_share_its_advantage():
    reward_BL = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])  # verl gives every output the session's reward
    advantage_BL = advantages([False] * 3, torch.ones(3, 2), reward_BL, ("a_0_0", "a_0_1", "a_1_0"))
    assert advantage_BL.tolist() == [[1.0, 1.0], [1.0, 1.0], [-1.0, -1.0]]
