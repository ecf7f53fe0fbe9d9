"""From a run file to Hydra's overrides, and the resolved config of a run."""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launch import quoting
from launch.runfile import ROOT, RunFile, RunFileError
from recipe.poise.moved import check_moved
from recipe.poise.separate import check_separate

CONFIG_DIR = ROOT / "recipe/poise/config"
# What the run file itself decides: an override of it would be silently undone.
OWNED = {
    "trainer.nnodes": "nodes",
    "trainer.n_gpus_per_node": "gpus_per_node",
    "actor_rollout_ref.rollout.nnodes": "rollout",
    "actor_rollout_ref.rollout.n_gpus_per_node": "rollout",
    "trainer.default_local_dir": "folder",
    "trainer.resume_mode": "folder (a run goes on from its newest complete checkpoint; for a new start take another)",
    "trainer.experiment_name": "name",
    "hydra.run.dir": "folder",
}


def override(key: str, value: Any) -> str:
    """As Hydra reads it.

    Raises:
        RunFileError: the value cannot be written in Hydra's grammar.
    """
    try:
        return key if key.startswith("~") and value is None else f"{key}={quoting.hydra(value)}"
    except ValueError as error:
        raise RunFileError(f"overrides: {key}: {error}") from error


def run_overrides(run: RunFile) -> list[str]:
    """What the run file and the command line ask for.

    Raises:
        RunFileError: an override of something that the run file decides.
    """
    found = [*(override(key, value) for key, value in run.overrides.items()), *run.hydra]
    for item in found:
        if "=" not in item and not item.startswith("~"):
            raise RunFileError(f"'{item}' is not a Hydra override; write key=value, +key=value or ~key")
        key = item.split("=", 1)[0].lstrip("+~")
        if key in OWNED:
            raise RunFileError(f"{item}: the run file decides this: set its key {OWNED[key]} instead")
    return found


def launch_overrides(run: RunFile, config: DictConfig, cluster: bool) -> list[str]:
    """What the launcher adds: shape, folders, the file logger, and which cluster `ray.init` is to use."""
    nodes, devices = run.training
    own: dict[str, Any] = {
        "trainer.nnodes": nodes,
        "trainer.n_gpus_per_node": devices,
        "trainer.default_local_dir": str(run.checkpoints),
        "trainer.resume_mode": "auto",
        "trainer.experiment_name": run.name,
        "hydra.run.dir": str(run.root / "hydra"),
    }
    if run.generating is not None:
        own["trainer.v1.trainer_mode"] = "separate_async"
        own["actor_rollout_ref.rollout.nnodes"], own["actor_rollout_ref.rollout.n_gpus_per_node"] = run.generating
    loggers = words(run, config, "trainer.logger")
    if "file" not in loggers:  # its records say which step an attempt reached
        own["trainer.logger"] = [*loggers, "file"]
    if cluster:  # ray.init refuses sizes where it joins a cluster
        ray_init = setting(run, config, "ray_kwargs.ray_init", DictConfig | None, "a mapping, or null") or {}
        own |= {f"ray_kwargs.ray_init.{key}": None for key in ray_init if key not in ("address", "runtime_env")}
    else:  # without it Ray joins whatever cluster it finds on this machine
        own["++ray_kwargs.ray_init.address"] = "local"
        if run.generating is not None and run.accelerator == "cpu":  # logical devices, of which Ray knows nothing
            own["ray_kwargs.ray_init.num_gpus"] = run.nodes * run.gpus_per_node
    return [override(key, value) for key, value in own.items()]


def _compose(run: RunFile, overrides: list[str]) -> DictConfig:
    return _compose_once(run.name, run.config, tuple(overrides)).copy()


def verl_configs() -> Path:
    """verl's folder of configs. The entry's search path, `pkg://`, imports verl, and that takes seconds."""
    spec = importlib.util.find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        raise RunFileError("verl is not installed in this Python: source launch/env.sh && poise_env")
    return Path(spec.submodule_search_locations[0]) / "trainer/config"


