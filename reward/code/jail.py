"""Process 1 of the sandbox: builds an empty world around itself, runs each test case in it, and reports as JSON.

Run by `reward.code.local_sandbox` inside new user, mount, process, network and IPC namespaces; standard library only.
The world is in `reward.code.world`: the interpreter and the system's libraries read-only, no other file, no network,
nothing of the caller's environment. Each case has a room in it, with processes and folders of its own: it cannot name
this process, nor the file its output goes to, nor another case. It runs without capabilities, under resource limits
and a seccomp filter (`reward.code.seccomp`), and all of it ends with it.

So whatever a program does to its surroundings is an outcome of the program. Only a fault of ours raises.

Standard input: {"runs": [{"source", "stdin", "tests", "prefix"}], "limits", "python", "shown", "hidden", "uids",
"stop_at_failure"}. Standard output: a list of {"status", "stdout", "stderr"}, status "ok", "error", "time", "memory",
"output" or "unusable" (the tests cannot judge any program). Where "tests" is text, a second process runs it
(`reward.code.judge`), in a room of its own, and the status is its verdict.
"""

import ctypes
import fcntl
import json
import marshal
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import MAGIC_NUMBER
from typing import NoReturn

import judge
from meter import Meter
from seccomp import LIBC, forbid_calls
from world import CLONE_NEWIPC, CLONE_NEWNS, CLONE_NEWPID, build_room, build_world, check, unshare

PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 4, 24, 38
F_ADD_SEALS, NO_MORE_CHANGES, MFD_NOEXEC_SEAL = 1033, 0xF, 8
MEGABYTE = 1 << 20
ENDED_BY = {int(signal.SIGXCPU): 101, int(signal.SIGXFSZ): 102}  # exit codes of a room, by what ended the program
HARNESS = ("wire", "player")
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/box", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}


def restrict(limits: dict, uid: int | None) -> None:
    """In a child, before what must be held: limits, and no way back to any privilege."""
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # where the machine's memory ends, this ends first
    for kind, value in (
        (resource.RLIMIT_AS, limits["memory_mb"] * MEGABYTE),
        (resource.RLIMIT_CPU, limits["time_s"] + 1),
        (resource.RLIMIT_FSIZE, limits["file_mb"] * MEGABYTE),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 1),  # 0 would still start a program that collects dumps
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_MEMLOCK, 1 << 16),
        (resource.RLIMIT_SIGPENDING, 256),
    ):
        resource.setrlimit(kind, (value, value))
    LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for capability in range(64):
        LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    if uid is not None:  # without a user namespace: no longer root
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    else:
        drop_capabilities()
    forbid_calls()


def drop_capabilities() -> None:
    """As root of a user namespace; what is executed then gets none either, the bounding set being empty."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    check(LIBC.capset(header, (ctypes.c_uint32 * 6)()), "capset")


@dataclass
class Room:
    """Processes in a process namespace of their own: the end of the first one, which `pid` and `handle` name here, is
    the end of all."""

    pid: int
    handle: int

    def end(self) -> int:
        """Kill what is left, and give the first one's exit code (-9 for a kill)."""
        signal.pidfd_send_signal(self.handle, signal.SIGKILL)
        os.close(self.handle)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def start_room(first: Callable[[int], NoReturn], keep: Sequence[int], own_processes: int) -> Room:
    """A new room. Raises RuntimeError for what goes wrong before its first process closes `tell`.

    Args:
        first: what its first process does; takes `tell`.
        keep: file descriptors that the first process keeps.
        own_processes: file descriptor of this process's own namespace.
    """
    told, tell = os.pipe()
    unshare(CLONE_NEWPID)  # of the next child
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # from inside, a first process gets only what it waits for
            close_all_but([*keep, tell])
            first(tell)
        except BaseException:
            os.write(tell, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(70)
    check(LIBC.setns(own_processes, CLONE_NEWPID), "setns")
    os.close(tell)
    room = Room(pid, os.pidfd_open(pid))
    with os.fdopen(told, "rb") as file:
        if fault := file.read():
            room.end()
            raise RuntimeError(fault.decode("utf-8", "replace"))
    return room


def close_all_but(keep: Sequence[int]) -> None:
    start = 0
    for number in sorted(keep):
        os.closerange(start, number)
        start = number + 1
    os.closerange(start, 4096)


def live(source: str, argv: list[str], files: list[int], limits: dict, uid: int | None, tell: int) -> NoReturn:
    """A program's room: its folders, the program, and the wait for its end."""
    unshare(CLONE_NEWNS | CLONE_NEWIPC)
    build_room(limits["disk_mb"])
    with open("/box/main.py", "wb") as file:
        file.write(source.encode("utf-8", "surrogatepass"))
    program = os.fork()
    if program == 0:
        become(argv, files, limits, uid, tell)
    os.closerange(0, 4096)
    while True:  # orphans come here too
        pid, status = os.wait()
        if pid == program:
            ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            os._exit(ENDED_BY.get(ended_by, 0 if status == 0 else 1))


def become(argv: list[str], files: list[int], limits: dict, uid: int | None, tell: int) -> NoReturn:
    """Turn into the program, with `files` as its file descriptors from 0 on."""
    high = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 32) for number in (*files, tell)]
    try:
        for name in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
            signal.signal(name, signal.SIG_DFL)
        os.setsid()
        for place, number in enumerate(high[:-1]):
            os.dup2(number, place)
        os.closerange(len(files), 32)
        os.chdir("/box")
        restrict(limits, uid)
        os.execve(argv[0], argv, ENVIRONMENT)
    except BaseException:
        os.write(high[-1], traceback.format_exc().encode()[-4000:])
    finally:
        os._exit(70)


