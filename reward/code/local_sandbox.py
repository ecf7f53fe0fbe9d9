"""The local sandbox: Linux namespaces by util-linux's ``unshare``, see `reward.code.jail` for what is inside.

No isolation, no run: where the kernel or the container refuses namespaces, `LocalSandbox` raises at start.
"""

import asyncio
import json
import os
import pwd
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

UIDS = range(61_184, 65_520)  # reserved for passing users (systemd's DynamicUser); one each, so that limits are its own
GRACE_S, CASE_GRACE_S = 10.0, 2.0  # for starting and tidying up, of all cases and of each
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
_JAIL = "import sys; sys.path.insert(0, sys.argv[1]); import jail; jail.main()"
_ASK = """
import json, sys, sysconfig
print(json.dumps([[sys.base_prefix, sys.base_exec_prefix],
                  [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]]))
"""
EXPECTED = "network write write write files environment"


class SandboxUnavailable(RuntimeError):
    """Programs cannot be isolated on this machine."""


class SandboxFailed(RuntimeError):
    """The sandbox itself did not do its work; says nothing of the program."""


@dataclass(frozen=True)
class Limits:
    """Of one test case, each: a program with n cases may take n times `time_s`.

    time_s is wall time. memory_mb: of all its processes together, pipes and sockets included. disk_mb: all files in
    /box and /tmp; file_mb: each, and each of its two outputs, of which output_kb are read.
    """

    time_s: int = 6
    memory_mb: int = 1024
    disk_mb: int = 64
    file_mb: int = 16
    output_kb: int = 1024
    processes: int = 32

    def __post_init__(self):
        for name, value in vars(self).items():
            whole_number(f"sandbox limit {name}", value)


def whole_number(name: str, value: object) -> None:
    """Raises ValueError for what is not a whole number of at least 1."""
    if type(value) is not int or value < 1:
        raise ValueError(f"{name}={value!r}: want a whole number, at least 1")


class Run(NamedTuple):
    """A program for one test case: with `stdin` as its standard input, or judged by statements, `tests`. prefix: the
    head of `source` that is the task's own."""

    source: str
    stdin: str = ""
    tests: str | None = None
    prefix: str = ""


@dataclass(frozen=True)
class Report:
    """How one case ended: status "ok", "error" (non-zero exit; of tests: not passed), "time", "memory", "output", or
    "unusable" (the tests are at fault, whatever the program)."""

    status: str
    stdout: str
    stderr: str


