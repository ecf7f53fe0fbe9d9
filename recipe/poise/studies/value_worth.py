"""What values could gain: how much of a reward's variance lies between prompts, and how much of that can be told.

A baseline's part in the variance of the gradient is E[w (r - b)^2] with w the squared norm of the score. Relative to
the best constant, the weighted R^2 of a value is what it takes off. The most that any value of the prompt can take off
is the share of the weighted variance that lies between prompts. Each number stands once with equal weights (the
variance of the reward) and once with score energies (what the gradient sees).

Shapes: P prompts, N rollouts each, R = P N rows, E earlier rows of other prompts, B bootstrap samples.
"""

from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from probe import FeatureLayout, ProbeSettings
from probe.estimators import make_estimator
from probe.pairing import sibling_mean
from probe.step import prepare
from recipe.poise.studies.advantages import constant, groups_of
from recipe.poise.studies.gradient_statistics import Interval
from recipe.poise.studies.rollout_pool import Pool

SUBSETS = 70  # at most, of a prompt's rollouts


def between_prompts(reward_PN: np.ndarray, weight_PN: np.ndarray, level: float) -> np.ndarray:
    """(P,) what the best value of each prompt takes off the weighted squared error of `level`, per rollout, on average
    over prompts.

    A prompt's own weighted mean of m rollouts takes off too much, since it fits their noise. What all N, halves and
    quarters of them take off is carried on in 1 / m and 1 / m^2 to m = infinity. For equal weights this is exact (the
    analysis of variance); where weights are heavy-tailed or go with the reward some of the noise stays, and the number
    is an upper bound.
    """
    count = reward_PN.shape[1]
    moved_PN = weight_PN * (reward_PN - level)

    def taken_off(size: int) -> np.ndarray:
        subsets = list(combinations(range(count), size))
        chosen = subsets[:: max(1, len(subsets) // SUBSETS)]
        parts = (moved_PN[:, rows].sum(1) ** 2 / np.maximum(weight_PN[:, rows].sum(1), 1e-300) for rows in chosen)
        return np.sum(list(parts), axis=0) / len(chosen) / size

    sizes = [count, count // 2, count // 4] if count >= 8 else [count, count // 2]
    share = np.linalg.solve(np.vander(1 / np.array(sizes), increasing=True).T, np.eye(len(sizes))[0])
    return np.sum([part * taken_off(size) for part, size in zip(share, sizes, strict=True)], axis=0)


def told(
    reward_R: Tensor, value_R: Tensor, constant_R: Tensor, weight_R: Tensor, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """(P,) weighted squared error that the value takes off the constant's, and the constant's. A row without a value
    has the constant."""
    value_R = torch.where(value_R.isfinite(), value_R, constant_R).double()
    before_R = weight_R * (reward_R - constant_R).square()
    after_R = weight_R * (reward_R - value_R).square()
    return (before_R - after_R).view(-1, n).mean(1).numpy(), before_R.view(-1, n).mean(1).numpy()


def by_outcome(x_R: Tensor, reward_R: Tensor, weight_R: Tensor, n: int, levels: int) -> Tensor:
    """(R,) weighted mean reward where the siblings' outcome x (in 0..1, in so many steps) is the same, of even prompts
    for odd ones and the other way round; NaN for an outcome that the other half does not have."""
    even_R = groups_of(len(x_R), n) % 2 == 0
    bin_R = (x_R * levels).nan_to_num(-1).round().long()
    bin_R = bin_R - bin_R.min()
    value_R = torch.full_like(reward_R, float("nan"))
    for half_R in (even_R, ~even_R):
        w, y, b = weight_R[~half_R], reward_R[~half_R], bin_R[~half_R]
        bins = int(bin_R.max()) + 1
        value_R[half_R] = (torch.bincount(b, w * y, bins) / torch.bincount(b, w, bins))[bin_R[half_R]]
    return value_R


def probe_values(earlier: Pool, pool: Pool, weight_E: Tensor | None, names: tuple[str, ...], seed: int) -> Tensor:
    """(R,) values by the project's estimator from these features, fitted on the earlier rows; of pairs of neighbours,
    each row has its sibling's value, or with the prompt's state alone its own. "reward" is the sibling's reward."""
    layout, prompt_only = earlier.layout, names == ("prompt",)
    sizes = tuple(1 if name == "reward" else layout.sizes[layout.names.index(name)] for name in names)

    def columns(of: Pool) -> Tensor:
        parts = [
            of.reward_R.unsqueeze(1) if name == "reward" else of.feature_RF[:, layout.slices[name]] for name in names
        ]
        return torch.cat(parts, dim=1)

    estimator = make_estimator(ProbeSettings(), FeatureLayout(names, sizes), seed=seed)
    group_E = torch.arange(len(earlier.reward_R)) if prompt_only else groups_of(len(earlier.reward_R), 2)
    rows = prepare(
        columns(earlier), earlier.reward_R, group_E, None if weight_E is None else weight_E.float(), prompt_only
    )
    good = rows.good_R
    weight = None if rows.target_weight_R is None else rows.target_weight_R[good]
    estimator.fit(rows.feature_RF[good], rows.target_R[good], earlier.prompt_R[good], weight)
    value_R = estimator.predict(columns(pool))
    return value_R if prompt_only else sibling_mean(value_R, groups_of(len(value_R), 2))


def worth(
    earlier: Pool,
    pool: Pool,
    weight_E: Tensor | None,
    weight_R: Tensor,
    true_R: Tensor,
    drawn_BP: np.ndarray,
    seed: int,
) -> dict[str, Interval]:
    """Weighted R^2 by source, of rows that no fit has seen: what it takes off the error of the constant.

    Args:
        weight_E, weight_R: what rows weigh in fits and means, of the earlier rows and of the pool's; weight_E None: all
            alike. true_R: what they weigh in the error.
    """
    n, reward_R = pool.n, pool.reward_R.double()
    constant_R = reward_R - constant(reward_R, n, weight_R)
    group_R = groups_of(len(reward_R), n)
    pair_R = groups_of(len(reward_R), 2)
    states = earlier.layout.names
    values = {
        "the prompt's state": probe_values(earlier, pool, weight_E, ("prompt",), seed),
        "a sibling's states": probe_values(earlier, pool, weight_E, states, seed),
        "a sibling's reward": by_outcome(sibling_mean(reward_R, pair_R), reward_R, weight_R, n, 1),
        "a sibling's states and reward": probe_values(earlier, pool, weight_E, (*states, "reward"), seed),
        f"rewards of {n - 1} siblings": by_outcome(sibling_mean(reward_R, group_R), reward_R, weight_R, n, n - 1),
    }
    level = float((true_R * reward_R).sum() / true_R.sum())
    shape = (-1, n)
    perfect_P = between_prompts(reward_R.view(shape).numpy(), true_R.view(shape).numpy(), level)
    base_P = (true_R * (reward_R - level).square()).view(shape).mean(1).numpy()
    found = {"the prompt, at most": _share(perfect_P, base_P, drawn_BP)}
    for name, value_R in values.items():
        found[name] = _share(*told(reward_R, value_R, constant_R, true_R, n), drawn_BP)
    return found


def _share(part_P: np.ndarray, whole_P: np.ndarray, drawn_BP: np.ndarray) -> Interval:
    if not whole_P.sum() > 0:
        return Interval(0.0, 0.0, 0.0)
    whole_B = np.maximum(drawn_BP @ whole_P, 1e-300)
    return Interval.of(float(part_P.sum() / whole_P.sum()), drawn_BP @ part_P / whole_B)
