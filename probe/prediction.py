"""What the bank says of a step's rows.

Shapes: R rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """Of R rows: value_R (NaN where not fitted or the row is not finite), weight_R3 (of probe, RLOO and constant in the
    row's baseline; sums to one), constant_R (mean reward of the window, NaN while it is empty), row_weight_R (what the
    row counts for its siblings; 1 where rows have no weights). All float32."""

    value_R: Tensor
    weight_R3: Tensor
    constant_R: Tensor
    row_weight_R: Tensor

    @property
    def table_R6(self) -> Tensor:
        """(R, 6): the columns in their order."""
        ends = (self.constant_R.unsqueeze(1), self.row_weight_R.unsqueeze(1))
        return torch.cat([self.value_R.unsqueeze(1), self.weight_R3, *ends], dim=1)

    @classmethod
    def of_table(cls, said_R6: Tensor) -> "Prediction":
        return cls(said_R6[:, 0], said_R6[:, 1:4], said_R6[:, 4], said_R6[:, 5])
