"""Which attention a model is loaded with where flash-attn is not installed."""

import importlib.util

from omegaconf import DictConfig, OmegaConf

NAME = "attn_implementation"


def settle_attention(config: DictConfig) -> None:
    """On CUDA without flash-attn, torch's own attention (sdpa) for actor and critic, where the run names none.

    verl asks for flash_attention_2 by default, and transformers would then refuse to load the model.
    """
    if config.trainer.device != "cuda" or importlib.util.find_spec("flash_attn"):
        return
    for role in ("actor_rollout_ref", "critic"):
        model = config[role].model
        if model is not None and NAME not in (model.get("override_config") or {}):
            OmegaConf.update(config, f"{role}.model.override_config.{NAME}", "sdpa", force_add=True)
