"""The check of trainer_mode separate_async at start: what verl would find after the models are loaded, or never."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from probe.checked import checked
from probe.settings import Count, Text
from recipe.poise.correction import bypasses

MODE = "separate_async"
STANDALONE = "recipe.poise.rollout.standalone"
GLOO = "recipe.poise.cpu.gloo_engine"
OURS = "recipe.poise."  # how the name of a worker extension of ours begins
ENGINE = "actor_rollout_ref.rollout.checkpoint_engine"
EXTENSION = "actor_rollout_ref.rollout.engine_kwargs.vllm.worker_extension_cls"
SETTINGS: dict[str, Any] = {
    "data.train_batch_size": Count,
    "actor_rollout_ref.actor.ppo_mini_batch_size": Count,
    "trainer.v1.separate_async.parameter_sync_step": Count,
    "trainer.nnodes": Count,
    "trainer.n_gpus_per_node": Count,
    f"{ENGINE}.backend": Text,
    f"{ENGINE}.custom_backend_module": Text | tuple[Text, ...] | None,
    EXTENSION: Text | None,
}


def check_separate(config: DictConfig) -> None:
    """Nothing in other modes.

    Raises:
        ValueError: with the setting at fault and its remedy.
    """
    if OmegaConf.select(config, "trainer.v1.trainer_mode") != MODE:
        return
    found = {path: checked(OmegaConf.select(config, path), kind, path) for path, kind in SETTINGS.items()}
    _check_shape(config, found)
    _check_weights_travel(config, found)


def _check_shape(config: DictConfig, found: dict[str, Any]) -> None:
    """Batches, and the two pools of devices."""
    batch, mini, syncs = (found[path] for path in list(SETTINGS)[:3])
    if batch != syncs * mini:
        raise ValueError(
            f"data.train_batch_size={batch}, actor_rollout_ref.actor.ppo_mini_batch_size={mini}, "
            f"trainer.v1.separate_async.parameter_sync_step={syncs}: in {MODE} a step is parameter_sync_step "
            f"updates of a mini-batch each. Set data.train_batch_size={syncs * mini}, or one of the others"
        )
    rollout = config.actor_rollout_ref.rollout
    for name in ("nnodes", "n_gpus_per_node"):
        if not isinstance(rollout[name], int) or rollout[name] < 1:
            raise ValueError(
                f"actor_rollout_ref.rollout.{name}={rollout[name]}: {MODE} has rollouts on devices of their own. Set "
                "actor_rollout_ref.rollout.nnodes and n_gpus_per_node to what they get beside the trainer's "
                "(trainer.nnodes x trainer.n_gpus_per_node)"
            )
    devices = rollout.nnodes * rollout.n_gpus_per_node
    replica = rollout.tensor_model_parallel_size * rollout.data_parallel_size * rollout.pipeline_model_parallel_size
    if devices % replica:
        raise ValueError(
            f"actor_rollout_ref.rollout.nnodes x n_gpus_per_node = {devices} devices for replicas of {replica} each "
            "(tensor x data x pipeline parallel): verl would leave the rest idle. Set a multiple"
        )
    given = OmegaConf.select(config, "ray_kwargs.ray_init.num_gpus")
    wanted = found["trainer.nnodes"] * found["trainer.n_gpus_per_node"] + devices
    if config.trainer.device == "cpu" and isinstance(given, int) and given < wanted:
        raise ValueError(
            f"ray_kwargs.ray_init.num_gpus={given}: the trainer and the rollouts want {wanted} of Ray's logical "
            f"devices, and would wait for them for ever. Set it to {wanted}"
        )


def _check_weights_travel(config: DictConfig, found: dict[str, Any]) -> None:
    """From the trainer to the replicas, and back from where they were put aside."""
    backend, modules, cpu = (
        found[f"{ENGINE}.backend"],
        found[f"{ENGINE}.custom_backend_module"],
        config.trainer.device == "cpu",
    )
    if backend == "naive" or cpu != (backend == "gloo"):
        want = (
            f"gloo {ENGINE}.custom_backend_module={GLOO}" if cpu else "nccl (with cupy installed), or another of verl's"
        )
        raise ValueError(
            f"{ENGINE}.backend={backend} on trainer.device={config.trainer.device}: the trainer's weights have to "
            f"reach other processes' devices. Set {ENGINE}.backend={want}"
        )
    named = [modules] if isinstance(modules, str) else list(modules or ())
    wanted = GLOO if cpu else STANDALONE
    if (found[EXTENSION] or "").startswith(OURS) and wanted not in named:
        raise ValueError(
            f"{ENGINE}.custom_backend_module={modules} with {EXTENSION}={found[EXTENSION]}: the replicas' workers "
            f"would send weights to verl's socket and vLLM wait at ours, for ever. Put {wanted} there, beside "
            "your own in a list"
        )
    model = config.actor_rollout_ref.model
    lora = OmegaConf.select(model, "lora.rank", default=0) or model.get("lora_rank", 0) or 0
    if lora > 0 and not OmegaConf.select(model, "lora.merge", default=False):
        raise ValueError(
            f"actor_rollout_ref.model.lora.merge=False with rank {lora}: verl sends replicas that stand alone the base "
            "weights only, and never the adapter. Set actor_rollout_ref.model.lora.merge=True"
        )
    offload = bool(OmegaConf.select(config, "actor_rollout_ref.actor.fsdp_config.param_offload", default=False))
    if offload and found["trainer.v1.separate_async.parameter_sync_step"] > 1 and not bypasses(config):
        raise ValueError(
            "actor_rollout_ref.actor.fsdp_config.param_offload=True with parameter_sync_step > 1: verl puts weights "
            "aside by moving them to the CPU, where offloaded ones are already, so that taking the old ones back "
            "undoes the update. Set param_offload=False, or parameter_sync_step=1 with "
            "ppo_mini_batch_size=data.train_batch_size"
        )
