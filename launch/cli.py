"""``python -m launch local|ray|slurm|preflight|kuberay|skypilot RUN.yaml [hydra overrides] [--dry-run]``."""

import logging
import shlex
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

import click

from launch import attempt as attempts_of
from launch import manifests, slurm
from launch.attempt import LOST, marked, say
from launch.attempts import Attempts
from launch.compose import resolved_yaml, training_arguments
from launch.environment import check_secrets, public_environment, write_public
from launch.quoting import shell
from launch.redact import known, mask
from launch.runfile import ROOT, RunFile, RunFileError, load


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Start a run that a run file describes. Hydra overrides may follow the run file."""
    logging.basicConfig(level=logging.WARNING, format="[launch] %(levelname)s: %(message)s", stream=sys.stdout)


def main() -> None:
    """Errors that a person can repair end with their message, not with a traceback. Secrets are masked in both."""

    def end(text: str, status: int) -> NoReturn:
        click.echo(mask(text), err=True)
        sys.exit(status)

    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        usage = f"{error.ctx.get_usage()}\n" if isinstance(error, click.UsageError) and error.ctx else ""
        end(f"{usage}Error: {error.format_message()}", 2)
    except click.exceptions.Abort:
        sys.exit(130)
    except (RunFileError, RuntimeError, OSError) as error:
        file = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else None
        end(f"[launch] error: {file or error}", 2 if isinstance(error, RunFileError) else 1)
    except Exception:  # a fault of the launcher itself
        end(traceback.format_exc(), 1)


def run_file(command):
    """The run file and overrides as one argument `run`."""
    command = click.argument("overrides", nargs=-1)(command)
    return click.argument("path", metavar="RUN.yaml")(command)


def dry_run(command):
    return click.option("--dry-run", is_flag=True, help="Write the files, print the commands, start nothing.")(command)


def read(path: str, overrides: tuple[str, ...]) -> RunFile:
    run = load(path)
    return checked(run.model_copy(update={"hydra": [*run.hydra, *overrides]}))


def checked(run: RunFile) -> RunFile:
    """From here on its secrets are masked; raises RunFileError where one could not be."""
    known.extend(run.secrets)
    check_secrets(run)
    return run


def train_script(run: RunFile, cluster: bool) -> str:
    """The trainer's exact command, to be read, kept, or run by hand."""
    exports = "".join(f"export {name}={shell(value)}\n" for name, value in public_environment(run).items())
    _, config, *arguments = training_arguments(run, cluster)
    command = [shlex.join([sys.executable, "-m", run.entry, "--config-name", config]), *map(shell, arguments)]
    prepare = "".join(f"{line}\n" for line in run.prepare)
    return (
        "#!/bin/bash\n# What an attempt runs"
        + (", on a Ray cluster at RAY_ADDRESS.\n" if cluster else ".\n")
        + f"set -euo pipefail\ncd {shell(ROOT)}\n{exports}{prepare}exec "
        + " \\\n  ".join(command)
        + "\n"
    )


def write_files(run: RunFile, cluster: bool) -> Path:
    """run.json, config.yaml and train.sh in the run's folder under launch/."""
    folder = run.root / "launch"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFileError(
            f"folder: {run.root} cannot be made or written ({error.strerror}): set `folder` in the run file, or "
            "POISE_RUNS, to another place"
        ) from error
    write_public(folder / "config.yaml", resolved_yaml(run, cluster), run)
    write_public(folder / "train.sh", train_script(run, cluster), run, mode=0o755)
    write_public(folder / "run.json", run.to_json() + "\n", run)
    return folder


def written(folder: Path, command: str) -> None:
    for path in sorted(folder.glob("*")):
        say(f"wrote {path}")
    say(f"to start: {command}")


def forgive(run: RunFile, retry: bool) -> None:
    if retry:
        Attempts.read(run.root, attempts_of.new_tracking_id(run.name)).forgive()


retry_option = click.option("--retry", is_flag=True, help="Earlier crashes no longer count: after a repair.")


@cli.command()
@run_file
@dry_run
@retry_option
def local(path: str, overrides: tuple[str, ...], dry_run: bool, retry: bool) -> None:
    """Train on this machine. USR1 stops at the next step boundary; the same command goes on."""
    run = read(path, overrides)
    if run.nodes != 1:
        raise RunFileError(f"nodes: {run.nodes}: `local` is one machine; use slurm or ray, or set nodes: 1")
    folder = write_files(run, cluster=False)
    if dry_run:
        return written(folder, shlex.join(["python", "-m", "launch", "local", path, *overrides]))
    forgive(run, retry)
    sys.exit(attempts_of.run_until_done(run, cluster=False))


@cli.command(name="slurm")
@run_file
@dry_run
@retry_option
def slurm_command(path: str, overrides: tuple[str, ...], dry_run: bool, retry: bool) -> None:
    """Write the sbatch file and submit it."""
    run = read(path, overrides)
    folder = write_files(run, cluster=True)
    script = folder / f"{run.name}.sbatch"
    write_public(script, slurm.sbatch_text(run, folder / "run.json", script), run, mode=0o755)
    if dry_run:
        return written(folder, f"sbatch {shell(script)}")
    forgive(run, retry)
    (run.root / "logs").mkdir(parents=True, exist_ok=True)  # Slurm drops the output of a job whose folder is missing
    say(f"job {slurm.submit(script)}; log: {run.root}/logs")


