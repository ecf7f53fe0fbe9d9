"""How much each baseline counts: weights of probe, RLOO and constant, from errors on prompts the probe had not seen.

The weights of a step are made of earlier steps' rows only, so a mixture of unbiased baselines stays unbiased.

Shapes: N rows of the window, E baselines.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probe.pairing import sibling_mean_numpy

BASELINES = ("probe", "rloo", "constant")
ALWAYS = {"off": (1.0, 0.0, 0.0), "rloo": (0.0, 1.0, 0.0), "constant": (0.0, 0.0, 1.0)}  # modes that judge nothing


@dataclass(frozen=True)
class Verdict:
    """weight_E (probe, RLOO, constant; sums to one) and the mean squared error of each against the rows' own rewards
    (NaN where a baseline has no row to be judged on)."""

    weight_E: tuple[float, float, float]
    error_E: tuple[float, float, float]


def judge(mode: str, value_N: Tensor, reward_N: Tensor, group_N: Tensor, weight_N: Tensor | None = None) -> Verdict:
    """Compare the baselines that the window's rows would have got.

    Args:
        mode: "combine" (weights that minimise the error of the mixture), "switch" (the best one), or the one that is
            always taken (`ALWAYS`).
        value_N: the probe's out-of-prompt predictions; NaN where there is none.
        reward_N: own rewards.
        group_N: prompts.
        weight_N: float64, how much a row's error counts; RLOO and the constant are mean rewards in these weights.
    """
    # on the host, by one transfer, and by numpy: some two hundred small calls, for each of which a GPU would be waited
    # for, and torch on a host of many cores would wake its threads (benchmarks/gpu, section probe)
    columns = [value_N, reward_N] if weight_N is None else [value_N, reward_N, weight_N]
    own_N, reward, *weighted = torch.stack([column.double() for column in columns]).cpu().numpy()
    _, place_N = np.unique(group_N.cpu().numpy(), return_inverse=True)
    weight = weighted[0] if weighted else np.ones_like(reward)
    paired_N, rloo_N = sibling_mean_numpy(own_N, place_N), sibling_mean_numpy(reward, place_N, weight)
    # a row without a sibling (prompt-only probe) gets its own value
    alone_N = ~np.isfinite(sibling_mean_numpy(reward, place_N))
    probe_N = np.where(alone_N, own_N, paired_N)
    candidates_NE = np.stack([probe_N, rloo_N, _constant(reward, place_N, weight)], axis=1)
    error_E = [_mean_square(reward - column, weight) for column in candidates_NE.T]
    if mode in ALWAYS:
        return Verdict(ALWAYS[mode], tuple(error_E))  # type: ignore[arg-type]
    present = [index for index, error in enumerate(error_E) if error == error]
    weight_E = [0.0, 0.0, 0.0]
    if mode == "switch":
        weight_E[min(present, key=lambda index: error_E[index])] = 1.0
    else:
        judged_N = np.isfinite(candidates_NE[:, present]).all(axis=1)
        found = simplex_least_squares(candidates_NE[judged_N][:, present], reward[judged_N], weight[judged_N])
        for index, share in zip(present, found.tolist(), strict=True):
            weight_E[index] = share
    return Verdict(tuple(weight_E), tuple(error_E))  # type: ignore[arg-type]


def _constant(reward_N: np.ndarray, place_N: np.ndarray, weight_N: np.ndarray) -> np.ndarray:
    """Mean reward of all other prompts (N,); NaN with one prompt."""
    count_G, sum_G = np.bincount(place_N, weight_N), np.bincount(place_N, reward_N * weight_N)
    with np.errstate(divide="ignore", invalid="ignore"):
        return ((sum_G.sum() - sum_G) / (count_G.sum() - count_G))[place_N]


def _mean_square(error_N: np.ndarray, weight_N: np.ndarray) -> float:
    """NaN without a row that counts."""
    known_N = np.isfinite(error_N) & (weight_N > 0)
    total = weight_N[known_N].sum()
    return float((weight_N[known_N] * np.square(error_N[known_N])).sum() / total) if total > 0 else float("nan")


def simplex_least_squares(a_NE: np.ndarray, y_N: np.ndarray, weight_N: np.ndarray | None = None) -> np.ndarray:
    """(E,) weights, non-negative and summing to one, that minimise |A w - y|: exact, over all faces of the simplex.

    For a handful of columns; the time doubles with each.

    Args:
        weight_N: how much a row's squared error counts.
    """
    count = a_NE.shape[1]
    if weight_N is not None:  # the columns' weights sum to one, so a row's factor can go to both sides
        root_N = np.sqrt(weight_N)
        a_NE, y_N = a_NE * root_N[:, None], y_N * root_N
    best_error, best_E = float("inf"), np.zeros(count)
    for subset in range(1, 2**count):
        active = [index for index in range(count) if subset >> index & 1]
        base_N = a_NE[:, active[0]]
        difference_EN = (a_NE[:, active[1:]] - base_N[:, None]).T
        # columns can agree to the last digit: least squares of minimal norm
        # by sums: products of so few rows would be spent waking a host's threads
        gram = (difference_EN[:, None] * difference_EN).sum(axis=2)
        found = np.linalg.pinv(gram) @ (difference_EN * (y_N - base_N)).sum(axis=1)
        weights = [1.0 - float(found.sum()), *found.tolist()]
        if min(weights) < 0:
            continue  # outside: its best point lies on another face
        error = float(np.square(base_N + (difference_EN * found[:, None]).sum(axis=0) - y_N).mean())
        if error < best_error * (1 - 1e-12) or best_error == float("inf"):
            best_error, best_E = error, np.zeros(count)
            best_E[active] = weights
    return best_E
