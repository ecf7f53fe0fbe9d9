"""A value probe on hidden states: features of a rollout in, expected reward of its prompt out.

Stands alone: torch, numpy and safetensors only (the offline study also uses matplotlib and tqdm).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from probe.settings import Crossing, FeatureLayout, ProbeSettings

if TYPE_CHECKING:
    from probe.bank import ProbeBank
    from probe.distributed import DistributedBank
    from probe.prediction import Prediction

__all__ = ["Crossing", "DistributedBank", "FeatureLayout", "Prediction", "ProbeBank", "ProbeSettings"]


def __getattr__(name: str) -> Any:
    """What needs torch comes at first use: a launcher, which only reads settings, does not wait for it."""
    modules = {"ProbeBank": "bank", "DistributedBank": "distributed", "Prediction": "prediction"}
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{modules[name]}"), name)