@cli.command()
@run_file
@dry_run
@click.option("--address", help="Dashboard of the cluster, http://HOST:8265; default: the run file's.")
def ray(path: str, overrides: tuple[str, ...], dry_run: bool, address: str | None) -> None:
    """Train as a job of a running Ray cluster; follows its log and returns its exit status."""
    from launch import rayjob

    run = read(path, overrides)
    runtime_env = rayjob.runtime_environment(run)
    address = address or run.ray.address
    if dry_run:
        import yaml

        folder = write_files(run, cluster=True)
        write_public(folder / "runtime_env.yaml", yaml.safe_dump(runtime_env), run)
        command = ["ray", "job", "submit", "--address", address or "http://HOST:8265"]
        command += ["--runtime-env", f"{folder}/runtime_env.yaml", "--", *rayjob.ENTRYPOINT]
        return written(folder, shlex.join(command))
    if not address:
        raise RunFileError("which cluster? Give --address http://HOST:8265, or set ray.address in the run file")
    sys.exit(rayjob.submit(run, address))


@cli.command()
@run_file
@click.option("--attempt", "logs", type=Path, hidden=True)
def preflight(path: str, overrides: tuple[str, ...], logs: Path | None) -> None:
    """Check this machine, or every node of the Ray cluster at RAY_ADDRESS."""
    import os

    from launch import preflight as checks

    start = time.monotonic()
    run = read_spec(Path(path)) if path.endswith(".json") else read(path, overrides)
    if os.environ.get("RAY_ADDRESS"):
        found = checks.cluster_checks(run)
    else:
        os.environ.update({k: v for k, v in public_environment(run).items() if k not in os.environ})
        found = checks.local_checks(run, prepared=not run.prepare or (run.root / ".prepared").exists())
    text = mask(f"{checks.table(found)} in {time.monotonic() - start:.0f} s")
    click.echo(text)
    if logs:
        write_public(logs / "preflight.txt", text + "\n", run)
    sys.exit(not all(item.ok for item in found))


@cli.command()
@run_file
def kuberay(path: str, overrides: tuple[str, ...]) -> None:
    """Write KubeRay's RayJob manifest."""
    _manifest(read(path, overrides), "kuberay", "kubectl apply -f")


@cli.command()
@run_file
def skypilot(path: str, overrides: tuple[str, ...]) -> None:
    """Write a SkyPilot task."""
    _manifest(read(path, overrides), "skypilot", "sky launch")


def _manifest(run: RunFile, kind: str, command: str) -> None:
    target = manifests.write_path(run, kind)
    text = getattr(manifests, kind)(run)
    write_public(target, text, run)
    if f"{ROOT}/" in text:
        say(
            f"warning: paths under {ROOT} are in it, which the cluster's nodes do not have. Set POISE_RUNS, POISE_DATA "
            "and POISE_MODELS to folders on their volume"
        )
    say(f"wrote {target}; to start: {command} {shell(target)}")


# What the written scripts call, on the nodes.

spec_option = click.option("--run", "spec", type=Path, required=True, help="run.json")


def read_spec(spec: Path) -> RunFile:
    return checked(RunFile.from_json(spec.read_text(), spec))


@cli.command(hidden=True)
@spec_option
@click.option("--logs", type=Path)
def attempt(spec: Path, logs: Path | None) -> None:
    """One attempt on the cluster at RAY_ADDRESS."""
    sys.exit(attempts_of.run_attempt(read_spec(spec), cluster=True, logs=logs))


@cli.command(hidden=True)
def job() -> None:
    """What `launch ray` has the cluster run."""
    from launch.rayjob import run_from_environment

    sys.exit(attempts_of.run_until_done(checked(run_from_environment()), cluster=True))


@cli.command(hidden=True)
@spec_option
def address(spec: Path) -> None:
    """This node's address on the run's interface."""
    from launch.node import address_of

    click.echo(address_of(read_spec(spec).interface))


@cli.command(hidden=True)
@spec_option
@click.option("--logs", type=Path, required=True)
@click.option("--head", help="HOST:PORT; without it this node is the head")
def node(spec: Path, logs: Path, head: str | None) -> None:
    """Ray on this node."""
    import os
    import socket

    from launch.node import run_node

    name = os.environ.get("SLURMD_NODENAME", socket.gethostname().split(".")[0])
    sys.exit(run_node(read_spec(spec), head, logs, name))


@cli.command()
@click.option("--address", required=True, help="HOST:PORT of Ray's head")
@click.option("--nodes", type=int, required=True)
@click.option("--devices", type=int, required=True, help="of each node")
@click.option("--timeout", type=float, default=300, help="seconds")
@click.option("--attempt", "logs", type=Path, hidden=True)
def wait(address: str, nodes: int, devices: int, timeout: float, logs: Path | None) -> None:
    """Until a Ray cluster has all its nodes and devices."""
    from launch.wait import wait_for_cluster

    found = wait_for_cluster(address, nodes, devices, timeout, lambda: bool(logs and marked(logs, LOST)))
    say("; ".join(f"{node.host} {node.address}: {node.devices} devices" for node in found))
