"""The local sandbox under real attacks, and programs judged by their cases."""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from reward.code.cases import program_of, read_cases, same_output
from reward.code.local_sandbox import Limits, LocalSandbox, Run, SandboxUnavailable
from reward.code.verifier import CodeVerifier

LIMITS = {"time_s": 2, "memory_mb": 300, "file_mb": 4, "disk_mb": 16, "output_kb": 64, "processes": 16}

MANY_CHILDREN = """
import os, time
for _ in range(9):
    if not os.fork():
        x = b"1" * (10**8)
        time.sleep(9)
time.sleep(9)
"""
# memory that is no process's: anonymous files, System V segments, a tmpfs in a user namespace of one's own
HIDDEN_MEMORY = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def outcome(result):
    print(result if result >= 0 else "refused" if ctypes.get_errno() == 1 else ctypes.get_errno())
outcome(libc.memfd_create(b"x", 0))
outcome(libc.shmget(0, 1 << 20, 0o1600))
outcome(libc.unshare(0x10020000))
outcome(libc.syscall({"x86_64": 56, "aarch64": 220}[os.uname().machine], 0x10000011, 0, 0, 0, 0))
"""
MANY_FILES = """
try:
    for n in range(10**6):
        open(f"/box/{n}", "w").close()
except OSError as error:
    print(error.errno, n < 5000)
"""
LEAVES_THINGS = """
import os
for folder in ("/box", "/tmp"):
    os.makedirs(folder + "/left/deep")
    open(folder + "/left/deep/file", "w").close()
if os.fork() == 0:
    os.setsid()
    while True:
        pass
"""
LOOKS_AROUND = """
import os
print(os.listdir("/box"), "left" in os.listdir("/tmp"), len([name for name in os.listdir("/proc") if name.isdigit()]))
"""


@pytest.fixture(scope="module")
def sandbox():
    try:
        return LocalSandbox(Limits(**LIMITS))
    except SandboxUnavailable as error:
        pytest.skip(f"this machine cannot isolate a program: {error}")


@pytest.fixture(scope="module")
def verifier(sandbox):
    return CodeVerifier(**LIMITS)


def run(sandbox, source, stdin=""):
    start = time.monotonic()
    [report] = asyncio.run(sandbox.run([Run(source, stdin)], False))
    assert time.monotonic() - start < 8
    return report


def judged(verifier, program, ground_truth):
    response = f"<think>hm ```python\nprint('no')\n```</think>Here it is:\n```python\n{program}\n```\nDone."
    return asyncio.run(verifier.verify(response, ground_truth, {}))


def test_a_program_runs(sandbox):
    report = run(sandbox, "import math, sys\nprint(math.factorial(int(sys.stdin.read())))", "5")
    assert (report.status, report.stdout) == ("ok", "120\n")


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("while True: pass", "time"),
        ("import time; time.sleep(60)", "time"),
        ("import signal\nfor s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)\nwhile True: pass", "time"),
        ("x = []\nwhile True: x.append(bytearray(10**6))", "error"),  # MemoryError at its own limit
        (MANY_CHILDREN, "memory"),
        ("print('x' * 10**6)", "output"),
        ("import os\nwhile True: os.write(1, b'x' * 4096)", "output"),
        ("f = open('/box/f', 'wb')\nfor _ in range(10**4): f.write(b'x' * 4096)", "error"),
        ("raise SystemExit(3)", "error"),
        ("import os; os.kill(1, 9); os.kill(1, 15)", "error"),
        ("import ctypes; ctypes.string_at(0)", "error"),
    ],
)  # fmt: skip
def test_limits(sandbox, source, status):
    assert run(sandbox, source).status == status


def test_a_fork_bomb_ends_and_leaves_nothing(sandbox):
    before = {process.pid for process in psutil.process_iter()}
    report = run(sandbox, "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass")
    assert report.status in ("time", "memory")
    deadline = time.monotonic() + 5
    while left := [p for p in psutil.process_iter(["cmdline"]) if p.pid not in before and "main.py" in str(p.info)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_many_files_fill_only_the_sandbox(sandbox):
    assert run(sandbox, MANY_FILES).stdout == "28 True\n"
    assert run(sandbox, "import os; print(os.listdir('/box'))").stdout == "['main.py']\n"


def test_nothing_outside_is_seen_or_written(sandbox, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    os.environ["POISE_TEST_TOKEN"] = "t0ken"
    source = f"""
import os
print(os.path.exists({str(secret)!r}), os.path.exists({str(Path(__file__))!r}), "POISE_TEST_TOKEN" in os.environ)
for path in ("/x", "/usr/x", "/etc/x", "/proc/sys/kernel/hostname", {str(tmp_path / "new")!r}):
    try:
        open(path, "w")
        print("wrote", path)
    except OSError:
        pass