class LocalSandbox:
    """Runs programs for test cases in namespaces of their own.

    Args:
        parallel: programs at once, in this process.
        python: interpreter for the programs; it and its libraries are shown to them, read-only.

    Raises:
        SandboxUnavailable: this machine cannot isolate a program.
    """

    def __init__(self, limits: Limits | None = None, parallel: int = 2, python: str | None = None):
        self.limits = limits or Limits()
        self.python = os.path.realpath(python or sys.executable)
        self.shown, self.hidden = interpreter_files(self.python), sorted(homes())
        self._threads = ThreadPoolExecutor(parallel, thread_name_prefix="sandbox")
        self._check()

    def _check(self) -> None:
        """Prove that what must be blocked is."""
        try:
            [report] = self._run([Run(SELF_TEST, str(Path(__file__).resolve()))], True)
        except SandboxFailed as error:
            raise SandboxUnavailable(f"no sandbox for code rewards: {error}. {remedy(str(error))}") from error
        if report.stdout.strip() != EXPECTED:
            raise SandboxUnavailable(f"the sandbox's self-test failed: {report}. {REMEDY}")

    async def run(self, runs: Sequence[Run], stop_at_failure: bool) -> list[Report]:
        """Run each in an empty folder; all in one world.

        Returns:
            Reports in order; with `stop_at_failure`, up to the first that is not "ok".

        Raises:
            SandboxFailed.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, runs, stop_at_failure)

    def _run(self, runs: Sequence[Run], stop_at_failure: bool) -> list[Report]:
        task = {
            "runs": [run._asdict() for run in runs],
            "limits": vars(self.limits),
            "stop_at_failure": stop_at_failure,
            "python": self.python,
            "shown": self.shown,
            "hidden": self.hidden,
            "uids": random.sample(UIDS, 2) if is_real_root() else [None, None],  # the program's, the tests'
        }
        try:
            process = subprocess.Popen(
                [*_entrance(), self.python, "-I", "-c", _JAIL, str(Path(__file__).parent)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/",
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise SandboxFailed(f"it did not start: {error}") from error
        try:
            limit = len(runs) * (self.limits.time_s + CASE_GRACE_S) + GRACE_S
            out, err = process.communicate(json.dumps(task), limit)
        except subprocess.TimeoutExpired:
            process.kill()  # unshare takes the whole process namespace with it
            process.communicate()
            raise SandboxFailed("it did not end in time") from None
        try:
            return [Report(**report) for report in json.loads(out)]
        except ValueError:
            said = err.strip().splitlines()[-1:] or ["nothing"]
            raise SandboxFailed(f"it ended with status {process.returncode} and said: {said[0][:500]}") from None


def remedy(said: str) -> str:
    """What to do about it."""
    if any(word in said.lower() for word in ("unshare", "mount", "setns", "not permitted")):
        return REMEDY
    return "Namespaces are not refused: see that the interpreter starts, and that the machine has memory and room."


def is_real_root() -> bool:
    """Whether this process may take other users' numbers; root of a container may have its own alone."""
    if os.geteuid() != 0:
        return False
    lines = [list(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return any(start <= UIDS.start and UIDS.stop <= start + length for start, _, length in lines)


def homes() -> set[str]:
    """People's folders, which no program may see."""
    users = {entry.pw_dir for entry in pwd.getpwall() if entry.pw_uid == 0 or entry.pw_uid >= 1000}
    users |= {os.path.expanduser("~"), os.environ.get("HOME", "")}
    return {path for path in map(os.path.realpath, filter(None, users)) if path.count("/") and path != "/"}


def interpreter_files(python: str) -> list[str]:
    """Files and folders that an interpreter needs: itself, its library, and the folder of shared libraries, unless
    that is somebody's own (~/lib beside ~/bin/python) or the machine's.

    Raises:
        SandboxUnavailable: the interpreter does not say.
    """
    try:
        asked = subprocess.run(
            [python, "-I", "-c", _ASK], check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        raise SandboxUnavailable(
            f"no sandbox for code rewards: {python} does not run: {said.strip()[-300:]}"
        ) from error
    prefixes, libraries = json.loads(asked.stdout)
    people = homes()
    found = [python]
    for prefix in map(os.path.realpath, prefixes):
        folder = Path(prefix) / "lib"
        if any(f"{home}/".startswith(f"{prefix.rstrip('/')}/") for home in people):
            found += [str(file) for file in folder.glob("lib*.so*")]
        elif folder.is_dir():
            found.append(str(folder))
    found += [os.path.realpath(folder) for folder in libraries if os.path.isdir(folder)]
    if taken := [path for path in found if path.startswith(("/tmp/", "/box/", "/proc/", "/dev/"))]:
        raise SandboxUnavailable(
            f"no sandbox for code rewards: {taken[0]} lies where programs have their own folders; use another"
        )
    kept: list[str] = []
    for path in sorted(set(found)):  # a folder comes before what is in it
        if not any(path.startswith(f"{folder}/") for folder in kept):
            kept.append(path)
    return kept


@cache
def _entrance() -> tuple[str, ...]:
    """The command in front: new namespaces. Root needs no user namespace; its cases run as another user."""
    unshare = shutil.which("unshare")
    if unshare is None:
        raise SandboxUnavailable(f"no sandbox for code rewards: util-linux's unshare is not installed. {REMEDY}")
    user = () if is_real_root() else ("--user", "--map-root-user")
    return (unshare, *user, "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child=KILL")
