"""How good predictions of the expected reward are.

Shapes: R rows.
"""

from torch import Tensor


def pearson(a_R: Tensor, b_R: Tensor) -> float:
    """Pearson correlation, NaN where a side does not vary or there are fewer than two rows."""
    if len(a_R) < 2:
        return float("nan")
    a_R, b_R = a_R.double() - a_R.double().mean(), b_R.double() - b_R.double().mean()
    norm = (a_R.square().sum() * b_R.square().sum()).sqrt()
    return (a_R @ b_R / norm).item() if norm > 0 else float("nan")


def prediction_scores(value_R: Tensor, target_R: Tensor, constant_R: Tensor) -> dict[str, float]:
    """Correlation, mean absolute error, and Brier skill: 1 - MSE / MSE of the constant. Empty without rows.

    Args:
        value_R: predictions made before the rows were learned.
        target_R: the siblings' mean reward, which a perfect predictor of the pass rate still misses by its noise.
        constant_R: what is predicted without a probe.
    """
    if not len(value_R):
        return {}
    value_R, target_R, constant_R = value_R.double(), target_R.double(), constant_R.double()
    reference = (target_R - constant_R).square().mean().item()
    error = (target_R - value_R).square().mean().item()
    return {
        "correlation": pearson(value_R, target_R),
        "mae": (target_R - value_R).abs().mean().item(),
        "brier_skill": 1.0 - error / reference if reference > 0 else float("nan"),
    }
