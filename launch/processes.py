"""Child processes in a session of their own, their output, and their end: nothing of them is left."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import cast

import psutil

from launch.redact import Secrets


class Child:
    """A command in its own session, which its children inherit: that is how they are told from other runs'.

    Its output goes to a file and to standard output, with secrets masked.

    Args:
        keep: open file descriptors that it inherits.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        secrets: Secrets,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        keep: Sequence[int] = (),
    ):
        log.parent.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=env, cwd=cwd, start_new_session=True, pass_fds=keep, preexec_fn=_heed_interrupt,
        )  # fmt: skip
        assert self.process.stdout is not None
        output = cast(BufferedReader, self.process.stdout)
        self._pump = threading.Thread(target=_copy, args=(output, log, secrets), daemon=True)
        self._pump.start()

    def wait(self, timeout: float | None = None) -> int:
        """Exit status, -N after signal N; raises subprocess.TimeoutExpired."""
        return self.process.wait(timeout)

    def interrupt(self, bound_s: float, number: int = signal.SIGINT) -> None:
        """Ask it to end, and let it have `bound_s` seconds for that."""
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(bound_s)
            except subprocess.TimeoutExpired:
                pass  # `clear` kills it

    def clear(self) -> int:
        """Kill whatever is left of the session; how many processes that were."""
        killed = 0
        while left := session_processes(self.process.pid):
            for process in left:
                try:
                    process.kill()
                    killed += 1
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.1)
        self.process.wait()
        self._pump.join(timeout=10)
        return killed


def _heed_interrupt() -> None:
    """A script's background jobs ignore SIGINT, and would hand that on to the trainer, which is ended by it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _copy(source: BufferedReader, log: Path, secrets: Secrets) -> None:
    stream = secrets.stream()
    with open(log, "ab", buffering=0) as file:

        def show(data: bytes) -> None:
            file.write(data)
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()

        while data := source.read1(1 << 16):
            show(stream.feed(data))
        show(stream.end())


def session_processes(session: int) -> list[psutil.Process]:
    """Living processes of a session."""
    found = []
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == session and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(psutil.Process(pid))
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


class Signals:
    """Turns signals into attributes for as long as the block lasts; a handler does nothing else."""

    def __init__(self) -> None:
        self.stop = False  # USR1: stop at the next step boundary
        self.end: int | None = None  # TERM, INT, HUP: end now

    def __enter__(self) -> "Signals":
        numbers = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def _note(self, number: int, frame) -> None:
        if number == signal.SIGUSR1:
            self.stop = True
        else:
            self.end = number

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
