"""How much each baseline counts: weights of probe, RLOO and constant, from errors on prompts the probe had not seen.

The weights of a step are made of earlier steps' rows only, so a mixture of unbiased baselines stays unbiased.

Shapes: N rows of the window, E baselines.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from probe import weights
from probe.pairing import sibling_mean

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
    # small systems, one after the other: on a GPU each would wait for the last (benchmarks/gpu, section kernels)
    reward_N, own_N, group_N = reward_N.double().cpu(), value_N.double().cpu(), group_N.cpu()
    weight_N = None if weight_N is None else weight_N.cpu()
    paired_N = sibling_mean(own_N, group_N)
    rloo_N = sibling_mean(reward_N, group_N, weight_N)
    # a row without a sibling (prompt-only probe) gets its own value
    alone_N = ~sibling_mean(reward_N, group_N).isfinite()
    probe_N = torch.where(alone_N, own_N, paired_N)
    candidates_NE = torch.stack([probe_N, rloo_N, _constant(reward_N, group_N, weight_N)], dim=1)
    error_E = torch.stack([_mean_square(reward_N - column, weight_N) for column in candidates_NE.unbind(1)]).tolist()
    if mode in ALWAYS:
        return Verdict(ALWAYS[mode], tuple(error_E))
    present = [index for index, error in enumerate(error_E) if error == error]
    weight_E = [0.0, 0.0, 0.0]
    if mode == "switch":
        weight_E[min(present, key=lambda index: error_E[index])] = 1.0
    else:
        judged_N = candidates_NE[:, present].isfinite().all(dim=1)
        judged_weight_N = None if weight_N is None else weight_N[judged_N]
        found = simplex_least_squares(candidates_NE[judged_N][:, present], reward_N[judged_N], judged_weight_N)
        for index, weight in zip(present, found.tolist(), strict=True):
            weight_E[index] = weight
    return Verdict(tuple(weight_E), tuple(error_E))  # type: ignore[arg-type]


def _constant(reward_N: Tensor, group_N: Tensor, weight_N: Tensor | None) -> Tensor:
    """Mean reward of all other prompts (N,); NaN with one prompt."""
    _, place_N = torch.unique(group_N, return_inverse=True)
    count_G = torch.bincount(place_N, weight_N).double()
    sum_G = torch.zeros_like(count_G).index_add_(0, place_N, reward_N if weight_N is None else reward_N * weight_N)
    return ((sum_G.sum() - sum_G) / (count_G.sum() - count_G))[place_N]


def _mean_square(error_N: Tensor, weight_N: Tensor | None) -> Tensor:
    known_N = error_N.isfinite()
    return weights.mean(error_N[known_N].square(), None if weight_N is None else weight_N[known_N])


def simplex_least_squares(a_NE: Tensor, y_N: Tensor, weight_N: Tensor | None = None) -> Tensor:
    """(E,) weights, non-negative and summing to one, that minimise |A w - y|: exact, over all faces of the simplex.

    For a handful of columns; the time doubles with each.

    Args:
        weight_N: how much a row's squared error counts.
    """
    count = a_NE.shape[1]
    if weight_N is not None:  # the columns' weights sum to one, so a row's factor can go to both sides
        root_N = weight_N.sqrt()
        a_NE, y_N = a_NE * root_N.unsqueeze(1), y_N * root_N
    best_error, best_E = float("inf"), a_NE.new_zeros(count)
    for subset in range(1, 2**count):
        active = [index for index in range(count) if subset >> index & 1]
        base_N = a_NE[:, active[0]]
        difference = a_NE[:, active[1:]] - base_N.unsqueeze(1)
        # columns can agree to the last digit: least squares of minimal norm
        # by sums: products of so few rows would be spent waking a host's threads
        gram = (difference.unsqueeze(2) * difference.unsqueeze(1)).sum(dim=0)
        found = torch.linalg.pinv(gram) @ (difference * (y_N - base_N).unsqueeze(1)).sum(dim=0)
        weights = [1.0 - float(found.sum()), *found.tolist()]
        if min(weights) < 0:
            continue  # outside: its best point lies on another face
        error = float((base_N + (difference * found).sum(dim=1) - y_N).square().mean())
        if error < best_error * (1 - 1e-12) or best_error == float("inf"):
            best_error, best_E = error, a_NE.new_zeros(count)
            best_E[active] = torch.tensor(weights, dtype=a_NE.dtype, device=a_NE.device)
    return best_E
