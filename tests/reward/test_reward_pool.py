"""The worker pool: what is killed is replaced, what hangs costs nobody else, and a script needs no main guard."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from reward import process_pool
from reward.process_pool import LimitedPool, TaskFailed, TimeLimitExceeded, WorkerDied

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@pytest.fixture
def pool():
    made = LimitedPool(2, os.getpid)  # the workers cannot import this file
    yield made
    made.close()


async def pids(pool) -> set[int]:
    """Process ids of both workers of the first lane."""
    found: set[int] = set()
    while len(found) < 2:
        found |= set(await asyncio.gather(*(pool.run(os.getpid, limit_s=30) for _ in range(8))))
    return found


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)


@pytest.mark.parametrize("victims", [1, 2])
def test_idle_workers_that_are_killed_cost_no_task(pool, victims):
    async def go():
        for pid in sorted(await pids(pool))[:victims]:
            kill(pid)
        return await asyncio.gather(*(pool.run(abs, -n, limit_s=30) for n in range(20)))

    assert asyncio.run(go()) == list(range(20))


def test_one_busy_and_one_idle_worker_killed(pool):
    async def go():
        both = await pids(pool)
        busy = asyncio.create_task(pool.run(time.sleep, 0.2, limit_s=30))
        await asyncio.sleep(0.05)
        for pid in both:
            kill(pid)
        return await busy, await asyncio.gather(*(pool.run(abs, -n, limit_s=30) for n in range(20)))

    assert asyncio.run(go()) == (None, list(range(20)))  # the busy one's task ran a second time


def test_the_process_that_forks_the_workers_is_replaced_too(pool):
    async def go():
        await pids(pool)
        kill(pool._template.process.pid)
        return await asyncio.gather(*(pool.run(abs, -n, limit_s=30) for n in range(20)))

    assert asyncio.run(go()) == list(range(20))


def test_only_the_task_that_fails_fails(pool):
    async def go():
        bad = [
            pool.run(os.abort, limit_s=30),
            pool.run(time.sleep, 60, limit_s=1),
            pool.run(divmod, 1, 0, limit_s=30),
            pool.run(os.stat, "/no/such/file", limit_s=30),
        ]
        good = [pool.run(abs, -n, limit_s=30) for n in range(50)]
        return await asyncio.gather(*bad, *good, return_exceptions=True)

    aborted, slept, divided, stat, *good = asyncio.run(go())
    assert isinstance(aborted, WorkerDied) and f"status {-signal.SIGABRT}" in str(aborted)
    assert isinstance(slept, TimeLimitExceeded) and "within 1 s" in str(slept)
    assert isinstance(divided, ZeroDivisionError) and isinstance(stat, FileNotFoundError)
    assert good == list(range(50))


def test_an_exception_of_another_module_comes_as_text(pool):
    import json

    with pytest.raises(TaskFailed, match="JSONDecodeError: Expecting value"):
        asyncio.run(pool.run(json.loads, "x", limit_s=30))


def test_tasks_that_hang_hold_a_good_one_up_for_a_moment_only():
    pool = LimitedPool(1, os.getpid)

    async def go():
        await pool.run(abs, -1, limit_s=30)
        hanging = [asyncio.create_task(pool.run(time.sleep, 60, limit_s=1)) for _ in range(10)]
        await asyncio.sleep(0)
        start = time.monotonic()
        assert await pool.run(abs, -2, limit_s=1) == 2
        held_up = time.monotonic() - start
        for task in hanging[1:]:
            task.cancel()
        with pytest.raises(TimeLimitExceeded):
            await hanging[0]
        return held_up

    try:
        assert asyncio.run(go()) < 5  # 0.25 s each; with their whole limit it would be more than 10
    finally:
        pool.close()


def test_a_task_that_takes_longer_than_a_moment_still_gets_its_whole_limit(pool):
    async def go():
        start = time.monotonic()
        await pool.run(time.sleep, 1.5, limit_s=10)
        return time.monotonic() - start

    assert 1.5 < asyncio.run(go()) < 8


def test_several_event_loops_share_a_pool(pool):
    results = []

    def loop(first):
        async def go():
            return await asyncio.gather(*(pool.run(abs, -n, limit_s=30) for n in range(first, first + 50)))

        results.append((first, asyncio.run(go())))

    threads = [threading.Thread(target=loop, args=(first,)) for first in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [(first, list(range(first, first + 50))) for first in (0, 100, 200)]


def test_what_cannot_be_sent_is_said(pool):
    with pytest.raises(ValueError, match="no JSON"):
        asyncio.run(pool.run(abs, {1, 2}, limit_s=1))
    with pytest.raises(ValueError, match="top level of a module"):
        asyncio.run(pool.run(lambda: 1, limit_s=1))
    with pytest.raises(ValueError, match="limit_s=nan"):
        asyncio.run(pool.run(abs, 1, limit_s=float("nan")))
    assert asyncio.run(pool.run(ascii, "\ud800\x00", limit_s=30)) == "'\\ud800\\x00'"


def test_libraries_that_do_not_load_are_a_failure_that_says_so():
    pool = LimitedPool(1, os.getpid)
    pool._start = "reward.pool_worker:no_such_function"
    with pytest.raises(WorkerDied, match="could be started: AttributeError.*no_such_function"):
        asyncio.run(pool.run(abs, 1, limit_s=30))
    pool.close()


def test_a_closed_pool_answers_that_it_is(pool):
    assert asyncio.run(pool.run(abs, -1, limit_s=30)) == 1
    template = psutil.Process(pool._template.process.pid)
    workers = [template, *template.children()]
    pool.close()
    assert len(workers) == 2
    assert not psutil.wait_procs(workers, timeout=10)[1]
    with pytest.raises(WorkerDied, match="closed"):
        asyncio.run(pool.run(abs, -1, limit_s=30))


SCRIPT = r"""
import asyncio
from reward.math_verifier import MathVerifier
print(asyncio.run(MathVerifier(60).verify("\\boxed{2/4}", "1/2", {})))
"""


@pytest.mark.parametrize("way", ["file", "stdin"])
def test_a_script_needs_no_main_guard(tmp_path, way):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, *(["script.py"] if way == "file" else ["-"])]
    done = subprocess.run(
        command, cwd=tmp_path, input=SCRIPT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ROOT}
    )
    assert done.stdout.count("Verdict(score=1.0") == 1 and done.returncode == 0, done.stderr


def test_a_fork_of_the_caller_gets_workers_of_its_own(tmp_path):
    script = """
