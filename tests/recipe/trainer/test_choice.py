"""Choosing in the trainer's hooks: off, nothing happens; on, the choice is made between save and weight sync."""

from types import SimpleNamespace

import pytest
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from recipe.poise.config import PoiseConfig
from recipe.poise.trainer.choice import ChoiceMixin
from recipe.poise.trainer.poise import PoiseMixin
from recipe.poise.trainer.select import PoiseTrainerColocateAsync, PoiseTrainerSync
from recipe.poise.trainer.stop import StopMixin

HOOKS = ("on_init_end", "on_step_end", "prepare_step", "_fetch_one_gen_batch", "_load_checkpoint", "_save_checkpoint")


class Alone(ChoiceMixin):
    """The hooks above verl's trainer, which is not built: whatever they look at must be set."""

    on_sample_end = None

    def __init__(self, **attributes):
        vars(self).update(attributes)


Alone.__abstractmethods__ = frozenset()


def test_off_every_hook_is_verls_and_nothing_else_is_touched(monkeypatch):
    calls = []
    for name in ("_init_dataloader", *HOOKS):
        monkeypatch.setattr(PPOTrainer, name, lambda self, name=name: calls.append(name) or {"from": name})
    monkeypatch.setattr(PPOTrainer, "_compute_advantage", lambda self, batch, metrics: calls.append(batch) or batch)
    trainer, metrics = Alone(poise=PoiseConfig()), {}
    trainer._init_dataloader()
    said = [getattr(trainer, name)() for name in HOOKS]
    assert trainer._compute_advantage("batch", metrics) == "batch" and metrics == {}
    assert calls == ["_init_dataloader", *HOOKS, "batch"]
    assert said[2:4] == [{"from": "prepare_step"}, {"from": "_fetch_one_gen_batch"}]
    assert list(vars(trainer)) == ["poise"]


@pytest.mark.parametrize("trainer", [PoiseTrainerSync, PoiseTrainerColocateAsync])
def test_a_checkpoint_on_request_is_written_before_the_choice(trainer):
    order = trainer.__mro__
    assert order.index(PoiseMixin) < order.index(StopMixin) < order.index(ChoiceMixin)
    assert "on_step_end" in vars(StopMixin) and "on_step_end" not in vars(PoiseMixin)


def test_the_last_step_chooses_nothing(monkeypatch):
    chosen = []
    monkeypatch.setattr(ChoiceMixin, "_choose", lambda self: chosen.append(self.global_steps))
    monkeypatch.setattr(PPOTrainer, "on_step_end", lambda self: None)
    trainer = Alone(_chooser=SimpleNamespace(), timing_raw={}, total_training_steps=3)
    for step in (1, 2, 3):
        trainer.global_steps = step
        trainer.on_step_end()
    assert chosen == [1, 2] and trainer.timing_raw["prompt_pass"] >= 0
