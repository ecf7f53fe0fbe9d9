"""A run as a job of an existing Ray cluster, by Ray's own job client."""

import asyncio
import os
import shlex
import sys
from typing import Any

from launch.attempt import say
from launch.environment import check_public, public_environment, secrets
from launch.runfile import ROOT, RunFile, RunFileError

SPEC = "POISE_RUN"  # the run file, as JSON, in the job's environment
ENTRYPOINT = ["python", "-m", "launch", "job"]


def check_folder(run: RunFile) -> None:
    """Raises RunFileError where the run would write into the uploaded copy of the project."""
    if run.folder is None or not os.path.isabs(os.path.expanduser(run.folder)):
        raise RunFileError(
            f"folder: {run.folder}: on a cluster the project is a copy under /tmp/ray, and checkpoints in it would be "
            "lost. Set an absolute path on a filesystem that all nodes share"
        )


def runtime_environment(run: RunFile) -> dict[str, Any]:
    """The job's runtime environment. verl's own keys are not in it: Ray refuses a key that both name."""
    check_folder(run)
    check_public("the job", run.to_json(), run)
    return {
        "working_dir": str(ROOT),
        "excludes": run.ray.excludes,
        "env_vars": {**public_environment(run), SPEC: run.to_json()},
    }


def _with_secrets(run: RunFile, runtime_env: dict[str, Any]) -> dict[str, Any]:
    found = secrets(run)
    if run.ray.secrets == "cluster":
        if found:
            say(
                f"not sent: {', '.join(sorted(found))}. The Ray nodes must have them in their own environment; "
                "ray.secrets: runtime_env sends them, and Ray then writes them to its logs on the cluster"
            )
        return runtime_env
    return runtime_env | {"env_vars": runtime_env["env_vars"] | found}


def submit(run: RunFile, address: str, ask=input) -> int:
    """Submit, follow the log, and return the exit status of the job: 0, or 1 where it failed or was stopped.

    Args:
        address: of the cluster's dashboard, http://HOST:PORT.
        ask: how a question is put after Ctrl-C.
    """
    from ray.job_submission import JobStatus, JobSubmissionClient

    client = JobSubmissionClient(address)
    runtime_env = _with_secrets(run, runtime_environment(run))
    job = client.submit_job(entrypoint=shlex.join(ENTRYPOINT), runtime_env=runtime_env, metadata={"run": run.name})
    say(f"job {job} at {address}")
    while True:
        try:
            asyncio.run(_follow(client, job))
            break
        except KeyboardInterrupt:
            if _wants_stop(ask):
                client.stop_job(job)
                say("stopping the job; its newest checkpoint is kept")
            else:
                say(f"the job goes on. Its log: ray job logs --follow {job} --address {address}")
                return 0
    details = client.get_job_info(job)
    say(f"job {job}: {details.status.value}" + (f" ({details.message})" if details.message else ""))
    if details.status == JobStatus.SUCCEEDED:
        return 0
    return details.driver_exit_code or 1


async def _follow(client, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        sys.stdout.write(lines)
        sys.stdout.flush()


def _wants_stop(ask) -> bool:
    try:
        return ask("\nStop the job on the cluster? [y/N] ").strip().lower() in ("y", "yes")
    except (EOFError, KeyboardInterrupt):
        return False


def run_from_environment() -> RunFile:
    """In the job: the run that was submitted."""
    if SPEC not in os.environ:
        raise RunFileError(f"{SPEC} is not set: this is the command that `launch ray` has the cluster run")
    return RunFile.from_json(os.environ[SPEC])
