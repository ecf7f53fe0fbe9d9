"""Which class trains in which mode, and in which order its parts come."""

import pytest
from omegaconf import OmegaConf
from verl.trainer.ppo.v1 import trainer_base
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync

from recipe.poise.config import TRAINER_MODES
from recipe.poise.trainer import select
from recipe.poise.trainer.poise import PoiseMixin


def chosen(monkeypatch, estimator: str, mode: str = "sync") -> dict[str, str]:
    monkeypatch.setattr(select, "TRAINER_REGISTRY", registry := dict(trainer_base.TRAINER_REGISTRY))
    config = {
        "algorithm": {"adv_estimator": estimator},
        "trainer": {"v1": {"trainer_mode": mode}},
        "actor_rollout_ref": {"model": {}},
    }
    select.select_trainers(OmegaConf.create(config))
    return {name: registry[name].__name__ for name in TRAINER_MODES}


def test_every_mode_has_a_trainer_of_ours(monkeypatch):
    names = ("Sync", "ColocateAsync", "SeparateAsync")
    for estimator, kind in (("poise", "Poise"), ("grpo", "Plain"), ("otb", "Otb")):
        assert list(chosen(monkeypatch, estimator).values()) == [f"{kind}Trainer{name}" for name in names]
    assert chosen(monkeypatch, "spo")["sync"] == "SpoTrainerSync"
    for mode in TRAINER_MODES[1:]:
        with pytest.raises(ValueError, match=f"trainer_mode={mode}: SPO runs in sync"):
            chosen(monkeypatch, "spo", mode)


def test_capture_is_asked_for_before_verl_takes_the_old_weights():
    order = select.PoiseTrainerSeparateAsync.__mro__
    assert order.index(PoiseMixin) < order.index(PPOTrainerSeparateAsync)