"""
    assert run(sandbox, source).stdout == "False False False\n"
    assert list(tmp_path.iterdir()) == [secret]


def test_no_network(sandbox):
    source = """
import socket
for family, address in ((socket.AF_INET, ("127.0.0.1", 22)), (socket.AF_INET, ("192.0.2.1", 80))):
    try:
        socket.create_connection(address, timeout=1)
        print("connected")
    except OSError as error:
        print(error.errno)
"""
    assert set(run(sandbox, source).stdout.split()) <= {"101", "111"}


def test_no_privileges(sandbox):
    source = """
import ctypes, os
libc = ctypes.CDLL(None)
print(libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, b""), libc.sethostname(b"x", 1))
print(next(line for line in open("/proc/self/status") if line.startswith("CapEff")).split()[1])
try:
    os.listdir("/proc/1/fd")
except OSError as error:
    print(error.errno)
"""
    assert run(sandbox, source).stdout.split() == ["-1", "-1", "0" * 16, "2"]  # process 1 is not even seen


def test_no_memory_outside_the_limits(sandbox):
    report = run(sandbox, HIDDEN_MEMORY)
    assert (report.status, report.stdout.split()) == ("ok", ["refused"] * 4)


def test_processes_and_threads_still_work(sandbox):
    source = "import subprocess, sys, threading\nthread = threading.Thread(target=print, args=(1,))\nthread.start()\n"
    source += "thread.join()\nprint(subprocess.check_output([sys.executable, '-c', 'print(2)'], text=True))"
    assert run(sandbox, source).stdout.split() == ["1", "2"]


def test_what_a_case_leaves_is_gone_in_the_next(sandbox):
    reports = asyncio.run(sandbox.run([Run(LEAVES_THINGS), Run(LOOKS_AROUND)], False))
    assert reports[1].stdout == "['main.py'] False 1\n"


def test_the_sandbox_dies_with_its_parent(sandbox):
    """kill -9 of the process that runs it: nothing is left after the wall limit."""
    code = (
        "import asyncio\nfrom reward.code.local_sandbox import *\n"
        "s = LocalSandbox(Limits(time_s=2))\nprint('ready', flush=True)\n"
        "asyncio.run(s.run([Run('while True: pass  # orphan')] * 9, False))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "ready\n"
    time.sleep(1)
    inside = psutil.Process(parent.pid).children(recursive=True)
    assert inside
    parent.kill()
    parent.wait()
    gone, alive = psutil.wait_procs(inside, timeout=8)
    assert not alive


def test_unsandboxed_runs_are_refused(monkeypatch):
    import reward.code.local_sandbox as module

    module._entrance.cache_clear()
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(SandboxUnavailable, match="SandboxFusion"):
        LocalSandbox()
    module._entrance.cache_clear()


def test_a_sandbox_that_does_not_isolate_is_refused(monkeypatch):
    import reward.code.local_sandbox as module

    # a command that runs the inside without namespaces: mounting is refused or the self-test finds the leak
    monkeypatch.setattr(module, "_entrance", lambda: ("/usr/bin/env", "unshare", "--mount", "--pid", "--fork"))
    with pytest.raises(SandboxUnavailable, match="self-test failed|did not|ended with status"):
        LocalSandbox()


STDIO = {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7"]}
CALLS = {"fn_name": "add", "inputs": [[1, 2], [3, 4]], "outputs": [3, [7]]}
ASSERTS = ["assert add(1, 2) == 3", "assert add(3, 4) == 7"]
READ = "a, b = map(int, input().split())\n"


@pytest.mark.parametrize(
    ("program", "ground_truth", "score"),
    [
        (READ + "print(a + b)", STDIO, 1.0),
        (READ + "print(a - b)", STDIO, 0.0),
        (READ + "print(a + b if a == 1 else 0)", STDIO, 0.0),
        ("def add(a, b): return a + b", CALLS, 1.0),
        ("class Solution:\n  def add(self, a, b): return a + b", json.dumps(CALLS), 1.0),
        ("def add(a, b):\n  print('noise')\n  return a * b", CALLS, 0.0),
        ("def other(): pass", CALLS, 0.0),
        ("def add(a, b): return object()", CALLS, 0.0),
        ("def add(a, b): return a + b", ASSERTS, 1.0),
        ("def add(a, b): return a + b", "\n".join(ASSERTS), 1.0),
        ("def add(a, b): return 3", ASSERTS, 0.0),
        ("import sys; sys.exit(0)", ASSERTS, 0.0),
        ("import os; os._exit(0)", CALLS, 0.0),
        ("import atexit, os\natexit.register(lambda: os._exit(0))\ndef add(a, b): return 0", ASSERTS, 0.0),
        ("this is no program", STDIO, 0.0),
        ("while True: pass", STDIO, 0.0),
    ],
)
def test_verdicts(verifier, program, ground_truth, score):
    verdict = judged(verifier, program, ground_truth)
    assert (verdict.score, verdict.failed) == (score, False)


def test_share_of_cases(sandbox):
    partial = CodeVerifier(partial=True, **LIMITS)
    verdict = judged(partial, READ + "print(a + b if a == 1 else 0)", STDIO)
    assert (verdict.score, verdict.acc) == (0.5, 0.0)


SLOW = "import time\ntime.sleep(0.9)\nprint(input())"


def test_cases_that_are_each_in_time_are_in_time_together():
    """Whatever their number: there is no budget that one case could use up for another."""
    verifier = CodeVerifier(time_s=2, memory_mb=300)
    verdict = judged(verifier, SLOW, {"inputs": list("123456"), "outputs": list("123456")})
    assert (verdict.score, verdict.failed) == (1.0, False)


def test_a_program_that_uses_all_its_time_in_every_case_is_wrong(sandbox):
    partial = CodeVerifier(partial=True, time_s=1, memory_mb=300)
    verdict = judged(partial, "import time\ntime.sleep(60)", {"inputs": list("1234"), "outputs": list("1234")})
    assert (verdict.score, verdict.failed) == (0.0, False)


def test_all_cases_are_run_with_null(sandbox):
    cases = {"inputs": ["1"] * 65 + ["2"], "outputs": ["1"] * 66}
    program = "print(1 if input() == '1' else 2)"
    assert judged(CodeVerifier(max_cases=2, **LIMITS), program, cases).score == 1.0
    assert judged(CodeVerifier(max_cases=None, **LIMITS), program, cases).score == 0.0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_cases": 0}, "max_cases=0"), ({"max_cases": -1}, "max_cases=-1"), ({"max_cases": True}, "max_cases=True"),
        ({"max_cases": 2.0}, "max_cases=2.0"), ({"max_cases": "64"}, "max_cases='64'"), ({"parallel": 0}, "parallel=0"),
        ({"parallel": None}, "parallel=None"), ({"partial": 1}, "partial=1"), ({"partial": "false"}, "partial='false'"),
        ({"time_s": 0}, "time_s=0"), ({"time_s": 1.5}, "time_s=1.5"), ({"memory_mb": True}, "memory_mb=True"),
        ({"output_kb": "9"}, "output_kb='9'"), ({"disk_mb": None}, "disk_mb=None"),
        ({"sandbox_url": 80}, "sandbox_url"),
        ({"sandbox_url": "localhost:80"}, "sandbox_url"), ({"sandbox_url": ""}, "sandbox_url"),
    ],
)  # fmt: skip
def test_options_of_another_type_or_value_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        CodeVerifier(**options)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("unshare: unshare failed: Operation not permitted", "userns"),
        ("mount proc on /proc: Permission denied", "userns"),
        ("MemoryError", "memory and room"),
        ("PermissionError: [Errno 13] Permission denied: python", "interpreter starts"),
    ],
)
def test_the_remedy_names_what_is_wrong(said, wanted):
    from reward.code.local_sandbox import remedy

    assert wanted in remedy(said)


def test_no_program_is_wrong_and_bad_cases_are_said(verifier):
    assert asyncio.run(verifier.verify("no code at all", STDIO, {})).score == 0.0
    for bad in ({}, {"inputs": ["1"], "outputs": []}, "[]", 7):
        with pytest.raises(ValueError, match="test cases"):
            judged(verifier, "pass", bad)


def test_the_program_is_the_last_block_after_the_reasoning():
    assert program_of("```python\na\n```\n```\nb\n```") == "b\n"
    assert program_of("<think>```python\na\n```</think>none") is None
    assert program_of("```python\nnever closed") is None
    assert program_of("```python\n" + "x" * 200_000 + "\n```") is None


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [("1 2 \n", "1 2", True), ("1\n2", "1 2", False), ("0.3333333", "0.33333333", True), ("1", "1.0", True),
     ("1.1", "1", False), ("a", "1.0", False), ("", "", True), ("x", "", False)],
)  # fmt: skip
def test_outputs(found, expected, same):
    assert same_output(found, expected) is same


def test_case_forms():
    assert read_cases('{"inputs": [["1", "2"]], "outputs": [["3"]]}').inputs == ("1\n2",)
    assert read_cases("assert f() == 1").kind == "assert"
