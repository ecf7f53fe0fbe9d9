"""How good predictions of the expected reward are, and what they do to the variance of the advantage.

Shapes: R rows, B bins.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from probe import weights
from probe.pairing import sibling_mean

NAN = float("nan")


def pearson(a_R: Tensor, b_R: Tensor, weight_R: Tensor | None = None) -> float:
    """Pearson correlation, NaN where a side does not vary or there are fewer than two rows."""
    if len(a_R) < 2:
        return NAN
    a_R, b_R = (x_R.double() - weights.mean(x_R.double(), weight_R) for x_R in (a_R, b_R))
    if weight_R is not None:
        a_R, b_R = a_R * weight_R.double().sqrt(), b_R * weight_R.double().sqrt()
    norm = (a_R.square().sum() * b_R.square().sum()).sqrt()
    return (a_R @ b_R / norm).item() if norm > 0 else NAN


def mae(value_R: Tensor, target_R: Tensor, weight_R: Tensor | None = None) -> float:
    """Mean absolute error."""
    return weights.mean((value_R.double() - target_R.double()).abs(), weight_R).item()


def rmse(value_R: Tensor, target_R: Tensor, weight_R: Tensor | None = None) -> float:
    """Root of the mean squared error."""
    return weights.mean((value_R.double() - target_R.double()).square(), weight_R).sqrt().item()


def brier_skill(value_R: Tensor, target_R: Tensor, constant_R: Tensor, weight_R: Tensor | None = None) -> float:
    """1 - MSE / MSE of the constant: 0 is no better than it, 1 is perfect; NaN where the constant is perfect."""
    reference = weights.mean((target_R.double() - constant_R.double()).square(), weight_R).item()
    error = weights.mean((target_R.double() - value_R.double()).square(), weight_R).item()
    return 1.0 - error / reference if reference > 0 else NAN


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
    # many small numbers are asked for one by one: all on the host
    value_R, target_R = value_R.double().cpu(), target_R.double().cpu()
    group_R = torch.arange(len(value_R), device="cpu") if group_R is None else group_R.cpu()
    order = value_R.argsort(stable=True)
    parts = [part for part in order.tensor_split(min(bins, len(order))) if len(part)]

    weight_R = None if weight_R is None else weight_R.double().cpu()

    def mean(x_R: Tensor, part: Tensor) -> Tensor:
        return weights.mean(x_R[part], None if weight_R is None else weight_R[part])

    def column(function) -> Tensor:
        return torch.tensor([float(function(part)) for part in parts], dtype=torch.float64, device="cpu")

    def standard_error(part: Tensor) -> Tensor:
        _, place_P = torch.unique(group_R[part], return_inverse=True)
        error_P, total = target_R[part] - mean(target_R, part), float(len(part))
        if weight_R is not None:
            error_P, total = error_P * weight_R[part], float(weight_R[part].sum())
        sum_G = error_P.new_zeros(len(part)).index_add_(0, place_P, error_P)
        return sum_G.square().sum().sqrt() / total

    return Calibration(
        value_B=column(lambda part: mean(value_R, part)),
        target_B=column(lambda part: mean(target_R, part)),
        error_B=column(standard_error),
        count_B=column(len),
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