def judge_tests(run: dict, line: tuple[int, int], result: int, limits: dict, uid: int | None, tell: int) -> NoReturn:
    """The tests' room. There is no folder to write to."""
    nothing = os.open("/dev/null", os.O_RDWR)
    for place in range(3):
        os.dup2(nothing, place)
    restrict(limits, uid)
    os.close(tell)
    with os.fdopen(line[0], "rb") as reading, os.fdopen(line[1], "wb") as writing:
        verdict = judge.verdict(run["tests"], run["prefix"], reading, writing)
        os.write(result, json.dumps(verdict).encode())
        os._exit(0)


def file_in_memory(content: bytes = b"", sealed: bool = False) -> int:
    """A file without a name. The program may cut or fill the one its output goes to: it is its output."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        number = os.memfd_create("case", flags | MFD_NOEXEC_SEAL)
    except OSError:  # kernels before 6.3
        number = os.memfd_create("case", flags)
    with os.fdopen(os.dup(number), "wb") as file:
        file.write(content)
    os.lseek(number, 0, os.SEEK_SET)
    if sealed:
        fcntl.fcntl(number, F_ADD_SEALS, NO_MORE_CHANGES)
    return number


def run_case(run: dict, task: dict, own_processes: int, meter: Meter) -> dict:
    """One test case."""
    limits, uids = task["limits"], task["uids"]
    stdin = file_in_memory(run["stdin"].encode("utf-8", "surrogatepass"), sealed=True)
    out, err, result = file_in_memory(), file_in_memory(), file_in_memory()
    files, argv = [stdin, out, err], [task["python"], "-I", "-B", "/box/main.py"]
    opened = [*files, result]
    tests: Room | None = None
    if run["tests"] is not None:
        answers, answering = os.pipe()
        questions, asking = os.pipe()
        files += [questions, answering]
        opened += [answers, asking, questions, answering]
        argv[-1] = "/harness/player.pyc"
    try:
        program = start_room(
            lambda tell: live(run["source"], argv, files, limits, uids[0], tell), files, own_processes
        )  # fmt: skip
        try:
            if run["tests"] is not None:
                line = (answers, asking)
                tests = start_room(
                    lambda tell: judge_tests(run, line, result, limits, uids[1], tell), [*line, result], own_processes
                )
                for number in (questions, answering, answers, asking):  # so that the end of one is seen by the other
                    os.close(number)
                    opened.remove(number)
            status = watch(program, tests, limits, meter)
        finally:
            if tests is not None:
                tests.end()
            code = program.end()
        stdout = os.pread(out, limits["output_kb"] * 1024 + 1, 0)
        stderr = os.pread(err, 2000, max(0, os.fstat(err).st_size - 2000)).decode("utf-8", "replace")
        if status is None and tests is not None:
            verdict = json.loads(os.pread(result, 1 << 16, 0) or b"{}")
            status = verdict.get("status", "error")  # without a word: ended by what the program made it hold
            stderr = f"{stderr}\n{verdict.get('stderr', '')}"
        elif status is None:
            status = {0: "ok", ENDED_BY[signal.SIGXCPU]: "time", ENDED_BY[signal.SIGXFSZ]: "output"}.get(code, "error")
            if len(stdout) > limits["output_kb"] * 1024:
                status = "output"
    finally:
        for number in opened:
            os.close(number)
    text = stdout[: limits["output_kb"] * 1024].decode("utf-8", "replace")
    return {"status": status, "stdout": text, "stderr": stderr}


def watch(program: Room, tests: Room | None, limits: dict, meter: Meter) -> str | None:
    """Wait for the tests' end, or the program's where there are none. "time" or "memory" where a limit came first."""
    ended = select.poll()
    ended.register((tests or program).handle, select.POLLIN)
    ended.register(sys.stdout, 0)  # an error there says that nobody waits for the reports any more
    others = {os.getpid(), program.pid} | ({tests.pid} if tests else set())
    pause, end = 0.005, time.monotonic() + limits["time_s"]
    while True:
        left = end - time.monotonic()
        for number, _ in ended.poll(1000 * max(0.0, min(pause, left))):
            if number == sys.stdout.fileno():
                raise BrokenPipeError("the caller is gone")
            return None
        if left <= 0:
            return "time"
        pause = min(0.05, pause * 1.5)
        if meter.over(limits["memory_mb"], others):
            return "memory"


def harness() -> dict[str, bytes]:
    """Compiled files for the program's side of tests, by name."""
    files = {}
    for name in HARNESS:
        with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.py"), encoding="utf-8") as file:
            code = compile(file.read(), f"{name}.py", "exec")
        files[f"{name}.pyc"] = MAGIC_NUMBER + bytes(12) + marshal.dumps(code)
    return files


def main() -> None:
    os.umask(0o022)
    task = json.load(sys.stdin)
    LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # nothing can look into this process and its children, nor at their pipes
    files = harness() if any(run["tests"] is not None for run in task["runs"]) else {}
    build_world(task["shown"], task["hidden"], files)
    own_processes, meter = os.open("/proc/self/ns/pid", os.O_RDONLY), Meter()
    reports = []
    for run in task["runs"]:
        reports.append(run_case(run, task, own_processes, meter))
        if task["stop_at_failure"] and reports[-1]["status"] != "ok":
            break
    json.dump(reports, sys.stdout)
