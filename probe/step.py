"""The rows of one step, made ready for a fit: who takes part, what each row's value should be, how much that counts.

Shapes: R rows of the step, N earlier rows, F features, K dimensions of an estimator.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from probe.pairing import sibling_mean

NAN = float("nan")


@dataclass(frozen=True)
class StepRows:
    """Attributes of R rows: feature_RF, group_R, reward_R (NaN where it is not to be used), target_R (what the row's
    probe value should be; NaN without a sibling), weight_R and target_weight_R (how much reward and target count; None:
    all alike), good_R (bool: the row can be learned)."""

    feature_RF: Tensor
    group_R: Tensor
    reward_R: Tensor
    target_R: Tensor
    weight_R: Tensor | None
    target_weight_R: Tensor | None
    good_R: Tensor

    @property
    def finite_R(self) -> Tensor:
        """Whether all features are finite."""
        return self.feature_RF.isfinite().all(dim=1)

    def counts_R(self, of_targets: bool) -> Tensor:
        """(R,) float64 weights of targets or of rewards; 0 for rows that cannot be learned."""
        weight_R = self.target_weight_R if of_targets else self.weight_R
        return self.good_R.double() if weight_R is None else torch.where(self.good_R, weight_R.double(), 0.0)

    def at(self, rows: Tensor) -> "StepRows":
        """Some of the rows."""
        weight_R, target_weight_R = (None if x is None else x[rows] for x in (self.weight_R, self.target_weight_R))
        return StepRows(
            feature_RF=self.feature_RF[rows],
            group_R=self.group_R[rows],
            reward_R=self.reward_R[rows],
            target_R=self.target_R[rows],
            weight_R=weight_R,
            target_weight_R=target_weight_R,
            good_R=self.good_R[rows],
        )


@dataclass(frozen=True)
class EarlierRows:
    """Rows of earlier steps, N of them: features and, where the estimator keeps them, their coordinates; targets, what
    they count, and prompts."""

    feature_NF: Tensor
    target_N: Tensor
    weight_N: Tensor
    group_N: Tensor
    coordinate_NK: Tensor | None = None


def prepare(
    feature_RF: Tensor, reward_R: Tensor, group_R: Tensor, weight_R: Tensor | None, self_target: bool
) -> StepRows:
    """Targets are the siblings' mean rewards, in the siblings' weights, and weigh as much as the siblings on average.

    Args:
        weight_R: a row without a finite, non-negative one is treated as one without a reward.
        self_target: a row without siblings takes its own reward.
    """
    target_weight_R = None
    if weight_R is not None:
        reward_R = torch.where(weight_R.isfinite() & (weight_R >= 0), reward_R, NAN)
        weight_R = torch.where(reward_R.isfinite(), weight_R, NAN)
        target_weight_R = sibling_mean(weight_R, group_R)  # of all the pairs that the target stands for
    target_R = sibling_mean(reward_R, group_R, None if weight_R is None else weight_R.nan_to_num())
    if self_target:
        alone_R = ~target_R.isfinite()
        target_R = torch.where(alone_R, reward_R, target_R)
        if weight_R is not None and target_weight_R is not None:
            target_weight_R = torch.where(alone_R, weight_R, target_weight_R)
    if target_weight_R is not None:
        target_R = torch.where(target_weight_R > 0, target_R, NAN)
    good_R = feature_RF.isfinite().all(dim=1) & reward_R.isfinite() & target_R.isfinite()
    return StepRows(feature_RF, group_R, reward_R, target_R, weight_R, target_weight_R, good_R)
