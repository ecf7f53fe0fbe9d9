"""The rows of one step, made ready for a fit: who takes part, what each row's value should be, how much that counts.

Shapes: R rows of the step, N earlier rows, F features, K dimensions of an estimator.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from probe.pairing import sibling_mean

NAN = float("nan")


def finite_rows(x_RF: Tensor) -> Tensor:
    """(R,) bool: rows of finite numbers only. A row whose sum is finite is one; of the others, which are few, each
    number is looked at."""
    finite_R = x_RF.sum(dim=1).isfinite()
    doubtful = (~finite_R).nonzero().squeeze(1)
    if len(doubtful):  # a number that is not finite, or finite ones whose sum is not
        finite_R[doubtful] = x_RF[doubtful].isfinite().all(dim=1)
    return finite_R


def without_bad_rows(x_RF: Tensor, finite_R: Tensor) -> Tensor:
    """The rows, zero where they are not finite; the same tensor where all are."""
    return x_RF if bool(finite_R.all()) else torch.where(finite_R.unsqueeze(1), x_RF, 0.0)


@dataclass(frozen=True)
class StepRows:
    """Attributes of R rows: feature_RF, group_R, reward_R (NaN where it is not to be used), target_R (what the row's
    probe value should be; NaN without a sibling), weight_R and target_weight_R (how much reward and target count; None:
    all alike), finite_R (bool: all features are finite), good_R (bool: the row can be learned)."""

    feature_RF: Tensor
    group_R: Tensor
    reward_R: Tensor
    target_R: Tensor
    weight_R: Tensor | None
    target_weight_R: Tensor | None
    finite_R: Tensor
    good_R: Tensor

    def counts_R(self, of_targets: bool) -> Tensor:
        """(R,) float64 weights of targets or of rewards; 0 for rows that cannot be learned."""
        weight_R = self.target_weight_R if of_targets else self.weight_R
        return self.good_R.double() if weight_R is None else torch.where(self.good_R, weight_R.double(), 0.0)

    def at(self, rows: Tensor) -> "StepRows":
        """Some of the rows, by ascending numbers."""
        if len(rows) == len(self.good_R):
            return self  # all of them: nothing is copied
        weight_R, target_weight_R = (None if x is None else x[rows] for x in (self.weight_R, self.target_weight_R))
        return StepRows(
            feature_RF=self.feature_RF[rows],
            group_R=self.group_R[rows],
            reward_R=self.reward_R[rows],
            target_R=self.target_R[rows],
            weight_R=weight_R,
            target_weight_R=target_weight_R,
            finite_R=self.finite_R[rows],
            good_R=self.good_R[rows],
        )


@dataclass(frozen=True)
class EarlierRows:
    """Rows of earlier steps, N of them: features, or (0, F) where the estimator keeps their coordinates; targets, what
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
    finite_R = finite_rows(feature_RF)
    good_R = finite_R & reward_R.isfinite() & target_R.isfinite()
    return StepRows(feature_RF, group_R, reward_R, target_R, weight_R, target_weight_R, finite_R, good_R)
