"""POISE's advantage: each rollout's reward minus what its siblings' hidden states predict.

Source: POISE (arXiv 2605.07579), cross-rollout baseline; section "Setting" there for the unbiasedness argument: given
the prompt, rollouts are independent, so a baseline made of the other rollouts' states does not depend on this one.

Shapes: B rows (one per rollout), any order; a group is the rollouts of one prompt.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from probe.pairing import sibling_mean

PROBE, RLOO, CONSTANT, NONE = 0, 1, 2, 3  # where a row's baseline came from


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
    trusted_B: Tensor,
    constant_B: Tensor,
    *,
    own_value: bool = False,
) -> Advantages:
    """A_i = r_i - b_i, b_i from the siblings' values where they can be trusted, else a counted fallback.

    b_i is, in this order: the mean over j != i of value_j where the guard trusts the probe; the mean over j != i of
    r_j (RLOO); the mean reward of earlier steps. None of them depends on rollout i, so each keeps the gradient
    unbiased, and so does the choice, which is made from earlier steps only. A row without any, or with a non-finite
    reward, gets advantage 0: it takes no part in the update.

    Args:
        reward_B: float; outcome reward. Non-finite where the verifier failed.
        group_B: int64; the prompt of each row.
        value_B: float; the probe's prediction from the row's own states, NaN where it has none.
        trusted_B: bool; whether the guard prefers the probe over RLOO for the row's domain.
        constant_B: float; mean reward of the probe's window, NaN while it is empty.
        own_value: b_i = value_i. Right only for a probe that reads nothing of the rollout (prompt states alone).
    """
    reward_B, value_B = reward_B.float(), value_B.float()
    probe_B = value_B if own_value else sibling_mean(value_B, group_B)
    rloo_B = sibling_mean(reward_B, group_B)
    usable = reward_B.isfinite()

    source_B = torch.full_like(group_B, NONE)
    baseline_B = torch.zeros_like(reward_B)
    candidates = (
        (CONSTANT, constant_B.float(), constant_B.isfinite()),
        (RLOO, rloo_B, rloo_B.isfinite()),
        (PROBE, probe_B, probe_B.isfinite() & trusted_B),
    )
    for code, baseline, available in candidates:  # later candidates win
        chosen = usable & available
        source_B = torch.where(chosen, code, source_B)
        baseline_B = torch.where(chosen, baseline, baseline_B)
    has_baseline = source_B != NONE
    advantage_B = torch.where(has_baseline, reward_B - baseline_B, torch.zeros_like(reward_B))
    return Advantages(advantage_B, baseline_B, source_B, reward_B - rloo_B)
