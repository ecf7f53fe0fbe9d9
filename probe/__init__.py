"""A value probe on hidden states: features of a rollout in, expected reward of its prompt out.

Stands alone: torch, numpy and safetensors only (the offline study also uses matplotlib and tqdm).
"""

from probe.bank import Prediction, ProbeBank
from probe.distributed import DistributedBank
from probe.settings import FeatureLayout, ProbeSettings

__all__ = ["DistributedBank", "FeatureLayout", "Prediction", "ProbeBank", "ProbeSettings"]
