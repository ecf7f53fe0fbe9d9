"""What a value of the run file may be. What goes on into scripts, manifests and commands is held to its form here; the
message says which. How the rest is quoted there is in launch/quoting.py."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from launch.quoting import check_line, check_variable, check_word


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", value):
        raise ValueError("use letters, digits, '.', '_' and '-', at most 63: it names folders and jobs")
    return value


def _slurm_time(value: str) -> str:
    if not re.fullmatch(r"\d+|\d+:\d+(:\d+)?|\d+-\d+(:\d+){0,2}", value, re.ASCII):
        raise ValueError("use Slurm's form, for instance 2-00:00:00 (quoted: YAML reads 1:30:00 as a number)")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("want a number, not true or false")
    return value


def _pattern(form: str, wanted: str) -> AfterValidator:
    """Text of a form, which is described to whoever wrote another."""

    def check(value: str) -> str:
        if not re.fullmatch(form, value, re.ASCII):
            raise ValueError(f"use {wanted}")
        return value

    return AfterValidator(check)


def _secret_pattern(value: str) -> str:
    if not re.fullmatch(r"!?[\w*?\[\]-]+", value, re.ASCII):
        raise ValueError("use a variable's name, * and ? in it for any characters, ! before it to take names out")
    return value


def _folder(value: str) -> str:
    check_line(value)
    if value.startswith("-") or "${" in value:
        raise ValueError("a folder cannot begin with '-' or hold '${'")
    return value


def _interpreter_folder(value: str) -> str:
    if "=" in _folder(value):
        raise ValueError("a path with '=' cannot be a command: `env` takes it for a variable")
    return value


def _mount(value: str) -> str:
    if "," in _folder(value):
        raise ValueError("a mount cannot hold ',': containers separate mounts by it")
    return value


def _gpu_option(value: str) -> str:
    if not value.startswith("--") or re.search(r"[{}]", value.replace("{n}", "")):
        raise ValueError("use an option of sbatch in which {n} is the number, for instance --gres=gpu:{n}")
    return check_line(value)


def _sbatch_option(value: str) -> str:
    if not re.match("--?[A-Za-z]", value):
        raise ValueError("is not an option of sbatch; write it as --option=value")
    return check_line(value)


def _text(value: str) -> str:
    if "\0" in value:
        raise ValueError("holds a NUL, which no variable or argument can")
    return value


Name = Annotated[str, AfterValidator(_name)]
Line = Annotated[str, AfterValidator(check_line)]
Word = Annotated[str, AfterValidator(check_word)]
Text = Annotated[str, AfterValidator(_text)]
Folder = Annotated[str, AfterValidator(_folder)]
Variable = Annotated[str, AfterValidator(check_variable)]
SlurmName = Annotated[str, _pattern(r"\w[\w.,:@+-]*", "Slurm's names: letters, digits and any of _.,:@+-")]
KubernetesName = Annotated[
    str,
    _pattern(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", "a name as Kubernetes has it: lower case, digits, '-' and '.'"),
]
# An upper bound beyond every use, so that no sum overflows.
Count = Annotated[int, BeforeValidator(_number), Field(ge=1, le=1_000_000)]
Bytes = Annotated[int, BeforeValidator(_number), Field(ge=1, le=2**60)]
Seconds = Annotated[int, BeforeValidator(_number), Field(ge=1, le=1_000_000_000)]
Amount = Annotated[float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False)]
Interpreter = Annotated[str, AfterValidator(_interpreter_folder)]
Mount = Annotated[str, AfterValidator(_mount)]
GpuOption = Annotated[str, AfterValidator(_gpu_option)]
SbatchOption = Annotated[str, AfterValidator(_sbatch_option)]
SecretPattern = Annotated[str, AfterValidator(_secret_pattern)]
SlurmTime = Annotated[str, AfterValidator(_slurm_time)]
SlurmMemory = Annotated[str, _pattern(r"\d+[KMGTkmgt]?", "Slurm's form, for instance 64G")]
Quantity = Annotated[str, _pattern(r"\d+(\.\d+)?([KMGTPE]i|[kMGTPE])?", "Kubernetes' form, for instance 256Gi")]
SkyName = Annotated[str, _pattern(r"\w[\w.-]*", "SkyPilot's name, for instance H100")]
ConfigName = Annotated[str, _pattern(r"\w[\w.-]*", "the name of a file in recipe/poise/config, without .yaml")]
Module = Annotated[str, _pattern(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", "a module's name, with dots")]
Interface = Annotated[str, _pattern(r"[A-Za-z0-9][\w.:@-]{0,14}", "the name of a network interface")]
Crashes = Annotated[int, BeforeValidator(_number), Field(ge=0, le=1_000_000)]
