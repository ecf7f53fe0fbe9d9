"""The run file: what is trained and where, described once. `load` reads it with its bases and checks every key.

A run file is YAML. ``base: OTHER.yaml`` (relative to the file) is read first and what follows is merged over it; values
may use OmegaConf's interpolations, for instance ``${oc.env:HOME}``, ``${name}``, and ``${project:}`` for this project.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigTypeError, OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from launch.fields import (
    Amount,
    Bytes,
    ConfigName,
    Count,
    Crashes,
    Folder,
    GpuOption,
    Interface,
    Interpreter,
    KubernetesName,
    Line,
    Module,
    Mount,
    Name,
    Quantity,
    SbatchOption,
    Seconds,
    SecretPattern,
    SkyName,
    SlurmMemory,
    SlurmName,
    SlurmTime,
    Text,
    Variable,
    Word,
)
from launch.ports import Ports
from launch.quoting import CONTROL
from launch.redact import PATTERNS, Secrets

ROOT = Path(__file__).resolve().parents[1]
CODE = ("launch", "probe", "recipe", "reward")
PROJECT = "${project:}"

# In a run file it is the project's folder, absolute.
OmegaConf.register_new_resolver("project", lambda: str(ROOT), replace=True)


class RunFileError(ValueError):
    """A run file that cannot work; the message names the file, the key and the remedy."""


class Section(BaseModel):
    """A part of the run file; an unknown key is an error. Pydantic leaves the input out of messages: it may be a
    secret."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Resume(Section):
    """When a run goes on after it ended early."""

    # crashes after which the run starts again, over the whole life of the run; 0: never
    max_crashes: Crashes = 3
    # seconds between the signal (time limit near, preemption) and the kill: a step, a checkpoint and the teardown
    stop_grace_s: Annotated[Seconds, Field(ge=60)] = 900


class Waits(Section):
    """Bounds of waiting, in seconds."""

    head_s: Seconds = 180
    nodes_s: Seconds = 600
    teardown_s: Seconds = 60
    # the trainer prints nothing and logs no step for so long: it hangs, and is ended as crashed. Longer than any step,
    # validation and start of the run
    silence_s: Seconds = 3600


class Preflight(Section):
    """Thresholds of the checks at start."""

    # also run at the start of every attempt on a cluster
    at_start: bool = True
    # disk space in the run's folder, and in /tmp of every node
    min_folder_gb: Amount = 200
    min_tmp_gb: Amount = 10
    # free memory of each device
    min_device_gb: Amount = 40
    # between nodes; 1 GB/s is what 10-Gbit Ethernet gives
    min_allreduce_gb_s: Amount = 1.0
    max_clock_skew_s: Amount = 1.0
    # bound of the whole preflight
    timeout_s: Seconds = 60


class RayCluster(Section):
    """An existing cluster, for `launch ray`."""

    # dashboard of the cluster; --address wins
    address: Line | None = None
    # what stays out of the uploaded working directory, gitignore's syntax
    excludes: list[Text] = [
        ".git/",
        ".venv*/",
        "outputs/",
        "checkpoints/",
        "wandb/",
        "*.parquet",
        "*.safetensors",
        "*.pt",
        "*.log",
        "__pycache__/",
        ".*_cache/",
    ]
    # cluster: the Ray nodes have tokens in their own environment. runtime_env: send them with the job; Ray then writes
    # them to its own logs on the cluster.
    secrets: Literal["cluster", "runtime_env"] = "cluster"


class Environment(Section):
    """In what a Slurm step runs."""

    kind: Literal["venv", "apptainer", "pyxis"] = "venv"
    # venv: the environment's folder, seen by every node; null: the one that runs `launch`
    path: Interpreter | None = None
    # apptainer: .sif file; pyxis: .sqsh file or registry image
    image: Word | None = None
    # host folders to mount, HOST or HOST:CONTAINER; the project, the run's folder and /tmp always are
    mounts: list[Mount] = []
    # more options for apptainer exec, or for srun with pyxis
    options: list[Text] = []

    @model_validator(mode="after")
    def _image(self):
        if (self.kind == "venv") == (self.image is not None):
            raise ValueError(f"kind {self.kind} {'takes path, not image' if self.kind == 'venv' else 'needs image'}")
        return self


