"""A pool of worker processes whose tasks have a hard time limit, usable from any thread's event loop.

Two lanes: a task gets `QUICK_S` in the first; one that is not done by then starts again in the second, with its whole
limit and processes of its own. So a task that never ends holds the others up for `QUICK_S`, not for its limit.
"""

import asyncio
import atexit
import builtins
import importlib
import json
import math
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

QUICK_S = 0.25  # twenty times what a usual answer takes
START_LIMIT_S = 300.0  # for loading libraries, on a slow file system
CONTROL_LIMIT_S = 30.0  # for forking or ending a worker

# The caller's main module is not imported: this is what the template process runs.
_BOOT = (
    "import json, sys; control, parent, path, start = json.loads(sys.argv[1]); sys.path[:] = path; "
    "from reward.pool_worker import template; template(control, parent, path, start)"
)


class TimeLimitExceeded(Exception):
    """The task was still running at its limit; its process was killed."""


class WorkerDied(Exception):
    """The task's process ended without an answer (out of memory, a crash in native code), or none could be started."""


class TaskFailed(RuntimeError):
    """The task raised something that is neither built in nor of the function's own module."""


@dataclass
class _Task:
    function: str
    line: bytes
    limit_s: float
    future: Future = field(default_factory=Future)


def _name(function: Callable[..., Any]) -> str:
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if not module or module == "__main__" or not name.isidentifier():
        raise ValueError(f"{function!r}: workers run only functions at the top level of a module that can be imported")
    return f"{module}:{name}"