import asyncio, os
from reward.process_pool import LimitedPool
pool = LimitedPool(1, os.getpid)
first = asyncio.run(pool.run(os.getpid, limit_s=30))
if not (pid := os.fork()):
    second = asyncio.run(pool.run(os.getpid, limit_s=30))
    pool.close()
    os._exit(0 if second != first else 1)
print(os.waitpid(pid, 0)[1], asyncio.run(pool.run(os.getpid, limit_s=30)) == first)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ROOT}
    )
    assert done.stdout == "0 True\n", done.stderr


def test_a_task_is_answered_although_the_pool_closes_while_its_worker_is_being_ended(monkeypatch):
    pool = LimitedPool(1, os.getpid)
    waits, readable = threading.Event(), process_pool._readable

    async def go():
        await pool.run(os.getpid, limit_s=30)
        control = pool._template._control.socket

        def slowly(end, wait_s):
            if end is control:  # between the request to end the worker and the wait for the answer
                waits.set()
                time.sleep(0.5)
            return readable(end, wait_s)

        monkeypatch.setattr(process_pool, "_readable", slowly)
        slept = asyncio.create_task(pool.run(time.sleep, 60, limit_s=0.2))
        assert await asyncio.to_thread(waits.wait, 30)
        await asyncio.to_thread(pool.close)
        return await asyncio.wait_for(asyncio.gather(slept, return_exceptions=True), 10)

    assert isinstance(asyncio.run(go())[0], TimeLimitExceeded)
