"""Loggers whose package is not there."""

import importlib.util

import pytest
from omegaconf import OmegaConf

from recipe.poise.trackers import PACKAGES, check_trackers


def of(logger):
    return OmegaConf.create({"trainer": {"logger": logger}})


@pytest.mark.parametrize("logger", ["wandb", ["console", "wandb"]])
def test_a_missing_package_is_named_before_the_start(monkeypatch, logger):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install wandb, or take wandb out"):
        check_trackers(of(logger))


def test_loggers_without_a_package_and_no_logger_pass(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for logger in (["console", "file"], "console", [], None):
        check_trackers(of(logger))


def test_what_is_installed_passes():
    assert "tensorboard" in PACKAGES
    check_trackers(of(["console", "tensorboard"]))
