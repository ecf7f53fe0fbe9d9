"""The sbatch file of a run, and its submission."""

import re
import subprocess
import sys
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from launch import quoting
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
        "output": f"{run.root}/logs/slurm-".replace("%", "%%") + "%j.out",
        "export": "ALL",
    }
    options = [f"--{name}={value}" for name, value in asked.items() if value is not None]
    options.append("--requeue")
    if slurm.exclusive:
        options.append("--exclusive")
    if run.accelerator == "gpu" and slurm.gpu_option:
        options.append(slurm.gpu_option.replace("{n}", str(run.gpus_per_node)))
    return [*options, *slurm.extra]


def mounts(run: RunFile) -> list[str]:
    """HOST:CONTAINER of every mount; project and run folder have the same path inside. /tmp is the node's: Ray's
    sockets are there, and each step has a container of its own."""
    own = dict.fromkeys((str(ROOT), str(run.root), "/tmp"))
    if wrong := [path for path in own if "," in path or ":" in path]:
        raise RunFileError(f"folder: {wrong[0]} cannot be mounted in a container: ',' and ':' separate mounts there")
    pairs = [mount if ":" in mount else f"{mount}:{mount}" for mount in run.slurm.environment.mounts]
    return [f"{path}:{path}" for path in own] + pairs


def sbatch_text(run: RunFile, spec: Path, path: Path) -> str:
    """The whole script.

    Args:
        spec: where run.json will be.
        path: where the script will be.
    """
    environment = run.slurm.environment
    python = Path(environment.path) / "bin/python" if environment.path else Path(sys.executable)
    env = public_environment(run)
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, keep_trailing_newline=True
    )
    templates.filters |= {"q": quoting.shell, "sbatch": quoting.sbatch}
    text = templates.get_template("slurm.sbatch.j2").render(
        run=run,
        options=sbatch_options(run),
        root=ROOT,
        spec=spec,
        path=path,
        env=env,
        kind=environment.kind,
        mounts=mounts(run) if environment.kind != "venv" else [],
        python=python,
    )
    own = set(re.findall(r"^ *(?:local |export )?([A-Z_]+)=", text, re.MULTILINE))
    if taken := sorted(own & env.keys()):
        raise RunFileError(f"env.{taken[0]}: the sbatch file has a variable of that name for itself; use another name")
    return text


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
