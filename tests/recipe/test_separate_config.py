"""Runs of separate_async that verl would refuse late, or that would wait for ever, are refused at start."""

from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from recipe.poise.config import check_config, check_types

CONFIG_DIR = str(Path(__file__).parents[2] / "recipe/poise/config")
SHAPE = (
    "trainer.v1.trainer_mode=separate_async",
    "actor_rollout_ref.rollout.nnodes=1",
    "trainer.v1.separate_async.parameter_sync_step=4",
    "data.train_batch_size=64",
    "actor_rollout_ref.actor.ppo_mini_batch_size=16",
)
GPU = (*SHAPE, "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl", "trainer.device=cuda")
CPU = (*SHAPE, "actor_rollout_ref.rollout.checkpoint_engine.backend=gloo", "ray_kwargs.ray_init.num_gpus=2")
MODULE = "actor_rollout_ref.rollout.checkpoint_engine.custom_backend_module"


@cache  # a second each
def base(name: str):
    with initialize_config_dir(CONFIG_DIR, version_base=None):
        return compose(name)


def composed(*overrides, name="poise_trainer"):
    return OmegaConf.merge(base(name), OmegaConf.from_dotlist(list(overrides)))


@pytest.mark.parametrize("estimator", ["poise", "grpo"])
@pytest.mark.parametrize(("shape", "name"), [(GPU, "poise_trainer"), (CPU, "poise_quickstart")])
def test_runs_that_work_pass(shape, name, estimator):
    config = composed(*shape, f"algorithm.adv_estimator={estimator}", name=name)
    assert check_types(config) == (check_config(config) if estimator == "poise" else check_types(config))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train_batch_size=32", "Set data.train_batch_size=64, or one of the others"),
        ("trainer.v1.separate_async.parameter_sync_step=2.5", "parameter_sync_step=2.5: want a whole number"),
        ("actor_rollout_ref.rollout.nnodes=0", "rollout.nnodes=0: .* devices of their own"),
        ("actor_rollout_ref.rollout.tensor_model_parallel_size=3", "devices for replicas of 3 each"),
        ("actor_rollout_ref.rollout.checkpoint_engine.backend=naive", "Set .*backend=nccl .with cupy"),
        ("actor_rollout_ref.rollout.checkpoint_engine.backend=gloo", "backend=gloo on trainer.device=cuda"),
        (f"{MODULE}=null", "vLLM wait at ours, for ever. Put recipe.poise.rollout.standalone there"),
        (f"{MODULE}=my.module", "Put recipe.poise.rollout.standalone there, beside your own in a list"),
        ("actor_rollout_ref.model.lora_rank=8", "Set actor_rollout_ref.model.lora.merge=True"),
        ("actor_rollout_ref.actor.fsdp_config.param_offload=True", "undoes the update"),
    ],
)
def test_refusals_for_every_estimator(override, message):
    for estimator in ("poise", "grpo"):
        with pytest.raises(ValueError, match=message):
            check_types(composed(*GPU, override, f"algorithm.adv_estimator={estimator}"))
    elsewhere = composed(*GPU, override, "trainer.v1.trainer_mode=sync")
    check_types(elsewhere)  # other modes do not care


def test_what_is_refused_can_be_mended_as_the_message_says():
    offload = "actor_rollout_ref.actor.fsdp_config.param_offload=True"
    check_types(composed(*GPU, f"{MODULE}=[my.module,recipe.poise.rollout.standalone]"))
    check_types(composed(*GPU, "actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.model.lora.merge=True"))
    once = ("trainer.v1.separate_async.parameter_sync_step=1", "actor_rollout_ref.actor.ppo_mini_batch_size=64")
    check_types(composed(*GPU, offload, *once))
    # an extension that is not ours listens where verl sends
    own = "actor_rollout_ref.rollout.engine_kwargs.vllm.worker_extension_cls=my.Extension"
    check_types(composed(*GPU, f"{MODULE}=null", own))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ray_kwargs.ray_init.num_gpus=1", "num_gpus=1: .* Set it to 2"),
        ("actor_rollout_ref.rollout.n_gpus_per_node=2", "num_gpus=2: .* Set it to 3"),
        ("actor_rollout_ref.rollout.checkpoint_engine.backend=nccl", "backend=gloo .*recipe.poise.cpu.gloo_engine"),
        (f"{MODULE}=recipe.poise.rollout.standalone", "Put recipe.poise.cpu.gloo_engine there"),
    ],
)
def test_refusals_on_a_cpu(override, message):
    with pytest.raises(ValueError, match=message):
        check_types(composed(*CPU, override, name="poise_quickstart"))


def test_prompts_are_not_chosen_in_this_mode():
    with pytest.raises(ValueError, match="separate_async: prompts are chosen once a step"):
        check_config(composed(*GPU, "poise.select.candidates=2"))
    with pytest.raises(ValueError, match="separate_async|only in mode sync"):
        check_config(composed(*GPU, "poise.rollouts=adaptive"))
