"""The estimator of a layout without features: it knows nothing and says nothing, so that baselines made of rewards
alone (RLOO, the constant, their mixture) go the same way as those with a probe.

Shapes: N rows.
"""

import torch
from torch import Tensor

from probe.estimators.base import Estimator


class Nothing(Estimator):
    """Never fitted; there is no value, in closed form."""

    closed_form = True

    @property
    def fitted(self) -> bool:
        return False

    def _fit(self, x_NF: Tensor, y_N: Tensor, group_N: Tensor, weight_N: Tensor | None) -> None:
        return None

    def _predict(self, x_NF: Tensor) -> Tensor:
        return torch.full((len(x_NF),), float("nan"), device=x_NF.device)