class Slurm(Section):
    """What sbatch is asked for."""

    account: SlurmName | None = None
    partition: SlurmName | None = None
    qos: SlurmName | None = None
    time: SlurmTime | None = None
    # CPUs asked for on each node
    cpus_per_node: Count = 16
    mem: SlurmMemory | None = "0"  # "0": all of the node's
    exclusive: bool = True
    # how devices are asked for; {n} is gpus_per_node. null: not at all (a site without GRES, or accelerator: cpu)
    gpu_option: GpuOption | None = "--gpus-per-node={n}"
    # further options of sbatch, each as "--option=value"
    extra: list[SbatchOption] = []
    # shell lines before anything runs, for instance "module load cuda"
    setup: list[Text] = []
    environment: Environment = Environment()


class Rollout(Section):
    """The devices that only generate, while the others train: trainer_mode separate_async. Without: all do both."""

    # so many whole nodes
    nodes: Count | None = None
    # or so many devices of each node
    gpus_per_node: Count | None = None

    @model_validator(mode="after")
    def _one(self):
        if self.nodes is not None and self.gpus_per_node is not None:
            raise ValueError("set nodes, so many whole nodes, or gpus_per_node, so many devices of each node")
        return self


class Kubernetes(Section):
    """For the RayJob manifest."""

    image: Word = "poise-verl:latest"
    namespace: KubernetesName = "default"
    # claim of a ReadWriteMany volume, mounted at the parent of the run's folder
    volume_claim: KubernetesName = "poise-runs"
    # a Secret whose keys become environment variables of every pod
    secret: KubernetesName | None = "poise-secrets"
    cpus: Count = 16
    memory: Quantity = "256Gi"


class Sky(Section):
    """For the SkyPilot task."""

    accelerator: SkyName = "H100"
    # a bucket that is mounted at the parent of the run's folder
    bucket: Word | None = None
    disk_gb: Count = 512


class RunFile(Section):
    """One run. `folder` must be the same path on every node."""

    name: Name
    # Hydra config in recipe/poise/config, and overrides as a mapping: dots in keys, Hydra's + and ~ allowed
    config: ConfigName
    overrides: dict[Line, Any] = {}
    # the same as Hydra writes them, applied after; where the command line's go
    hydra: list[Text] = []
    # module that trains; it takes Hydra overrides
    entry: Module = "recipe.poise.main_poise"
    # run once before the first attempt, in the project's folder
    prepare: list[Text] = []
    # everything the run writes; null: outputs/runs/NAME in the project
    folder: Folder | None = None

    nodes: Count = 1
    gpus_per_node: Count = 1
    rollout: Rollout = Rollout()
    accelerator: Literal["gpu", "cpu"] = "gpu"
    # network interface for Ray, NCCL and gloo, for instance ib0; null: the one of the node's address
    interface: Interface | None = None
    # environment variables; tokens do not belong here
    env: dict[Variable, Text] = {}
    # names of variables that are forwarded and never written; with '!' before it, a name is none
    secrets: list[SecretPattern] = list(PATTERNS)
    # CPUs that Ray may give to its workers on a node; null: slurm.cpus_per_node. Under Slurm's limits it must be told
    ray_cpus: Count | None = None
    # bytes of Ray's object store on a node; null: Ray's choice
    object_store_bytes: Bytes | None = None

    ports: Ports = Ports()
    resume: Resume = Resume()
    waits: Waits = Waits()
    preflight: Preflight = Preflight()
    ray: RayCluster = RayCluster()
    slurm: Slurm = Slurm()
    kubernetes: Kubernetes = Kubernetes()
    sky: Sky = Sky()

    @model_validator(mode="after")
    def _some_train(self):
        nodes, devices = self.training
        if nodes < 1 or devices < 1:
            raise ValueError(
                f"rollout takes all of nodes={self.nodes}, gpus_per_node={self.gpus_per_node}: leave devices that train"
            )
        return self

    @property
    def training(self) -> tuple[int, int]:
        """Nodes, and devices on each, that train."""
        return self.nodes - (self.rollout.nodes or 0), self.gpus_per_node - (self.rollout.gpus_per_node or 0)

    @property
    def generating(self) -> tuple[int, int] | None:
        """Nodes, and devices on each, that only generate; None: none."""
        if self.rollout == Rollout():
            return None
        return self.rollout.nodes or self.nodes, self.rollout.gpus_per_node or self.gpus_per_node

    @property
    def devices(self) -> int:
        """Devices that train: FSDP's world size."""
        nodes, devices = self.training
        return nodes * devices

    @property
    def root(self) -> Path:
        """The run's folder, absolute."""
        path = Path(self.folder).expanduser() if self.folder else ROOT / "outputs/runs" / self.name
        return path if path.is_absolute() else ROOT / path

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json", exclude_unset=True), indent=2)

    def to_portable_json(self) -> str:
        """The same for a machine that has the project in another folder: the code's paths, which travel with the
        project, are written with ``${project:}``; data and results stay where they are."""
        code = "|".join(CODE)
        return re.sub(rf"{re.escape(json.dumps(str(ROOT))[1:-1])}(?=/({code})/)", PROJECT, self.to_json())

    @classmethod
    def from_json(cls, text: str, where: Path | str = "run.json") -> "RunFile":
        """Raises RunFileError where it is cut short, or of another version of this project."""
        try:
            return cls.model_validate_json(text.replace(PROJECT, json.dumps(str(ROOT))[1:-1]))
        except ValidationError as error:
            raise _run_file_error(where, error) from None


