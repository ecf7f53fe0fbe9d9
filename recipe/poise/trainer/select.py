"""The trainer classes, and how verl gets the right one: its registry, in the task runner's process."""

from omegaconf import OmegaConf
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from recipe.poise.baseline.estimator import NAME as ESTIMATOR
from recipe.poise.trainer import otb, spo
from recipe.poise.trainer.base import BaseMixin
from recipe.poise.trainer.poise import PoiseMixin


class PoiseTrainerSync(PoiseMixin, PPOTrainerSync):
    """trainer.v1.trainer_mode=sync with POISE."""


class PoiseTrainerColocateAsync(PoiseMixin, PPOTrainerColocateAsync):
    """trainer.v1.trainer_mode=colocate_async with POISE."""


class PlainTrainerSync(BaseMixin, PPOTrainerSync):
    """verl's own algorithms through the same entry."""


class PlainTrainerColocateAsync(BaseMixin, PPOTrainerColocateAsync):
    """verl's own algorithms through the same entry."""


class SpoTrainerSync(BaseMixin, spo.SpoMixin, PPOTrainerSync):
    """trainer.v1.trainer_mode=sync with SPO's tracker."""


class OtbTrainerSync(BaseMixin, otb.OtbMixin, PPOTrainerSync):
    """trainer.v1.trainer_mode=sync with the optimal token baseline."""


class OtbTrainerColocateAsync(BaseMixin, otb.OtbMixin, PPOTrainerColocateAsync):
    """trainer.v1.trainer_mode=colocate_async with the optimal token baseline."""


def select_trainers(config) -> None:
    """Let verl's mode names (which verl compares with "sync") stand for our classes in this process.

    Raises:
        ValueError: SPO in another mode than sync, or settings under which OTB would be another estimator.
    """
    estimator = OmegaConf.select(config, "algorithm.adv_estimator")
    if estimator == spo.NAME and config.trainer.v1.trainer_mode != "sync":
        raise ValueError(f"trainer.v1.trainer_mode={config.trainer.v1.trainer_mode}: SPO runs in sync")
    if estimator == otb.NAME:
        otb.check_otb(config)
    kinds = {
        ESTIMATOR: (PoiseTrainerSync, PoiseTrainerColocateAsync),
        spo.NAME: (SpoTrainerSync, SpoTrainerSync),
        otb.NAME: (OtbTrainerSync, OtbTrainerColocateAsync),
    }
    sync, colocate_async = kinds.get(estimator, (PlainTrainerSync, PlainTrainerColocateAsync))
    TRAINER_REGISTRY["sync"], TRAINER_REGISTRY["colocate_async"] = sync, colocate_async
