"""Old names of ours in a configuration."""

import importlib

import pytest
from omegaconf import OmegaConf

from recipe.poise.moved import MOVED, check_moved


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_is_refused_with_a_new_one_that_exists(old):
    config = OmegaConf.create({"actor_rollout_ref": {"model": {"external_lib": f"mine,{old}"}}})
    with pytest.raises(ValueError) as caught:
        check_moved(config)
    assert f"actor_rollout_ref.model.external_lib=mine,{old}: {old} is now {MOVED[old]}." in str(caught.value)
    assert str(caught.value).endswith(f"Write mine,{MOVED[old]}")
    module, _, name = MOVED[old].rpartition(".")
    assert importlib.import_module(MOVED[old]) if name.islower() else hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize(
    ("text", "new"),
    [
        ("recipe.poise.vllm_extension.WorkerExtension", "recipe.poise.rollout.vllm_extension.WorkerExtension"),
        ("/home/me/recipe/poise/seeded_rollout.py", "/home/me/recipe/poise/rollout/seeded.py"),
    ],
)
def test_classes_and_files_in_lists_are_found(text, new):
    with pytest.raises(ValueError, match=r"a\[1\]\.b=.*Write " + new):
        check_moved(OmegaConf.create({"a": ["x", {"b": text}]}))


def test_new_names_and_unresolved_interpolations_pass():
    names = [*MOVED.values(), "recipe.poise.engineering", "my.recipe.poise.engine", "${nowhere}"]
    check_moved(OmegaConf.create({"names": names, "number": 1, "none": None}))
