"""Estimators of the expected reward from a feature row, all with one interface (`Estimator`)."""

from typing import Any

from probe.estimators.base import Estimator
from probe.estimators.ensemble import Ensemble
from probe.estimators.logistic import Logistic
from probe.estimators.mlp import MLP
from probe.estimators.nothing import Nothing
from probe.estimators.ridge import PCARidge, Ridge
from probe.estimators.subspace import SubspaceRidge
from probe.settings import FeatureLayout, ProbeSettings

__all__ = [
    "MLP",
    "Ensemble",
    "Estimator",
    "Logistic",
    "Nothing",
    "PCARidge",
    "Ridge",
    "SubspaceRidge",
    "make_estimator",
]


def make_estimator(settings: ProbeSettings, layout: FeatureLayout, seed: int = 0, kind: str | None = None) -> Estimator:
    """The estimator that `settings.kind` (or `kind`) names; without features, `Nothing`."""
    if not layout.names:
        return Nothing(layout)
    shape: dict[str, Any] = {"rank": settings.rank, "exact_features": settings.exact_features, "seed": seed}
    weighted = settings.weighted
    match kind or settings.kind:
        case "subspace_ridge":
            return SubspaceRidge(layout, penalties=settings.penalties, weighted=weighted, **shape)
        case "ridge":
            return Ridge(layout, penalties=settings.penalties, weighted=weighted)
        case "pca_ridge":
            alpha = settings.penalties[0] if len(settings.penalties) == 1 else 100.0
            return PCARidge(layout, alpha=alpha, seed=seed, weighted=weighted)
        case "logistic":
            return Logistic(layout, penalties=settings.penalties, weighted=weighted, **shape)
        case "mlp":
            return MLP(layout, **shape)
        case "ensemble":
            return Ensemble(
                [make_estimator(settings, layout, seed, kind=k) for k in ("subspace_ridge", "logistic", "mlp")]
            )
        case other:
            raise ValueError(f"unknown kind of probe: {other!r}")