def _read(path: Path, seen: tuple[Path, ...] = ()) -> DictConfig:
    """The file merged over its bases, interpolations not yet resolved."""
    path = path.resolve()
    if path in seen:
        raise RunFileError(f"{path}: its bases form a circle: {' -> '.join(p.name for p in (*seen, path))}")
    if not path.is_file():
        where = f", named as base in {seen[-1]}" if seen else ""
        known = ", ".join(sorted(p.name for p in (ROOT / "launch/runs").glob("*.yaml") if p.name[0] != "_"))
        raise RunFileError(f"{path} does not exist{where}. Run files of the project (launch/runs): {known}")
    try:
        node = OmegaConf.load(path)
    except Exception as error:  # YAML's errors have no common base that is OmegaConf's too
        raise RunFileError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(node, DictConfig):
        raise RunFileError(f"{path}: a run file is a mapping of settings, this is a {type(node).__name__}")
    try:
        base = node.pop("base", None)
        if base is None:
            return node
        if not isinstance(base, str) or not base or CONTROL.search(base):
            raise RunFileError(
                f"{path}: base: want the path of a run file, relative to this one (found {_short(base)})"
            )
        merged = OmegaConf.merge(_read(path.parent / base, (*seen, path)), node)
    except ConfigTypeError as error:
        raise RunFileError(
            f"{path}: a key is a mapping here and something else in its base, or the other way round "
            f"({str(error).splitlines()[0]})"
        ) from error
    except OmegaConfBaseException as error:
        raise RunFileError(f"{path}: {error}".strip()) from error
    assert isinstance(merged, DictConfig)
    return merged


def load(path: Path | str) -> RunFile:
    """Read a run file; a bare name is looked up in launch/runs too.

    Raises:
        RunFileError: no such file, bad YAML, unknown key, value out of range, unset environment variable.
    """
    path = Path(path)
    if not path.exists() and (ROOT / "launch/runs" / path.with_suffix(".yaml").name).exists():
        path = ROOT / "launch/runs" / path.with_suffix(".yaml").name
    node = _read(path)
    try:
        values = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        raise RunFileError(f"{path}: {error}".strip()) from error
    assert isinstance(values, dict)
    try:
        return RunFile.model_validate(values)
    except ValidationError as error:
        raise _run_file_error(path, error, values.get("secrets")) from None


def _run_file_error(where: Path | str, error: ValidationError, patterns: Any = None) -> RunFileError:
    """Every fault on a line; what was found there may be a secret."""
    own = [item for item in patterns if isinstance(item, str) and item] if isinstance(patterns, list) else []
    lines = [_explain(item) for item in error.errors()]
    return RunFileError(f"{where}:\n" + Secrets([*PATTERNS, *own]).mask("\n".join(lines)))


def _explain(item) -> str:
    """One line per fault: where, what, and what would be right."""
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        section: Any = RunFile
        for part in item["loc"][:-1]:
            section = section.model_fields[part].annotation
        return f"  unknown key {where}; known: {', '.join(section.model_fields)}"
    if item["type"] == "missing":
        return f"  {where} is missing"
    return f"  {where or 'run file'}: {item['msg'].removeprefix('Value error, ')} (found {_short(item['input'])})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
