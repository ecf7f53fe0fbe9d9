"""A value probe on hidden states: features of a rollout in, expected reward of its prompt out.

Stands alone: torch, numpy and safetensors only (the offline study also uses matplotlib and tqdm).
"""

from probe.bank import ProbeBank
from probe.distributed import DistributedBank
from probe.prediction import Prediction
from probe.settings import Crossing, FeatureLayout, ProbeSettings

__all__ = ["Crossing", "DistributedBank", "FeatureLayout", "Prediction", "ProbeBank", "ProbeSettings"]
