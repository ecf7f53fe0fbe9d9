"""Estimators that are linear in the features, with a link from the linear prediction to the reward's range.

Shapes: N rows, F features.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from probe import weights
from probe.checked import Range, checked
from probe.estimators.base import Estimator
from probe.settings import FeatureLayout, Weighted
from probe.state import Declared

LINKS = ("auto", "clip", "sigmoid")
NEWTON_STEPS, TOLERANCE = 30, 1e-9
LINK_PENALTY = 1e-3  # on the squares of slope and offset, where all targets are equal
SMALLEST_OFFSET = 1e-9  # a constant of exactly one half, which 0 would not tell from the clip link


class LinearEstimator(Estimator):
    """Predicts link((x - mean_) @ weight_ + intercept_).

    A pass rate saturates at 0 and 1, a linear prediction f does not. The sigmoid link
    low + (high - low) sigmoid(slope_ f + offset_) is fitted to the out-of-prompt linear predictions (Platt's scaling),
    which also undoes what the penalty shrinks.

    Args:
        layout: blocks of a row.
        link: "clip" to the range; "sigmoid"; "auto": the one with the smaller out-of-prompt error. A falling
            sigmoid is never used.
        weighted: where weights of rows enter. "fit": in the regression and in the link, which is scikit-learn's
            sample_weight. "link": the regression is without them, and the link is always a sigmoid.

    Why "link": the target is E[w r | x] / E[w | x]. With rewards of 0 and 1 and weights that depend on x through the
    reward alone, its odds are the odds of p = E[r | x] times E[w | r = 1] / E[w | r = 0]: a monotone function of p.
    Weights are heavy-tailed, so a weighted regression stands on few rows; this way all rows tell p, and weights only
    two numbers.

    Attributes after `fit`: penalty_ (the chosen one, in the grid's units), strength_ (the same in the units of squared
    coordinates, for rows that weigh one on average; 0 where it is no ridge), slope_ and offset_ (both 0 for the clip
    link; a slope of 0 alone: the same value for all rows).
    """

    TENSORS: Declared = {"mean_": ("F", torch.float32), "weight_": ("F", torch.float64)}
    NUMBERS: Mapping[str, Any] = {
        **Estimator.NUMBERS,
        "intercept_": float,
        "penalty_": Annotated[float, Range(0)] | None,
        "strength_": Annotated[float, Range(0)],
        "slope_": Annotated[float, Range(0)],
        "offset_": float,
    }

    def __init__(self, layout: FeatureLayout, link: str = "clip", weighted: str = "fit"):
        super().__init__(layout)
        if link not in LINKS:
            raise ValueError(f"link={link!r}: choose from {LINKS}")
        checked(weighted, Weighted, "weighted")
        self.link, self.weighted = link, weighted
        self.alike = weighted == "link"
        self.mean_: Any = None  # tensors after fit; the weight in float64
        self.weight_: Any = None
        self.intercept_ = 0.0
        self.penalty_: float | None = None
        self.slope_ = self.offset_ = 0.0

    @property
    def fitted(self) -> bool:
        return self.weight_ is not None

    def _predict(self, x_NF: Tensor) -> Tensor:
        linear_N = (x_NF - self.mean_) @ self.weight_.float() + self.intercept_
        return self.linked(linear_N)

    def linked(self, linear_N: Tensor) -> Tensor:
        if self.slope_ == self.offset_ == 0.0:
            return linear_N
        return self.low_ + (self.high_ - self.low_) * (self.slope_ * linear_N + self.offset_).sigmoid()

    def _fit_link(self, left_out_N: Tensor, y_N: Tensor, weight_N: Tensor | None) -> Tensor:
        """Choose and fit the link on out-of-prompt linear predictions; their linked values (N,) float64."""
        self.slope_ = self.offset_ = 0.0
        if self.alike and weight_N is not None and left_out_N.isfinite().all():
            return self._fit_weighted_link(left_out_N, y_N, weight_N)
        if self.link == "clip" or not left_out_N.isfinite().all():
            return left_out_N
        y_N = y_N.double()
        self.slope_, self.offset_ = fit_sigmoid(left_out_N, (y_N - self.low_) / (self.high_ - self.low_), weight_N)
        sigmoid_N, clipped_N = self.linked(left_out_N), left_out_N.clamp(self.low_, self.high_)
        errors = [weights.mean((linked_N - y_N).square(), weight_N) for linked_N in (sigmoid_N, clipped_N)]
        worse = errors[0] >= errors[1]
        # a mean of the other prompts falls as one's own target rises: a falling link says that nothing was learned
        if self.slope_ <= 0 or (self.link == "auto" and worse):
            self.slope_ = self.offset_ = 0.0
            return left_out_N
        return sigmoid_N

    def _fit_weighted_link(self, left_out_N: Tensor, y_N: Tensor, weight_N: Tensor) -> Tensor:
        """The link from what rows that count alike say to the weighted mean; linked values (N,) float64."""
        p_N = (y_N.double() - self.low_) / (self.high_ - self.low_)
        self.slope_, self.offset_ = fit_sigmoid(left_out_N, p_N, weight_N)
        if self.slope_ <= 0:  # nothing was learned: what all rows have in common
            self.slope_ = 0.0
            self.offset_ = float(weights.mean(p_N, weight_N).clamp(1e-3, 1 - 1e-3).logit()) or SMALLEST_OFFSET
        return self.linked(left_out_N)

    def _in_regression(self, weight_N: Tensor | None) -> Tensor | None:
        """What rows count in the regression."""
        return None if self.alike else weight_N


def fit_sigmoid(f_N: Tensor, p_N: Tensor, weight_N: Tensor | None = None) -> tuple[float, float]:
    """Slope and offset that minimise the cross-entropy of sigmoid(slope f + offset) with soft targets `p` in [0, 1]."""
    # steps of two numbers, each of which waits for the last: on the host, by numpy and by sums, which take no threads
    # for the rows of a window (a step would be spent waking them)
    columns = [f_N, p_N] if weight_N is None else [f_N, p_N, weight_N]
    f, p, *weighted = torch.stack([column.double() for column in columns]).cpu().numpy()
    share = weighted[0] / weighted[0].sum() if weighted else np.full_like(f, 1.0 / len(f))
    centre = float((share * f).sum())
    spread = max(float((share * np.square(f - centre)).sum()) ** 0.5, 1e-12)
    z = (f - centre) / spread
    p = p.clip(1e-3, 1 - 1e-3)  # finite where all targets are equal
    slope = offset = 0.0
    for _ in range(NEWTON_STEPS):
        q = 0.5 + 0.5 * np.tanh(0.5 * (slope * z + offset))  # the sigmoid
        curve_N, error_N = np.maximum(q * (1 - q), 1e-6), p - q
        if weighted:
            curve_N, error_N = weighted[0] * curve_N, weighted[0] * error_N
        turned_N = curve_N * z
        curve, cross, square = curve_N.sum() + LINK_PENALTY, turned_N.sum(), (turned_N * z).sum() + LINK_PENALTY
        along_offset, along_slope = error_N.sum() - LINK_PENALTY * offset, (error_N * z).sum() - LINK_PENALTY * slope
        determinant = curve * square - cross * cross
        by_slope = (curve * along_slope - cross * along_offset) / determinant
        by_offset = (square * along_offset - cross * along_slope) / determinant
        longest = max(abs(by_slope), abs(by_offset))
        damping = max(longest / 2.0, 1.0)
        slope, offset = float(slope + by_slope / damping), float(offset + by_offset / damping)
        if longest < TOLERANCE:
            break
    slope = slope / spread
    return slope, offset - slope * centre