def _raised(reply: dict[str, Any], function: str) -> Exception:
    """The exception that a worker tells of; only classes that the task is known to raise are looked up."""
    module, _, name = reply["raised"].partition(":")
    text = str(reply["text"])
    if module in ("builtins", function.partition(":")[0]):
        kind = getattr(builtins if module == "builtins" else importlib.import_module(module), name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind(text)
            except TypeError:  # it wants more than a text (UnicodeDecodeError)
                pass
    return TaskFailed(f"{name}: {text}")


def _readable(end: socket.socket, wait_s: float) -> bool:
    poll = select.poll()  # select() refuses descriptors above 1,023
    poll.register(end, select.POLLIN)
    return bool(poll.poll(math.ceil(wait_s * 1e3)))


class _Connection:
    """Lines of JSON over a socket, with deadlines."""

    def __init__(self, end: socket.socket):
        self.socket, self._rest = end, b""
        end.settimeout(CONTROL_LIMIT_S)

    def receive(self, deadline: float) -> Any:
        """The next line's value. Raises TimeoutError at the deadline (monotonic), EOFError where the other end is
        gone."""
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0 or not _readable(self.socket, left):
                raise TimeoutError
            try:
                read = self.socket.recv(1 << 16)
            except OSError as error:
                raise EOFError from error
            if not read:
                raise EOFError
            self._rest += read
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    def gone(self) -> bool:
        """Whether the other end of an idle connection has closed."""
        return _readable(self.socket, 0)


class _Template:
    """The process that loaded the libraries, seen from here; all its workers die with it."""

    def __init__(self, start: str):
        ours, theirs = socket.socketpair()
        self._lock = threading.RLock()
        self._control = _Connection(ours)
        arguments = json.dumps([theirs.fileno(), os.getpid(), [str(entry) for entry in sys.path], start])
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-c", _BOOT, arguments],
                stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip
        try:
            reply = self._control.receive(time.monotonic() + START_LIMIT_S)
        except (EOFError, TimeoutError) as error:
            self.kill()
            how = f"none within {START_LIMIT_S:g} s" if isinstance(error, TimeoutError) else "it ended"
            raise WorkerDied(f"no worker process could be started: {how}") from error
        if "failed" in reply:
            self.kill()
            raise WorkerDied(f"no worker process could be started: {reply['failed']}")

    def _ask(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        with self._lock:
            try:
                socket.send_fds(self._control.socket, [json.dumps(request).encode()], fds)
                return self._control.receive(time.monotonic() + CONTROL_LIMIT_S)
            except (OSError, EOFError) as error:  # TimeoutError is an OSError
                self.kill()
                raise WorkerDied("the process that starts the workers is gone") from error

    def fork(self) -> tuple[_Connection, int]:
        ours, theirs = socket.socketpair()
        with theirs:
            pid = self._ask({"fork": True}, [theirs.fileno()])["pid"]
        return _Connection(ours), pid

    def end(self, pid: int) -> int:
        """Kill a worker; how it ended: a status, or the signal's number, negative."""
        return self._ask({"end": pid}, [])["status"]

    def kill(self) -> None:
        """Safe from any thread: one that waits for an answer finds the other end closed, and its own still open."""
        self.process.kill()
        self.process.wait()
        with self._lock:
            self._control.socket.close()

    def alive(self) -> bool:
        return self.process.poll() is None


class _Worker:
    """One forked process."""

    def __init__(self, template: _Template):
        self._template, self.tasks = template, 0
        self._connection, self._pid = template.fork()

    def run(self, line: bytes, limit_s: float) -> Any:
        self.tasks += 1
        try:
            self._connection.socket.sendall(line)
        except OSError as error:
            raise EOFError from error
        return self._connection.receive(time.monotonic() + limit_s)

    def usable(self) -> bool:
        return self._template.alive() and not self._connection.gone()

    def end(self) -> str:
        """Kill it; says how it had ended."""
        self._connection.socket.close()
        try:
            return f"status {self._template.end(self._pid)}"
        except WorkerDied as error:
            return str(error)


class LimitedPool:
    """Worker processes, started at the first task, one pool per process of ours.

    They are forks of a process that was started afresh, not of this one: a fork of a process with threads (Ray, torch)
    may deadlock, and the main module of a script or notebook need not be importable.

    Args:
        workers: processes of each lane; those of the second are started when it is first needed.
        start: called once in the template process; loads what the tasks need. At the top level of a module.
        max_tasks: after so many a process is replaced, against slow leaks.
    """

    def __init__(self, workers: int, start: Callable[[], Any], max_tasks: int = 20_000):
        self._workers, self._start, self._max_tasks = workers, _name(start), max_tasks
        self._forget()

    def _forget(self) -> None:
        self._owner = os.getpid()
        self._changed = threading.Condition()
        self._template_lock = threading.Lock()
        self._template: _Template | None = None
        self._lanes: tuple[deque[_Task], ...] = (deque(), deque())
        self._threads: list[list[threading.Thread]] = [[], []]
        self._idle = [0, 0]
        self._closed = False

    async def run(self, function: Callable[..., Any], *args: Any, limit_s: float) -> Any:
        """`function(*args)` in a worker; what it raises is raised here. Arguments and result are JSON.

        Raises:
            TimeLimitExceeded, WorkerDied; TaskFailed: an exception of another module. ValueError: arguments that are
            no JSON, or a function that a worker could not import.
        """
        if not 0 < limit_s < math.inf:
            raise ValueError(f"limit_s={limit_s}: want a positive number of seconds")
        name = _name(function)
        try:
            line = json.dumps({"function": name, "args": args}).encode() + b"\n"
        except (TypeError, RecursionError) as error:
            raise ValueError(f"arguments of {name} are no JSON: {error}") from error
        task = _Task(name, line, limit_s)
        if self._owner != os.getpid():  # we are a fork; the threads stayed behind
            self._forget()
        self._put(0, task)
        return await asyncio.wrap_future(task.future)

    def _put(self, lane: int, task: _Task) -> None:
        with self._changed:
            if self._closed:
                return self._fail(task, WorkerDied("the pool was closed"))
            self._lanes[lane].append(task)
            if not self._threads[0]:
                atexit.register(self.close)
            if self._idle[lane] < len(self._lanes[lane]) and len(self._threads[lane]) < self._workers:
                thread = threading.Thread(target=self._work, args=(lane,), name=f"{self._start} {lane}", daemon=True)
                self._threads[lane].append(thread)
                thread.start()
            self._changed.notify_all()

    @staticmethod
    def _fail(task: _Task, error: Exception) -> None:
        if task.future.running() or task.future.set_running_or_notify_cancel():
            task.future.set_exception(error)

    def _take(self, lane: int) -> _Task | None:
        """The next task of a lane, waited for; None at the end."""
        with self._changed:
            self._idle[lane] += 1
            while not self._lanes[lane] and not self._closed:
                self._changed.wait()
            self._idle[lane] -= 1
            return None if self._closed else self._lanes[lane].popleft()

    def _work(self, lane: int) -> None:
        """A thread's life: one worker process, replaced where it ended."""
        worker: _Worker | None = None
        while (task := self._take(lane)) is not None:
            if lane == 0 and not task.future.set_running_or_notify_cancel():
                continue
            if worker is not None and (worker.tasks >= self._max_tasks or not worker.usable()):
                worker.end()
                worker = None
            try:
                worker = worker or self._new_worker()
            except (WorkerDied, OSError) as error:
                self._fail(task, error if isinstance(error, WorkerDied) else WorkerDied(str(error)))
                continue
            if not self._answered(worker, task, lane):
                worker = None
        if worker is not None:
            worker.end()

    def _answered(self, worker: _Worker, task: _Task, lane: int) -> bool:
        """Run a task; False where that cost its process. In the first lane it then gets a second go."""
        first = lane == 0 and task.limit_s > QUICK_S
        try:
            reply = worker.run(task.line, QUICK_S if first else task.limit_s)
        except (TimeoutError, EOFError) as error:
            ended = worker.end()
            if lane == 0 and (first or isinstance(error, EOFError)):
                self._put(1, task)
            elif isinstance(error, EOFError):
                task.future.set_exception(WorkerDied(f"the worker process ended with {ended}"))
            else:
                task.future.set_exception(TimeLimitExceeded(f"no result within {task.limit_s:g} s"))
            return False
        if "value" in reply:
            task.future.set_result(reply["value"])
        else:
            task.future.set_exception(_raised(reply, task.function))
        return True

    def _new_worker(self) -> _Worker:
        """A fork of the template, which is started where there is none (any more)."""
        for attempt in (0, 1):
            with self._template_lock:
                if self._template is None or not self._template.alive():
                    self._template = _Template(self._start)
                template = self._template
            try:
                return _Worker(template)
            except WorkerDied:
                if attempt:
                    raise
        raise AssertionError

    def close(self) -> None:
        """End all workers for good; tasks that wait or run are told that their worker died."""
        if self._owner != os.getpid():
            return
        atexit.unregister(self.close)
        with self._changed:
            waiting = [task for lane in self._lanes for task in lane]
            threads = [thread for lane in self._threads for thread in lane]
            for lane in self._lanes:
                lane.clear()
            self._threads = [[], []]
            self._closed = True
            self._changed.notify_all()
        for task in waiting:
            self._fail(task, WorkerDied("the pool was closed"))
        with self._template_lock:
            if self._template is not None:
                self._template.kill()
            self._template = None
        for thread in threads:
            thread.join()
