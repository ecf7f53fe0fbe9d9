"""A value probe on hidden states: features of a rollout in, expected reward of its prompt out.

Stands alone: torch, numpy and safetensors only.
"""

from probe.bank import Prediction, ProbeBank
from probe.settings import FeatureLayout, ProbeSettings

__all__ = ["FeatureLayout", "Prediction", "ProbeBank", "ProbeSettings"]
