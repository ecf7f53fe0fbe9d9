"""Statistics of the value study: estimates of prompts' expected reward against their pass rates.

Shapes: P prompts, M estimates of each (from different rollouts), K rollouts of a pass rate.
"""

import torch
from torch import Tensor

from probe.metrics import brier_skill, mae, pearson, rmse


def score(value_PM: Tensor, rate_P: Tensor, constant: Tensor) -> dict[str, float]:
    """Correlation (None where the estimate does not vary), errors, and skill over the constant; every estimate counts.

    The pass rate is itself a sample, so no estimator reaches an error of 0 (see `noise_ceiling`).
    """
    value_R, rate_R = value_PM.flatten(), rate_P.repeat_interleave(value_PM.shape[1])
    correlation = pearson(value_R, rate_R)
    return {
        "pearson": correlation if correlation == correlation else None,  # type: ignore[dict-item]
        "mae": mae(value_R, rate_R),
        "rmse": rmse(value_R, rate_R),
        "skill": brier_skill(value_R, rate_R, constant.expand_as(rate_R)),
    }


def noise_ceiling(reward_PK: Tensor) -> dict[str, float]:
    """What the true pass rate would score against avg@K of 0/1 rewards: correlation and root mean squared error.

    The variance of avg@K over prompts is that of the true rate plus the sampling noise, whose unbiased estimate is the
    mean over prompts of the sample variance / K.
    """
    reward_PK = reward_PK.double()
    total = reward_PK.mean(dim=1).var()
    noise = (reward_PK.var(dim=1) / reward_PK.shape[1]).mean()
    return {
        "pearson": float(((total - noise) / total).clamp(min=0).sqrt()) if total > 0 else 0.0,
        "rmse": float(noise.sqrt()),
    }


def over_seeds(values: list[float | None]) -> tuple[float, float, float] | None:
    """Mean, lowest, highest; None where a seed has no number."""
    if not values or any(value is None for value in values):
        return None
    found = torch.tensor(values, dtype=torch.float64)
    return float(found.mean()), float(found.min()), float(found.max())
