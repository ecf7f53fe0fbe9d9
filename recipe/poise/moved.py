"""Names of ours that moved since 0.1.0 and may stand in a user's configuration: refused with the new place."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

MOVED = {
    "recipe.poise.capture.HiddenStateCapture": "recipe.poise.capture.hook.HiddenStateCapture",
    "recipe.poise.engine": "recipe.poise.capture.engine",
    "recipe.poise.estimator": "recipe.poise.baseline.estimator",
    "recipe.poise.probe_worker": "recipe.poise.baseline.worker",
    "recipe.poise.rollout_adapter": "recipe.poise.rollout.adapter",
    "recipe.poise.seeded_rollout": "recipe.poise.rollout.seeded",
    "recipe.poise.spo": "recipe.poise.trainer.spo",
    "recipe.poise.task_runner": "recipe.poise.trainer.task_runner",
    "recipe.poise.vllm_extension": "recipe.poise.rollout.vllm_extension",
}
# as a module's name or as its file; not where it is the beginning of a longer name
_OLD = re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, MOVED))})(?!\w)".replace(r"\.", r"[./]"))


def _texts(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _texts(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _texts(value, f"{path}[{index}]")
    elif isinstance(node, str):
        yield path, node


def check_moved(config: DictConfig) -> None:
    """Raises ValueError for the first old name in any text of the config, with the setting and the new name."""
    for path, text in _texts(OmegaConf.to_container(config, resolve=False)):
        if match := _OLD.search(text):
            old = match[1]
            new = MOVED[old.replace("/", ".")]
            new = new.replace(".", "/") if "/" in old else new
            raise ValueError(f"{path}={text}: {old} is now {new}. Write {_OLD.sub(new, text, count=1)}")
