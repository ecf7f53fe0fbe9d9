"""The trainer classes, and how verl gets the right one: its registry, in the task runner's process."""

from omegaconf import OmegaConf
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from recipe.poise.baseline.estimator import NAME as ESTIMATOR
from recipe.poise.config import TRAINER_MODES
from recipe.poise.trainer import otb, spo
from recipe.poise.trainer.base import BaseMixin
from recipe.poise.trainer.poise import PoiseMixin
from recipe.poise.trainer.separate import SeparateMixin
from recipe.poise.trainer.staleness import StalenessMixin


class PoiseTrainerSync(PoiseMixin, PPOTrainerSync):
    """trainer.v1.trainer_mode=sync with POISE."""


class PoiseTrainerColocateAsync(StalenessMixin, PoiseMixin, PPOTrainerColocateAsync):
    """trainer.v1.trainer_mode=colocate_async with POISE."""


class PoiseTrainerSeparateAsync(StalenessMixin, PoiseMixin, SeparateMixin):
    """trainer.v1.trainer_mode=separate_async with POISE."""


class PlainTrainerSync(BaseMixin, PPOTrainerSync):
    """verl's own algorithms through the same entry."""


class PlainTrainerColocateAsync(BaseMixin, PPOTrainerColocateAsync):
    """verl's own algorithms through the same entry."""


class PlainTrainerSeparateAsync(BaseMixin, SeparateMixin):
    """verl's own algorithms through the same entry."""


class SpoTrainerSync(BaseMixin, spo.SpoMixin, PPOTrainerSync):
    """trainer.v1.trainer_mode=sync with SPO's tracker."""


class OtbTrainerSync(BaseMixin, otb.OtbMixin, PPOTrainerSync):
    """trainer.v1.trainer_mode=sync with the optimal token baseline."""


class OtbTrainerColocateAsync(BaseMixin, otb.OtbMixin, PPOTrainerColocateAsync):
    """trainer.v1.trainer_mode=colocate_async with the optimal token baseline."""


class OtbTrainerSeparateAsync(BaseMixin, otb.OtbMixin, SeparateMixin):
    """trainer.v1.trainer_mode=separate_async with the optimal token baseline."""


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
        ESTIMATOR: (PoiseTrainerSync, PoiseTrainerColocateAsync, PoiseTrainerSeparateAsync),
        spo.NAME: (SpoTrainerSync,),
        otb.NAME: (OtbTrainerSync, OtbTrainerColocateAsync, OtbTrainerSeparateAsync),
    }
    plain = (PlainTrainerSync, PlainTrainerColocateAsync, PlainTrainerSeparateAsync)
    for mode, trainer in zip(TRAINER_MODES, kinds.get(estimator, plain), strict=False):
        TRAINER_REGISTRY[mode] = trainer
