"""Attention where flash-attn is not installed."""

import importlib.util
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from recipe.poise.attention import settle_attention


def settled(device="cuda", **own):
    """What actor and critic are loaded with."""
    model = {"override_config": own}
    config = OmegaConf.create(
        {"trainer": {"device": device}, "actor_rollout_ref": {"model": model}, "critic": {"model": dict(model)}}
    )
    OmegaConf.set_struct(config, True)
    settle_attention(config)
    return [config[role].model.override_config.get("attn_implementation") for role in ("actor_rollout_ref", "critic")]


@pytest.fixture
def flash_attn(monkeypatch):
    """Says whether it is installed."""
    found = importlib.util.find_spec

    def set_to(installed: bool):
        spec = SimpleNamespace(name="flash_attn") if installed else None
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "flash_attn" else found(name))

    return set_to


def test_without_flash_attn_cuda_gets_sdpa(flash_attn):
    flash_attn(False)
    assert settled() == ["sdpa", "sdpa"]
    assert settled(device="cpu") == [None, None]


def test_what_the_run_names_stays_and_flash_attn_is_taken_where_it_is(flash_attn):
    flash_attn(False)
    assert settled(attn_implementation="eager") == ["eager", "eager"]
    flash_attn(True)
    assert settled() == [None, None]


def test_a_probe_in_the_critics_seat_has_no_model(flash_attn):
    flash_attn(False)
    config = OmegaConf.create(
        {"trainer": {"device": "cuda"}, "actor_rollout_ref": {"model": {"path": "x"}}, "critic": {"model": None}}
    )
    settle_attention(config)
    assert config.actor_rollout_ref.model.override_config.attn_implementation == "sdpa"
    assert config.critic.model is None
