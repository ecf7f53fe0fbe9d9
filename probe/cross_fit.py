"""Cross-fitting: values of a step's rows from a fit that holds the step's other prompts, in closed form.

A baseline may depend on everything but the row's own response. So the fit may hold the present rows, as long as the
row's whole prompt is left out, and all that the fit is made with is of earlier steps: standardisation and directions,
penalty, unit of the weights, link and range. (Where rows count alike in the regression, `Estimator.alike`, weights are
in the link alone.) The left-out prediction of a linear fit then costs a small system per prompt; other estimators are
fitted in folds (`probe.fold_fit`).

Before anything was fitted there are no earlier steps to take it from: the directions are the prompts' own states,
standardised over the step (they depend on no response), with a stiff penalty that nothing chooses; it is scaled by the
mean weight of the other prompts' rows.

Shapes: R rows of the step, N earlier rows, F features, K dimensions that are solved in, G groups of at most M rows.
"""

import torch
from torch import Tensor

from probe import weights
from probe.estimators.base import Estimator
from probe.fold_fit import fold_fit
from probe.ridge_path import Groups, eigen
from probe.step import EarlierRows, StepRows, without_bad_rows

FIRST_PENALTY = 10.0  # in units of the mean squared singular value: leading directions count half, others a tenth


def cross_fit(
    estimator: Estimator, earlier: EarlierRows, step: StepRows, min_rows: int, prompt_F: Tensor | None
) -> Tensor:
    """(R,) float32 values, each by a fit without the row's prompt; NaN for rows that are not finite, and where that fit
    would have fewer than `min_rows` rows.

    Args:
        estimator: as earlier steps left it; nothing of it is changed.
        prompt_F: bool, features that depend on the prompt alone: what a linear fit starts with while nothing was
            fitted. None or none of them: there is no value then.
    """
    if not estimator.closed_form:
        return fold_fit(estimator, earlier, step, min_rows)
    weight_R, number_R = step.counts_R(of_targets=True), _numbers(step.group_R)
    counted_R = (weight_R > 0).double()
    fitted, earlier_weight_N = estimator.strength_ > 0, earlier.weight_N
    if fitted and estimator.alike:
        weight_R, earlier_weight_N = counted_R, (earlier.weight_N > 0).double()
    if fitted:
        earlier_NK = earlier.coordinate_NK
        if earlier_NK is None:
            earlier_NK = estimator.coordinates(earlier.feature_NF)
        step_RK = estimator.coordinates(without_bad_rows(step.feature_RF, step.finite_R))
        unit = float(earlier_weight_N.double().mean()) if len(earlier_weight_N) else 1.0
        strength_R = torch.full_like(weight_R, estimator.strength_ * unit)
    elif prompt_F is None or not prompt_F.any():
        return torch.full_like(step.reward_R, float("nan"))
    else:
        step_RK, earlier_NK, strength = _first_coordinates(step.feature_RF, earlier.feature_NF, prompt_F)
        others_R = _others(weight_R, number_R, earlier.weight_N)
        strength_R = strength * others_R / _others(counted_R, number_R, torch.ones_like(earlier.weight_N))
    value_R = left_out_values(
        (step_RK, step.target_R, weight_R), number_R, (earlier_NK, earlier.target_N, earlier_weight_N), strength_R
    )
    if fitted:
        value_R = estimator.linked(value_R)
    value_R = value_R.clamp(estimator.low_, estimator.high_)
    enough_R = _others(counted_R, number_R, torch.ones_like(earlier.weight_N)) >= min_rows
    return torch.where(enough_R & step.finite_R, value_R, float("nan")).float()


def left_out_mean(x_R: Tensor, weight_R: Tensor, group_R: Tensor, x_N: Tensor, weight_N: Tensor) -> Tensor:
    """(R,) mean of all rows but those of the row's own group, weighted; NaN where none is left."""
    number_R = _numbers(group_R)
    sum_R = _others(torch.where(weight_R > 0, x_R.double(), 0.0) * weight_R, number_R, x_N.double() * weight_N)
    some_R = _others((weight_R > 0).double(), number_R, (weight_N > 0).double()) > 0
    return torch.where(some_R, sum_R / _others(weight_R, number_R, weight_N), float("nan")).float()


def _numbers(group_R: Tensor) -> Tensor:
    """(R,) groups counted from 0."""
    return torch.unique(group_R, return_inverse=True)[1]


