"""The advantage estimator "poise" as verl calls it; the batch's rows and predictions come by `pairing`."""

from dataclasses import dataclass

import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import register_adv_est

from recipe.poise.baseline.advantage import Advantages, compute_advantages
from recipe.poise.baseline.handover import Handover
from recipe.poise.baseline.rows import Rows

NAME = "poise"


@dataclass
class Pairing:
    """What the estimator needs of a batch beyond verl's arguments; it leaves `result` behind for the metrics.
    `left_out_B`: rows whose reward tells nothing, since the verifier failed or rollout correction rejects them."""

    rows: Rows
    value_B: Tensor
    weight_B3: Tensor
    constant_B: Tensor
    left_out_B: Tensor
    own_value: bool
    row_weight_B: Tensor | None = None
    energy_B: Tensor | None = None
    result: Advantages | None = None


pairing: Handover[Pairing] = Handover(NAME)


@register_adv_est(NAME)
def poise_advantage(
    token_level_rewards: Tensor, response_mask: Tensor, config=None, index=None, **kwargs
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both (B, L), the same on every response token of a row.

    Args:
        token_level_rewards: (B, L); their sum over a row is its outcome reward (a KL penalty in it is kept). The
            verifier's stands on the last token of a response, also where that is a tool's or was rejected.
        response_mask: (B, L); 1 on tokens of the policy's own that the loss counts.

    Raises:
        RuntimeError: called outside `pairing(...)`: algorithm.adv_estimator=poise with a trainer that is not POISE's.
    """
    current = pairing.take()
    mask_BL = response_mask.to(torch.float32)
    reward_B = token_level_rewards.float().sum(dim=1)
    seen = current.rows.id_B >= 0
    judged_B = torch.where(current.left_out_B, float("nan"), reward_B)  # a failed verifier's 0 is no reward
    result = compute_advantages(
        judged_B[seen],
        current.rows.group_B[seen],
        current.value_B[seen],
        current.weight_B3[seen],
        current.constant_B[seen],
        own_value=current.own_value,
        row_weight_B=None if current.row_weight_B is None else current.row_weight_B[seen],
        energy_B=None if current.energy_B is None else current.energy_B[seen],
    )
    current.result = result
    advantage_B = torch.zeros_like(reward_B)
    advantage_B[seen] = result.advantage_B
    # all outputs of an agent loop's session share the session's advantage; padding keeps zero
    advantage_B = torch.where(current.rows.padding_B, 0.0, advantage_B[current.rows.last_B])
    return_B = reward_B.nan_to_num(0.0, 0.0, 0.0)
    return advantage_B.unsqueeze(1) * mask_BL, return_B.unsqueeze(1) * mask_BL
