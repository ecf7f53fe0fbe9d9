"""A pool of worker processes whose tasks have a hard time limit, usable from any thread's event loop."""

import asyncio
import atexit
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from pebble import ProcessExpired, ProcessPool


class TimeLimitExceeded(Exception):
    """The task was still running at its limit; its process was killed."""


class WorkerDied(Exception):
    """The task's process ended without an answer (out of memory, a crash in native code)."""


class LimitedPool:
    """Worker processes, started at the first task, one pool per process of ours.

    Processes are spawned, not forked: a fork of a process with threads (Ray, torch) may deadlock.

    Args:
        workers: processes.
        start: called once in each of them.
        max_tasks: after so many a process is replaced, against slow leaks.
    """

    def __init__(self, workers: int, start: Callable[[], None], max_tasks: int = 20_000):
        self._workers, self._start, self._max_tasks = workers, start, max_tasks
        self._lock = threading.Lock()
        self._pool: ProcessPool | None = None
        self._owner = 0

    def _running(self) -> ProcessPool:
        with self._lock:
            if self._pool is None or self._owner != os.getpid():
                self._pool = ProcessPool(
                    max_workers=self._workers,
                    max_tasks=self._max_tasks,
                    initializer=self._start,
                    context=multiprocessing.get_context("spawn"),
                )
                self._owner = os.getpid()
                atexit.register(self.close)
            return self._pool

    async def run(self, function: Callable[..., Any], *args: Any, limit_s: float) -> Any:
        """`function(*args)` in a worker; what it raises is raised here.

        Raises:
            TimeLimitExceeded, WorkerDied.
        """
        future = self._running().schedule(function, args=args, timeout=limit_s)
        try:
            return await asyncio.wrap_future(future)
        except FutureTimeout as error:
            raise TimeLimitExceeded(f"no result within {limit_s:g} s") from error
        except ProcessExpired as error:
            raise WorkerDied(f"the worker process ended with status {error.exitcode}") from error

    def close(self) -> None:
        """End all workers now."""
        with self._lock:
            if self._pool is not None and self._owner == os.getpid():
                self._pool.stop()
                self._pool.join()
            self._pool = None
