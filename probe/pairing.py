"""Means over the siblings of a row: the other rollouts of its prompt.

Shapes: R rows, G groups.
"""

import numpy as np
import torch
from torch import Tensor


def sibling_mean(x_R: Tensor, group_R: Tensor, weight_R: Tensor | None = None) -> Tensor:
    """Mean of `x` over the other rows of the same group, (R,); non-finite x are no siblings, NaN where none is left.

    Used for targets (x = rewards), for baselines (x = predicted values) and for RLOO (arXiv 2402.14740).

    Args:
        x_R: float, any order of rows.
        group_R: integer ids, one per prompt.
        weight_R: how much each row counts for its siblings, finite; a row of weight zero is no sibling.
    """
    _, place_R = torch.unique(group_R.to(x_R.device), return_inverse=True)
    finite_R = x_R.isfinite()
    # float64: a group's sum minus the row itself must not leave rounding behind
    value_R, count_R = torch.where(finite_R, x_R, torch.zeros_like(x_R)).double(), finite_R.double()
    if weight_R is not None:
        count_R = torch.where(finite_R, weight_R.to(x_R.device).double(), 0.0)
        value_R = value_R * count_R
    groups = len(place_R)  # at most; how many there are is not waited for
    sum_G = value_R.new_zeros(groups).index_add_(0, place_R, value_R)
    count_G = value_R.new_zeros(groups).index_add_(0, place_R, count_R)
    mean_R = (sum_G[place_R] - value_R) / (count_G[place_R] - count_R)
    some_R = (count_R > 0).double()  # whole numbers: no rounding where nobody else counts
    some_G = value_R.new_zeros(groups).index_add_(0, place_R, some_R)
    return torch.where(some_G[place_R] > some_R, mean_R, torch.full_like(mean_R, float("nan"))).to(x_R.dtype)


def sibling_mean_numpy(x_N: np.ndarray, place_N: np.ndarray, weight_N: np.ndarray | None = None) -> np.ndarray:
    """`sibling_mean` of float64 numbers on the host, where a call of torch may wake all of its threads.

    Args:
        place_N: groups counted from 0. weight_N: finite, not negative.
    """
    finite_N = np.isfinite(x_N)
    count_N = finite_N.astype(np.float64) if weight_N is None else np.where(finite_N, weight_N, 0.0)

    def others(part_N: np.ndarray) -> np.ndarray:
        return np.bincount(place_N, part_N)[place_N] - part_N

    with np.errstate(divide="ignore", invalid="ignore"):
        mean_N = others(np.where(finite_N, x_N, 0.0) * count_N) / others(count_N)
    return np.where(others((count_N > 0).astype(np.float64)) > 0, mean_N, np.nan)
