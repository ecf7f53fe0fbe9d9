"""How good predictions of the expected reward are, and what they do to the variance of the advantage.

Shapes: R rows, B bins.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probe import weights
from probe.pairing import sibling_mean

NAN = float("nan")


def _host(*columns: Tensor | None) -> list[Any]:
    """float64 on the host: a step asks for some fifty numbers, for each of which a GPU would be waited for."""
    return [None if column is None else column.double().cpu().numpy() for column in columns]


def _mean(x_R: np.ndarray, weight_R: np.ndarray | None) -> float:
    """Weighted; NaN without a row that counts."""
    if weight_R is None:
        return float(x_R.mean()) if len(x_R) else NAN
    total = weight_R.sum()
    return float((weight_R * x_R).sum() / total) if total > 0 else NAN


def pearson(a_R: Tensor, b_R: Tensor, weight_R: Tensor | None = None) -> float:
    """Pearson correlation, NaN where a side does not vary or there are fewer than two rows."""
    if len(a_R) < 2:
        return NAN
    a, b, weight = _host(a_R, b_R, weight_R)
    a, b = (x - _mean(x, weight) for x in (a, b))
    weight = np.ones_like(a) if weight is None else weight
    norm = ((weight * a * a).sum() * (weight * b * b).sum()) ** 0.5
    return float((weight * a * b).sum() / norm) if norm > 0 else NAN


def mae(value_R: Tensor, target_R: Tensor, weight_R: Tensor | None = None) -> float:
    """Mean absolute error."""
    value, target, weight = _host(value_R, target_R, weight_R)
    return _mean(np.abs(value - target), weight)


def rmse(value_R: Tensor, target_R: Tensor, weight_R: Tensor | None = None) -> float:
    """Root of the mean squared error."""
    value, target, weight = _host(value_R, target_R, weight_R)
    return _mean(np.square(value - target), weight) ** 0.5


def brier_skill(value_R: Tensor, target_R: Tensor, constant_R: Tensor, weight_R: Tensor | None = None) -> float:
    """1 - MSE / MSE of the constant: 0 is no better than it, 1 is perfect; NaN where the constant is perfect."""
    value, target, constant, weight = _host(value_R, target_R, constant_R, weight_R)
    reference = _mean(np.square(target - constant), weight)
    return 1.0 - _mean(np.square(target - value), weight) / reference if reference > 0 else NAN


def prediction_scores(
    value_R: Tensor, target_R: Tensor, constant_R: Tensor, weight_R: Tensor | None = None
) -> dict[str, float]:
    """Correlation, mean absolute error and Brier skill. Empty without rows.

    Args:
        value_R: predictions made before the rows were learned.
        target_R: the siblings' mean reward, which a perfect predictor of the pass rate still misses by its noise.
        constant_R: what is predicted without a probe.
        weight_R: how much each row counts.
    """
    if not len(value_R):
        return {}
    return {
        "correlation": pearson(value_R, target_R, weight_R),
        "mae": mae(value_R, target_R, weight_R),
        "brier_skill": brier_skill(value_R, target_R, constant_R, weight_R),
    }


def calibration_metrics(
    value_R: Tensor, target_R: Tensor, bins: int = 5, weight_R: Tensor | None = None
) -> dict[str, float]:
    """The calibration curve of one step as numbers that a tracker can keep; {} with fewer than two rows per bin.

    calibration_value_1 ... and calibration_target_1 ...: mean prediction and mean target of each fifth of the rows, by
    prediction. A step's bins are noisy; their means over steps are not.
    """
    if len(value_R) < 2 * bins:
        return {}
    curve = calibration_curve(value_R, target_R, bins, weight_R=weight_R)
    columns = {"value": curve.value_B.tolist(), "target": curve.target_B.tolist()}
    return {f"calibration_{name}_{bin + 1}": column[bin] for name, column in columns.items() for bin in range(bins)}


@dataclass(frozen=True)
class Calibration:
    """Of B bins of equal count, by value: mean value, mean target, the target's standard error, rows."""

    value_B: Tensor
    target_B: Tensor
    error_B: Tensor
    count_B: Tensor

    @property
    def expected_error(self) -> float:
        """Mean |value - target| over rows by bin (expected calibration error)."""
        weight_B = self.count_B / self.count_B.sum()
        return float((weight_B * (self.value_B - self.target_B).abs()).sum())


def calibration_curve(
    value_R: Tensor,
    target_R: Tensor,
    bins: int = 10,
    group_R: Tensor | None = None,
    weight_R: Tensor | None = None,
) -> Calibration:
    """Mean target beside mean value in bins of (nearly) equal count. Raises ValueError without rows.

    Args:
        group_R: prompts; the targets of one prompt's rows say much the same, and its errors count as one (a
            cluster-robust standard error). None: rows are independent.
        weight_R: how much each row counts in its bin's means; bins are still of equal count.
    """
    if not len(value_R):
        raise ValueError("a calibration curve needs rows")
    value, target, weight = _host(value_R, target_R, weight_R)
    group = np.arange(len(value)) if group_R is None else group_R.cpu().numpy()
    parts = [part for part in np.array_split(value.argsort(kind="stable"), min(bins, len(value))) if len(part)]

    def mean(x: np.ndarray, part: np.ndarray) -> float:
        return _mean(x[part], None if weight is None else weight[part])

    def standard_error(part: np.ndarray) -> float:
        _, place = np.unique(group[part], return_inverse=True)
        error, total = target[part] - mean(target, part), float(len(part))
        if weight is not None:
            error, total = error * weight[part], float(weight[part].sum())
        return float(np.square(np.bincount(place, error)).sum() ** 0.5 / total)

    def column(numbers) -> Tensor:
        return torch.tensor(list(numbers), dtype=torch.float64, device="cpu")

    return Calibration(
        value_B=column(mean(value, part) for part in parts),
        target_B=column(mean(target, part) for part in parts),
        error_B=column(standard_error(part) for part in parts),
        count_B=column(map(len, parts)),
    )


def advantage_variance(
    value_R: Tensor,
    reward_R: Tensor,
    group_R: Tensor,
    oracle_R: Tensor | None = None,
    weight_R: Tensor | None = None,
) -> dict[str, float]:
    """Mean square of reward minus baseline, by baseline, over the rows that have a sibling.

    Of unbiased baselines (mean advantage zero) this is the variance that the gradient sees.

    Args:
        value_R: predictions from each row's own states; the baseline is the mean of its siblings' values.
        oracle_R: the true expected reward, where it is known.
        weight_R: how much each row counts, also in the constant.

    Returns:
        probe, rloo, constant, and oracle where given; NaN without such rows.
    """
    reward_R = reward_R.double()
    baselines = {
        "probe": sibling_mean(value_R.double(), group_R),
        "rloo": sibling_mean(reward_R, group_R),
        "constant": weights.mean(reward_R, weight_R).expand(len(reward_R)),
    }
    if oracle_R is not None:
        baselines["oracle"] = oracle_R.double()
    paired_R = torch.stack([baseline.isfinite() for baseline in baselines.values()]).all(dim=0) & reward_R.isfinite()
    counts_R = None if weight_R is None else weight_R[paired_R]
    return {name: weights.mean((reward_R - b)[paired_R].square(), counts_R).item() for name, b in baselines.items()}
