"""The sbatch file of a run, and its submission."""

import shlex
import subprocess
import sys
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from launch.environment import public_environment
from launch.runfile import ROOT, RunFile, RunFileError


def sbatch_options(run: RunFile) -> list[str]:
    """The #SBATCH lines. USR1 goes to the batch script alone (B:), so many seconds before the time limit."""
    slurm = run.slurm
    asked = {
        "job-name": run.name,
        "account": slurm.account,
        "partition": slurm.partition,
        "qos": slurm.qos,
        "time": slurm.time,
        "nodes": run.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": slurm.cpus_per_node,
        "mem": slurm.mem,
        "signal": f"B:USR1@{run.resume.stop_grace_s}",
        "open-mode": "append",
        "output": run.root / "logs/slurm-%j.out",
        "export": "ALL",
    }
    options = [f"--{name}={value}" for name, value in asked.items() if value is not None]
    options.append("--requeue")
    if slurm.exclusive:
        options.append("--exclusive")
    if run.accelerator == "gpu" and slurm.gpu_option:
        options.append(slurm.gpu_option.format(n=run.gpus_per_node))
    wrong = [option for option in slurm.extra if not option.startswith("-") or "\n" in option]
    if wrong:
        raise RunFileError(f"slurm.extra: {wrong[0]!r} is not an option of sbatch; write it as --option=value")
    if any("\n" in option for option in options):
        raise RunFileError("slurm: an option has a line break")
    return [_quoted(option) for option in options + slurm.extra]


def _quoted(option: str) -> str:
    """sbatch reads its lines as a shell would; a value may hold spaces."""
    name, equals, value = option.partition("=")
    return f"{name}={shlex.quote(value)}" if equals else option


def mounts(run: RunFile) -> list[str]:
    """HOST:CONTAINER of every mount; project and run folder have the same path inside. /tmp is the node's: Ray's
    sockets are there, and each step has a container of its own."""
    own = dict.fromkeys((str(ROOT), str(run.root), "/tmp"))
    pairs = [mount if ":" in mount else f"{mount}:{mount}" for mount in run.slurm.environment.mounts]
    return [f"{path}:{path}" for path in own] + pairs


def _inside_double_quotes(value: str) -> str:
    for character in '\\"$`':
        value = value.replace(character, "\\" + character)
    return value


def sbatch_text(run: RunFile, spec: Path, path: Path) -> str:
    """The whole script.

    Args:
        spec: where run.json will be.
        path: where the script will be.
    """
    environment = run.slurm.environment
    python = Path(environment.path) / "bin/python" if environment.path else Path(sys.executable)
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, keep_trailing_newline=True
    )
    templates.filters["q"] = lambda value: shlex.quote(str(value))
    templates.filters["dq"] = lambda value: _inside_double_quotes(str(value))
    return templates.get_template("slurm.sbatch.j2").render(
        run=run,
        options=sbatch_options(run),
        root=ROOT,
        spec=spec,
        path=path,
        env=public_environment(run),
        kind=environment.kind,
        mounts=mounts(run),
        python=python,
    )


def submit(path: Path) -> str:
    """Hand the script to sbatch; the job's id.

    Raises:
        RunFileError: no sbatch here, or it refused the job; with its words.
    """
    try:
        done = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True)
    except FileNotFoundError:
        raise RunFileError(
            f"sbatch is not on this machine. Run this on the cluster's login node, or take {path} there"
        ) from None
    if done.returncode:
        raise RunFileError(f"sbatch refused {path}: {done.stderr.strip()}")
    return done.stdout.strip().split(";")[0]
