"""The local sandbox: Linux namespaces by util-linux's ``unshare``, see `reward.code.jail` for what is inside.

No isolation, no run: where the kernel or the container refuses namespaces, `LocalSandbox` raises at start.
"""

import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

UIDS = range(61_184, 65_520)  # reserved for passing users (systemd's DynamicUser); one each, so that limits are its own
GRACE_S = 10.0  # for starting and tidying up
REMEDY = (
    "Give a SandboxFusion server (route option sandbox_url), or allow unprivileged user namespaces "
    "(sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0; in Docker "
    "--security-opt seccomp=unconfined). Programs written by a model are never run without isolation."
)
# What must not work inside, and what must.
SELF_TEST = """
import os, socket, sys
blocked = []
try:
    socket.create_connection(("192.0.2.1", 9), timeout=0.2)
except OSError as error:
    blocked.append(error.errno == 101 and "network")  # ENETUNREACH: there is no route, so nothing was sent
for path in ("/usr/x", "/x", "/etc/x"):
    try:
        open(path, "w")
    except OSError:
        blocked.append("write")
blocked.append(not os.path.exists(sys.stdin.read()) and "files")
blocked.append(set(os.environ) <= {"PATH", "HOME", "LANG", "OMP_NUM_THREADS", "LC_CTYPE"} and "environment")
print(*blocked)
"""
EXPECTED = "network write write write files environment"


class SandboxUnavailable(RuntimeError):
    """Programs cannot be isolated on this machine."""


class SandboxFailed(RuntimeError):
    """The sandbox itself did not do its work; says nothing of the program."""


@dataclass(frozen=True)
class Limits:
    """Of one test case, except `wall_s` and `disk_mb`, which are of all cases of a program together."""

    time_s: int = 6
    wall_s: int = 60
    memory_mb: int = 1024
    disk_mb: int = 64
    file_mb: int = 16
    output_kb: int = 1024
    processes: int = 32

    def __post_init__(self):
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"sandbox limit {name}={value}: want at least 1")


@dataclass(frozen=True)
class Report:
    """How one case ended: status "ok", "error" (non-zero exit), "time", "memory" or "output"."""

    status: str
    stdout: str
    stderr: str


class LocalSandbox:
    """Runs programs for test cases in namespaces of their own.

    Args:
        parallel: programs at once, in this process.
        python: interpreter for the programs; its prefix is shown to them, read-only.

    Raises:
        SandboxUnavailable: this machine cannot isolate a program.
    """

    def __init__(self, limits: Limits | None = None, parallel: int = 2, python: str | None = None):
        self.limits = limits or Limits()
        self.python = os.path.realpath(python or sys.executable)
        self._threads = ThreadPoolExecutor(parallel, thread_name_prefix="sandbox")
        self._check()

    def _check(self) -> None:
        """Prove that what must be blocked is."""
        try:
            [report] = self._run([(SELF_TEST, str(Path(__file__).resolve()))], True)
        except SandboxFailed as error:
            raise SandboxUnavailable(f"no sandbox for code rewards: {error}. {REMEDY}") from error
        if report.stdout.strip() != EXPECTED:
            raise SandboxUnavailable(f"the sandbox's self-test failed: {report}. {REMEDY}")

    async def run(self, runs: list[tuple[str, str]], stop_at_failure: bool) -> list[Report]:
        """Run each (source, standard input) in an empty folder; all in one world.

        Returns:
            Reports in order; with `stop_at_failure`, up to the first that is not "ok".

        Raises:
            SandboxFailed.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, runs, stop_at_failure)

    def _run(self, runs: list[tuple[str, str]], stop_at_failure: bool) -> list[Report]:
        task = {
            "runs": [{"source": source, "stdin": stdin} for source, stdin in runs],
            "limits": vars(self.limits),
            "stop_at_failure": stop_at_failure,
            "python": self.python,
            "prefixes": [str(Path(self.python).parents[1])],
            "uid": random.choice(UIDS) if os.geteuid() == 0 else None,
        }
        try:
            process = subprocess.Popen(
                [*_entrance(), self.python, "-I", "-c", _jail()],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/",
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise SandboxFailed(f"it did not start: {error}") from error
        try:
            out, err = process.communicate(json.dumps(task), self.limits.wall_s + self.limits.time_s + GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()  # unshare takes the whole process namespace with it
            process.communicate()
            raise SandboxFailed("it did not end in time") from None
        try:
            return [Report(**report) for report in json.loads(out)]
        except ValueError:
            said = err.strip().splitlines()[-1:] or ["nothing"]
            raise SandboxFailed(f"it ended with status {process.returncode} and said: {said[0][:500]}") from None


@cache
def _jail() -> str:
    return (Path(__file__).parent / "jail.py").read_text()


@cache
def _entrance() -> tuple[str, ...]:
    """The command in front: new namespaces. Root needs no user namespace; its cases run as another user."""
    unshare = shutil.which("unshare")
    if unshare is None:
        raise SandboxUnavailable(f"no sandbox for code rewards: util-linux's unshare is not installed. {REMEDY}")
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    return (unshare, *user, "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child=KILL")