@cache  # half a second for verl's many files
def _compose_once(run_name: str, name: str, overrides: tuple[str, ...]) -> DictConfig:
    if not (CONFIG_DIR / f"{name}.yaml").exists():
        known = ", ".join(sorted(path.stem for path in CONFIG_DIR.glob("*.yaml")))
        raise RunFileError(f"config: {name} is not in recipe/poise/config; known: {known}")
    GlobalHydra.instance().clear()
    own = [item for item in overrides if not item.startswith("hydra.")]
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base=None):
            return compose(name, overrides=[*own, f"hydra.searchpath=[file://{verl_configs()}]"])
    except (HydraException, OmegaConfBaseException) as error:
        raise RunFileError(f"{run_name}: {error}") from error
    except (ValueError, TypeError) as error:  # what Hydra raises where a key is a group of configs
        groups = ", ".join(item for item in own if "." not in item.split("=")[0]) or "none"
        raise RunFileError(f"{run_name}: {error}. Overrides of whole sections: {groups}") from error


def training_arguments(run: RunFile, cluster: bool) -> list[str]:
    """Arguments of the entry."""
    asked = run_overrides(run)
    config = _compose(run, asked)
    return ["--config-name", run.config, *asked, *launch_overrides(run, config, cluster)]


def resolved(run: RunFile, cluster: bool) -> DictConfig:
    """The whole config that the entry will see.

    Raises:
        RunFileError: what Hydra says, or settings under which a crash could lose the run.
    """
    config = _compose(run, training_arguments(run, cluster)[2:])
    try:
        check_moved(config)
    except ValueError as error:
        raise RunFileError(f"{run.name}: {error}") from error
    for kind in ("actor", "critic"):
        if (
            setting(run, config, f"trainer.max_{kind}_ckpt_to_keep", int | None, "a number of checkpoints, or null")
            == 1
        ):
            raise RunFileError(
                f"trainer.max_{kind}_ckpt_to_keep=1: verl then removes the old checkpoint before the new one is "
                "complete, and a crash in between leaves none. Set it to 2 or more"
            )
    if setting(run, config, "trainer.save_freq", int, "a number of steps") < 1:
        raise RunFileError("trainer.save_freq is off: the run could not be resumed. Set it to 1 or more")
    # what the launcher itself looks at later: checkpoints' contents, and preflight's inputs
    setting(run, config, "critic.enable", bool | None, "true, false or null")
    setting(run, config, "trainer.v1.trainer_mode", str, "one of verl's modes")
    try:
        check_separate(config)
    except ValueError as error:
        raise RunFileError(f"{run.name}: {error}") from error
    words(run, config, "actor_rollout_ref.actor.checkpoint.save_contents")
    words(run, config, "data.train_files")
    words(run, config, "data.val_files", optional=True)
    words(run, config, "actor_rollout_ref.model.path")
    words(run, config, "reward.custom_reward_function.path", optional=True)
    return config


def setting(run: RunFile, config: DictConfig, key: str, kind: Any, wanted: str) -> Any:
    """A value of the config.

    Raises:
        RunFileError: it is missing or of another kind; with what is wanted.
    """
    try:
        value = OmegaConf.select(config, key, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise RunFileError(f"{run.name}: {key}: {error}".strip()) from error
    if not isinstance(value, kind) or (isinstance(value, bool) and kind in (int, int | None)):
        raise RunFileError(f"{run.name}: {key}: want {wanted} (found {value!r})")
    return value


def words(run: RunFile, config: DictConfig, key: str, optional: bool = False) -> list[str]:
    """A value that is a string or a list of them, as a list; null is an empty one where it is optional."""
    wanted = "a string or a list of strings"
    value = setting(run, config, key, str | ListConfig | None if optional else str | ListConfig, wanted)
    found = [value] if isinstance(value, str) else list(value or [])
    if not all(isinstance(item, str) for item in found):
        raise RunFileError(f"{run.name}: {key}: want {wanted} (found {found!r})")
    return found


def resolved_yaml(run: RunFile, cluster: bool) -> str:
    """Raises RunFileError where an interpolation leads nowhere."""
    try:
        return OmegaConf.to_yaml(resolved(run, cluster), resolve=True)
    except OmegaConfBaseException as error:
        raise RunFileError(f"{run.name}: {error}".strip()) from error
