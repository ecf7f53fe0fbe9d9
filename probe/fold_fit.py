"""Cross-fitting of estimators that have no closed form: the step's prompts are dealt into folds, and the values of a
fold are said by a fit that holds the earlier rows and the step's other folds.

Such a fit chooses everything anew, directions and penalty and how long to learn, and may: nothing of the fold's prompts
enters it. It costs a fit from scratch per fold, in each step.

Shapes: R rows of the step, N earlier rows, F features.
"""

import copy

import torch
from torch import Tensor

from probe.estimators.base import Estimator
from probe.step import EarlierRows, StepRows

FOLDS = 5


def fold_fit(estimator: Estimator, earlier: EarlierRows, step: StepRows, min_rows: int) -> Tensor:
    """(R,) float32 values, each by a fit without the row's prompt; NaN for rows that are not finite, and where that fit
    would have fewer than `min_rows` rows.

    Args:
        estimator: copied for each fold; nothing of it is changed.
    """
    weight_R = step.counts_R(of_targets=True)
    _, place_R = torch.unique(step.group_R, return_inverse=True)
    group_R = place_R + (int(earlier.group_N.max()) + 1 if len(earlier.group_N) else 0)
    x_NF = torch.cat([step.feature_RF, earlier.feature_NF])
    target_N = torch.cat([step.target_R, earlier.target_N])
    group_N = torch.cat([group_R, earlier.group_N])
    weight_N = torch.cat([weight_R, earlier.weight_N.double()])
    value_R = torch.full_like(step.reward_R, float("nan"))
    for fold in range(FOLDS):
        out_R = place_R % FOLDS == fold
        said_R = out_R & step.finite_R
        kept_N = weight_N > 0  # rows that cannot be learned weigh nothing
        kept_N[: len(out_R)] &= ~out_R
        if said_R.any() and int(kept_N.sum()) >= min_rows:
            fit = copy.deepcopy(estimator).fit(x_NF[kept_N], target_N[kept_N], group_N[kept_N], weight_N[kept_N])
            value_R[said_R] = fit.predict(step.feature_RF[said_R])
    return value_R
