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
# So many siblings tell no more of a prompt than all other prompts do: were pass rates uniform, the mean reward of m
# siblings would miss them by a variance of 1 / 6m, and the mean over prompts by 1/12. With one sibling, the error
# weighted by energy was 3 to 7 times the constant's at the start of the embedded tasks (docs/many_seeds.md).
FEW_SIBLINGS = 2
FALLBACK_OF_FEW = (1.0, 2.0, 3.0)


@dataclass(frozen=True)
class Advantages:
    """Attributes, all (B,): advantage and baseline (float32), source (PROBE, RLOO, CONSTANT or NONE), rloo (the
    advantage that leave-one-out rewards would have given; NaN where there is no sibling), energy (how much the row's
    score weighs in the gradient's variance; None where nobody knows)."""

    advantage_B: Tensor
    baseline_B: Tensor
    source_B: Tensor
    rloo_B: Tensor
    energy_B: Tensor | None = None

    def metrics(self) -> dict[str, float]:
        """Shares of the sources, and beside RLOO's on the same rows: the variance of the advantage, and what leads the
        gradient's, the mean square of the advantage weighted by energy."""
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
        if self.energy_B is not None:
            energy_B = torch.where(both & self.energy_B.isfinite(), self.energy_B, 0.0).double()
            squares = [energy_B[both] @ x_B[both].double().square() for x_B in (self.advantage_B, self.rloo_B)]
            if squares[1] > 0:
                spread["poise/gradient_variance_ratio"] = (squares[0] / squares[1]).item()
        return share | spread


def compute_advantages(
    reward_B: Tensor,
    group_B: Tensor,
    value_B: Tensor,
    weight_B3: Tensor,
    constant_B: Tensor,
    *,
    own_value: bool = False,
    row_weight_B: Tensor | None = None,
    energy_B: Tensor | None = None,
) -> Advantages:
    """A_i = r_i - b_i, b_i a mixture of what the siblings' values, the siblings' rewards and other prompts tell.

    b_i = sum_k w_k b_ik over the baselines that the row has: the mean over j != i of value_j; the mean over j != i of
    r_j (RLOO), weighted by what j counts; the constant, a mean reward of other prompts. None of them depends on rollout
    i and the weights w are those of earlier steps, so each mixture keeps the gradient unbiased. Where all that the row
    has is without weight, RLOO is taken, else the constant, else the siblings' values; with one or two siblings, the
    constant before RLOO. A row without any, or with a non-finite reward, gets advantage 0: it takes no part in the
    update.

    Args:
        reward_B: float; outcome reward. Non-finite where the verifier failed.
        group_B: int64; the prompt of each row.
        value_B: float; the probe's prediction from the row's own states, NaN where it has none.
        weight_B3: float; the guard's weights of probe, RLOO and constant for the row's domain, not negative.
        constant_B: float; mean reward of the probe's window (a fresh fit's: and of the step's other prompts), NaN while
            there is none.
        own_value: b_i = value_i. Right only for a probe that reads nothing of the rollout (prompt states alone).
        row_weight_B: float; what a row's reward counts for its siblings, never for itself; None: all alike. A row
            without a finite, positive one counts nothing.
        energy_B: float; for the metrics alone.
    """
    reward_B, value_B = reward_B.float(), value_B.float()
    probe_B = value_B if own_value else sibling_mean(value_B, group_B)
    plain_rloo_B = rloo_B = sibling_mean(reward_B, group_B)
    if row_weight_B is not None:
        counted_B = torch.where(row_weight_B.isfinite(), row_weight_B, 0.0).clamp(min=0.0)
        rloo_B = sibling_mean(reward_B, group_B, counted_B)
    baseline_B3 = torch.stack([probe_B, rloo_B, constant_B.float()], dim=1)

    available_B3 = baseline_B3.isfinite()
    weight_B3 = torch.where(available_B3, weight_B3.float(), 0.0)
    # where no weight is left: the first that the row has
    few_B1 = (_siblings(reward_B, group_B) <= FEW_SIBLINGS).unsqueeze(1)
    order_B3 = torch.where(few_B1, reward_B.new_tensor(FALLBACK_OF_FEW), reward_B.new_tensor(FALLBACK))
    order_B3 = torch.where(available_B3, order_B3, 0.0)
    first_B3 = torch.nn.functional.one_hot(order_B3.argmax(dim=1), 3) * available_B3
    weight_B3 = torch.where(weight_B3.sum(dim=1, keepdim=True) > 0, weight_B3, first_B3.float())
    total_B = weight_B3.sum(dim=1)
    weight_B3 = weight_B3 / total_B.clamp(min=1e-30).unsqueeze(1)

    has_baseline_B = reward_B.isfinite() & (total_B > 0)
    baseline_B = (weight_B3 * torch.where(available_B3, baseline_B3, 0.0)).sum(dim=1)
    baseline_B = torch.where(has_baseline_B, baseline_B, 0.0)
    advantage_B = torch.where(has_baseline_B, reward_B - baseline_B, torch.zeros_like(reward_B))
    source_B = torch.where(has_baseline_B, weight_B3.argmax(dim=1), NONE)
    return Advantages(advantage_B, baseline_B, source_B, reward_B - plain_rloo_B, energy_B)


def _siblings(reward_B: Tensor, group_B: Tensor) -> Tensor:
    """(B,) int64: other rows of the group that have a reward."""
    _, place_B = torch.unique(group_B.to(reward_B.device), return_inverse=True)
    finite_B = reward_B.isfinite().long()
    count_G = torch.zeros_like(place_B).index_add_(0, place_B, finite_B)  # groups: at most as many as rows
    return count_G[place_B] - finite_B
