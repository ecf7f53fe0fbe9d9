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
    counts_N = weight_N > 0
    counted_N = torch.where(counts_N, weight_N, 0.0)
    share_N = (counted_N / counted_N.sum()).to(x_N.dtype)  # NaN where nothing counts
    x_N = torch.where(counts_N.view(-1, *[1] * (x_N.dim() - 1)), x_N, 0.0)
    if not len(x_N):  # a sum over nothing would be 0
        return x_N.sum(dim=0) * float("nan")
    # a product of vectors waits for a host's threads, a sum of so few numbers does not
    return (share_N * x_N).sum(dim=0) if x_N.dim() == 1 else torch.tensordot(share_N, x_N, dims=1)


def quantile(weight_N: Tensor, share: float) -> float:
    """The weight that the share `share` of the rows does not exceed."""
    return float(torch.quantile(weight_N.double(), share))
