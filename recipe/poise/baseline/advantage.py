"""POISE's advantage: each rollout's reward minus what its siblings' hidden states predict.

Source: POISE (arXiv 2605.07579), cross-rollout baseline; section "Setting" there for the unbiasedness argument: given
the prompt, rollouts are independent, so a baseline made of the other rollouts' states does not depend on this one.

Shapes: B rows (one per rollout), any order; a group is the rollouts of one prompt.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from probe.pairing import sibling_mean

PROBE, RLOO, CONSTANT, NONE = 0, 1, 2, 3  # what a row's baseline is mostly made of
FALLBACK = (1.0, 3.0, 2.0)  # of probe, RLOO and constant: the largest is tried first


@dataclass(frozen=True)
class Advantages:
    """Attributes, all (B,): advantage and baseline (float32), source (PROBE, RLOO, CONSTANT or NONE), rloo (the
    advantage that leave-one-out rewards would have given; NaN where there is no sibling)."""

    advantage_B: Tensor
    baseline_B: Tensor
    source_B: Tensor
    rloo_B: Tensor

    def metrics(self) -> dict[str, float]:
        """Shares of the sources, and the variance of the advantage beside RLOO's on the same rows."""
        used = self.source_B != NONE
        both = used & self.rloo_B.isfinite()
        share = {
            f"poise/share_{name}": (self.source_B == code).float().mean().item()
            for name, code in (("probe", PROBE), ("rloo", RLOO), ("constant", CONSTANT), ("no_baseline", NONE))
        }
        if both.sum() < 2:
            return share
        variance = self.advantage_B[both].var().item()
        variance_rloo = self.rloo_B[both].var().item()
        spread = {"poise/advantage_variance": variance, "poise/advantage_variance_rloo": variance_rloo}
        if variance_rloo > 0:
            spread["poise/advantage_variance_ratio"] = variance / variance_rloo
        return share | spread


def compute_advantages(
    reward_B: Tensor,
    group_B: Tensor,
    value_B: Tensor,
    weight_B3: Tensor,
    constant_B: Tensor,
    *,
    own_value: bool = False,
) -> Advantages:
    """A_i = r_i - b_i, b_i a mixture of what the siblings' values, the siblings' rewards and earlier steps tell.

    b_i = sum_k w_k b_ik over the baselines that the row has: the mean over j != i of value_j; the mean over j != i of
    r_j (RLOO); the mean reward of earlier steps. None of them depends on rollout i and the weights are those of earlier
    steps, so each mixture keeps the gradient unbiased. Where all that the row has is without weight, RLOO is taken,
    else the constant, else the siblings' values. A row without any, or with a non-finite reward, gets advantage 0: it
    takes no part in the update.

    Args:
        reward_B: float; outcome reward. Non-finite where the verifier failed.
        group_B: int64; the prompt of each row.
        value_B: float; the probe's prediction from the row's own states, NaN where it has none.
        weight_B3: float; the guard's weights of probe, RLOO and constant for the row's domain, not negative.
        constant_B: float; mean reward of the probe's window, NaN while it is empty.
        own_value: b_i = value_i. Right only for a probe that reads nothing of the rollout (prompt states alone).
    """
    reward_B, value_B = reward_B.float(), value_B.float()
    probe_B = value_B if own_value else sibling_mean(value_B, group_B)
    rloo_B = sibling_mean(reward_B, group_B)
    baseline_B3 = torch.stack([probe_B, rloo_B, constant_B.float()], dim=1)

    available_B3 = baseline_B3.isfinite()
    weight_B3 = torch.where(available_B3, weight_B3.float(), 0.0)
    # where no weight is left: the first that the row has, in the order of FALLBACK
    order_B3 = torch.where(available_B3, torch.tensor(FALLBACK, dtype=torch.float32), 0.0)
    first_B3 = torch.nn.functional.one_hot(order_B3.argmax(dim=1), 3) * available_B3
    weight_B3 = torch.where(weight_B3.sum(dim=1, keepdim=True) > 0, weight_B3, first_B3.float())
    total_B = weight_B3.sum(dim=1)
    weight_B3 = weight_B3 / total_B.clamp(min=1e-30).unsqueeze(1)

    has_baseline_B = reward_B.isfinite() & (total_B > 0)
    baseline_B = (weight_B3 * torch.where(available_B3, baseline_B3, 0.0)).sum(dim=1)
    baseline_B = torch.where(has_baseline_B, baseline_B, 0.0)
    advantage_B = torch.where(has_baseline_B, reward_B - baseline_B, torch.zeros_like(reward_B))
    source_B = torch.where(has_baseline_B, weight_B3.argmax(dim=1), NONE)
    return Advantages(advantage_B, baseline_B, source_B, reward_B - rloo_B)
