"""A run as a job of an existing Ray cluster, by Ray's own job client."""

import asyncio
import os
import re
import shlex
import socket
import sys
import time
from typing import Any
from urllib.parse import urlsplit

from launch.attempt import say
from launch.environment import check_public, public_environment, secrets
from launch.redact import Secrets
from launch.runfile import PROJECT, ROOT, RunFile, RunFileError

SPEC = "POISE_RUN"  # the run file, as JSON, in the job's environment
POLL_S = 1.0
CONNECT_S = 10.0
MAX_LOSSES = 20
# verl gives these to ray.init whatever the driver has, and Ray refuses a name that the job has too (a test compares).
VERLS_OWN = frozenset(
    "VERL_FULL_DETERMINISM VLLM_BATCH_INVARIANT VERL_RL_INSIGHT_ENABLE TRANSFER_QUEUE_ENABLE PYTHONHASHSEED "
    "CUBLAS_WORKSPACE_CONFIG FLASH_ATTENTION_DETERMINISTIC NCCL_DETERMINISTIC NCCL_ALGO NVTX_INJECTION64_PATH".split()
)
ENTRYPOINT = ["python", "-m", "launch", "job"]


def check_folder(run: RunFile) -> None:
    """Raises RunFileError where the run would write into the uploaded copy of the project."""
    if run.folder is None or not os.path.isabs(os.path.expanduser(run.folder)):
        raise RunFileError(
            f"folder: {run.folder}: on a cluster the project is a copy under /tmp/ray, and checkpoints in it would be "
            "lost. Set an absolute path on a filesystem that all nodes share"
        )


def job_environment(run: RunFile) -> dict[str, str]:
    """Variables of the job. The run file's others are in SPEC: the trainer has them, and verl hands them on."""
    variables = {name: value for name, value in public_environment(run).items() if name not in VERLS_OWN}
    for name, value in variables.items():
        if re.search(r"\$(\w|\{)", value):
            raise RunFileError(f"env.{name}: {value}: Ray puts variables in place of what follows '$'; write it out")
    # so does it in the JSON, where the dollar of a value can be written as its code
    return {**variables, SPEC: re.sub(rf"\$(?!{re.escape(PROJECT[1:])})", r"\\u0024", run.to_portable_json())}


def runtime_environment(run: RunFile) -> dict[str, Any]:
    """The job's runtime environment."""
    check_folder(run)
    check_public("the job", run.to_json(), run)
    return {
        "working_dir": str(ROOT),
        "excludes": run.ray.excludes,
        "env_vars": job_environment(run),
    }


def _with_secrets(run: RunFile, runtime_env: dict[str, Any]) -> dict[str, Any]:
    found = secrets(run).values
    if run.ray.secrets == "cluster":
        if found:
            say(
                f"not sent: {', '.join(sorted(found))}. The Ray nodes must have them in their own environment; "
                "ray.secrets: runtime_env sends them, and Ray then writes them to its logs on the cluster"
            )
        return runtime_env
    return runtime_env | {"env_vars": runtime_env["env_vars"] | found}


def check_address(address: str) -> None:
    """Before Ray's client, which waits for minutes and then speaks of something else.

    Raises:
        RunFileError: it is not a dashboard's address.
        RuntimeError: nothing listens there.
    """
    url = urlsplit(address)
    if not re.fullmatch(r"https?://[^/:]+(:\d{1,5})?(/.*)?", address):
        raise RunFileError(f"address: {address}: give the dashboard's, http://HOST:8265 (not Ray's HOST:6379)")
    try:
        with socket.create_connection((url.hostname, url.port or (443 if url.scheme == "https" else 80)), CONNECT_S):
            pass
    except OSError as error:
        raise RuntimeError(
            f"nothing answers at {address} ({error}): does the cluster run with its dashboard (--dashboard-host "
            "0.0.0.0), and is it reachable from here? Otherwise: kubectl port-forward, ssh -L"
        ) from error


def submit(run: RunFile, address: str, ask=input) -> int:
    """Submit, follow the log, and return the exit status of the job: 0, or 1 where it failed or was stopped.

    Args:
        address: of the cluster's dashboard, http://HOST:PORT.
        ask: how a question is put after Ctrl-C.
    """
    from ray.job_submission import JobStatus, JobSubmissionClient

    check_address(address)
    client = JobSubmissionClient(address)
    runtime_env = _with_secrets(run, runtime_environment(run))
    job = client.submit_job(entrypoint=shlex.join(ENTRYPOINT), runtime_env=runtime_env, metadata={"run": run.name})
    say(f"job {job} at {address}")
    log = Log(client, job, secrets(run))
    while True:
        try:
            log.follow()
            details = client.get_job_info(job)
            if details.status.is_terminal():
                break
        except KeyboardInterrupt:
            if not _wants_stop(ask):
                say(f"the job goes on. Its log: ray job logs --follow {job} --address {shlex.quote(address)}")
                return 0
            client.stop_job(job)
            say("stopping the job; its newest checkpoint is kept")
    log.end()
    say(f"job {job}: {details.status.value}" + (f" ({details.message})" if details.message else ""))
    if details.status == JobStatus.SUCCEEDED:
        return 0
    return details.driver_exit_code or 1


class Log:
    """The log of a job, on standard output. Ray sends it from its start each time; what was shown is left out."""

    def __init__(self, client, job: str, hidden: Secrets):
        self.client, self.job, self.stream = client, job, hidden.stream()
        self.shown = 0  # characters
        self.losses = 0

    def follow(self) -> None:
        """Until the job ends, or the connection does.

        Raises:
            RuntimeError: the connection was lost too often.
        """
        import aiohttp

        try:
            asyncio.run(self._follow())
        except (RuntimeError, OSError, aiohttp.ClientError) as error:  # proxies close connections that are long open
            self.losses += 1
            if self.losses > MAX_LOSSES:
                raise RuntimeError(
                    f"the connection to the cluster was lost {self.losses} times ({error}). The job goes on; its log: "
                    f"ray job logs --follow {self.job}"
                ) from error
        time.sleep(POLL_S)

    def _write(self, data: bytes) -> None:
        sys.stdout.write(data.decode(errors="replace"))
        sys.stdout.flush()

    def end(self) -> None:
        """What was held back, as it could have been the beginning of a secret."""
        self._write(self.stream.end())

    async def _follow(self) -> None:
        sent = 0
        async for text in self.client.tail_job_logs(self.job):
            sent += len(text)
            if sent > self.shown:
                self._write(self.stream.feed(text[self.shown - sent :].encode()))
                self.shown = sent


def _wants_stop(ask) -> bool:
    try:
        return ask("\nStop the job on the cluster? [y/N] ").strip().lower() in ("y", "yes")
    except (EOFError, KeyboardInterrupt):
        return False


def run_from_environment() -> RunFile:
    """In the job: the run that was submitted."""
    if SPEC not in os.environ:
        raise RunFileError(f"{SPEC} is not set: this is the command that `launch ray` has the cluster run")
    return RunFile.from_json(os.environ[SPEC], f"${SPEC}")
