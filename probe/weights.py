"""How much each row counts, in a fit or a mean. None everywhere means: all alike.

Shapes: N rows.
"""

import torch
from torch import Tensor


def relative(weight_N: Tensor | None) -> Tensor | None:
    """Weights in float64 with a mean of one; None where all are equal, which is bit by bit the same as no weights."""
    if weight_N is None or not len(weight_N) or bool((weight_N == weight_N[0]).all()):
        return None
    weight_N = weight_N.double()
    return weight_N * (len(weight_N) / weight_N.sum())


def mean(x_N: Tensor, weight_N: Tensor | None) -> Tensor:
    """Mean over rows of `x` (N, ...), weighted; a row of weight zero may hold NaN. NaN without a row that counts."""
    if weight_N is None:
        return x_N.mean(dim=0)
    counts = weight_N > 0
    if not counts.any():  # a sum over nothing would be 0
        return torch.full_like(x_N[:0].sum(dim=0), float("nan"))
    share_N = (weight_N[counts] / weight_N[counts].sum()).to(x_N.dtype)
    return torch.tensordot(share_N, x_N[counts], dims=1)


def quantile(weight_N: Tensor, share: float) -> float:
    """The weight that the share `share` of the rows does not exceed."""
    return float(torch.quantile(weight_N.double(), share))