def _others(x_R: Tensor, number_R: Tensor, x_N: Tensor) -> Tensor:
    """(R,) float64 sum over the earlier rows and the step's, those of the row's own group (`_numbers`) left out."""
    sum_G = x_R.new_zeros(len(number_R), dtype=torch.float64)  # at most; how many groups there are is not waited for
    sum_G.index_add_(0, number_R, x_R.double())
    return x_N.double().sum() + (sum_G.sum() - sum_G)[number_R]


def _first_coordinates(x_RF: Tensor, x_NF: Tensor, prompt_F: Tensor) -> tuple[Tensor, Tensor, float]:
    """Standardised prompt states of the step's and the earlier rows, and the penalty on them."""
    x = torch.cat([x_RF, x_NF])[:, prompt_F].double()
    known = x.isfinite().all(dim=1)
    mean = weights.mean(x, known.double())
    z = torch.where(known.unsqueeze(1), x - mean, 0.0)
    deviation = (z.square().sum(dim=0) / known.sum()).sqrt()
    varies = deviation > 1e-6 * mean.abs().clamp(min=1e-30)
    z = z * torch.where(varies, 1.0 / deviation.clamp(min=1e-30), 0.0)
    rank = max(1, min(int(varies.sum()), int(known.sum()) - 1))
    mean_square = max(1, int(known.sum())) * max(1, int(varies.sum())) / rank
    return z[: len(x_RF)], z[len(x_RF) :], FIRST_PENALTY * mean_square


def left_out_values(
    step: tuple[Tensor, Tensor, Tensor],
    group_R: Tensor,
    earlier: tuple[Tensor, Tensor, Tensor],
    strength_R: Tensor,
) -> Tensor:
    """(R,) float64 predictions of the step's rows by the weighted ridge on all rows but those of the row's own group.

    With M = A^T W A + strength over all rows (the intercept is not penalised), C and H the blocks of A M^-1 A^T W^1/2
    and of W^1/2 A M^-1 A^T W^1/2 that belong to a group, left-out predictions are f - C (I - H)^-1 W^1/2 (y - f). So a
    row of weight 0, which is not in the fit, gets its prediction in the same way.

    Args:
        step, earlier: coordinates (R, K), (N, K), targets and weights; a row of weight 0 may have any target.
        strength_R: penalty on the squared coefficients, the same for all rows of a group; positive.
    """
    a, y, weight = (torch.cat(pair).double() for pair in zip(step, earlier, strict=True))
    y = torch.where(weight > 0, y, 0.0)
    total = weight.sum()
    if not total > 0:
        return torch.full_like(strength_R, float("nan"))
    a, mean = a - (weight / total) @ a, (weight / total) @ y
    if a.shape[1] > a.shape[0]:  # a penalty that is the same in all directions does not see a rotation
        a = torch.linalg.qr(a.T, mode="r")[1].T
    root = weight.sqrt()
    rooted = a * root.unsqueeze(1)
    square_K, vectors = eigen(rooted.T @ rooted)
    square_K = square_K.clamp(min=0.0)
    moment_K = vectors.T @ (rooted.T @ (root * (y - mean)))
    rows, groups = len(group_R), Groups(group_R)
    q_GMK, root_GM, y_GM = groups.pad(a[:rows] @ vectors), groups.pad(root[:rows]), groups.pad(y[:rows] - mean)
    inverse_GK = 1.0 / (square_K + groups.pad(strength_R.double()).amax(dim=1, keepdim=True))
    linear_GM = (q_GMK @ (inverse_GK * moment_K).unsqueeze(2)).squeeze(2)
    kernel_GMM = (q_GMK * inverse_GK.unsqueeze(1)) @ q_GMK.transpose(1, 2) + 1.0 / total
    cross_GMM = kernel_GMM * root_GM.unsqueeze(1)
    hat_GMM = root_GM.unsqueeze(2) * cross_GMM
    eye_MM = torch.eye(hat_GMM.shape[1], dtype=hat_GMM.dtype, device=hat_GMM.device)
    error_GM1 = (root_GM * (y_GM - linear_GM)).unsqueeze(2)
    # singular where nothing is left without the group, which then has no value
    solved_GM1, _ = torch.linalg.solve_ex(eye_MM - hat_GMM, error_GM1)
    value_R = groups.unpad(mean + linear_GM - (cross_GMM @ solved_GM1).squeeze(2))
    left_R = _others((weight[:rows] > 0).double(), groups.number_N, (weight[rows:] > 0).double())
    return torch.where((left_R > 0) & value_R.isfinite(), value_R, float("nan"))
