# ruff: noqa: E501 - programs are written as they run
"""Programs that forge the verdict of tests they do not pass. Each is wrong, and judged so: never "no judgement"."""

import asyncio

import pytest

from reward.code.local_sandbox import SandboxUnavailable
from reward.code.verifier import CodeVerifier

ASSERTS = ["assert add(1, 2) == 3", "assert add(30, 4) == 34"]
CHECK = {
    "functional": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(30, 4) == 34\ncheck(add)"
}
CLOSE = ["import math\nassert abs(root(2) - 1.4142135) < 1e-6", "assert math.isclose(root(9), 3.0)"]
LIAR = """
class Liar{base}:
    def __getattr__(self, name): return lambda *args, **kwargs: self
    def __call__(self, *args, **kwargs): return self
    def __bool__(self): return True
    def __hash__(self): return 0
    def __iter__(self): return iter([3, 34])
    def __contains__(self, other): return True
for name in "eq ne lt le gt ge".split():
    setattr(Liar, f"__{{name}}__", lambda self, other: True)
for name in "add radd sub rsub mul rmul truediv rtruediv mod rmod abs round float int index".split():
    setattr(Liar, f"__{{name}}__", lambda self, *other: 0)
def add(*args): return Liar({start})
root = add
"""
# Answers that are no messages, on the line itself.
LINE = "import os\ndef add(*args):\n    {}\nroot = add"

FORGERIES = {
    "the mark, read from the harness": (
        "import __main__ as m, os; os.write(m._out, m._task['mark'].encode()); os._exit(0)"
    ),
    "the expected value, read from the harness": (
        "import __main__ as m\ndef add(*args): return eval(m._task['assert'].split('==')[1])\nroot = add"
    ),
    "the expected value, read from frames": (
        "import sys\ndef add(*args):\n    frame = sys._getframe()\n    while frame:\n"
        "        for value in frame.f_locals.values():\n            if 'assert' + ' ' in str(value): return 3\n"
        "        frame = frame.f_back\nroot = add"
    ),
    "the expected value, searched for among all objects": (
        "import gc\ndef add(a, b):\n    found = [x for x in gc.get_objects() if type(x) is dict and 'assert' in x]\n"
        "    return eval(found[0]['assert'].split('==')[1])\nroot = add"
    ),
    "the expected value, searched for in other processes": (
        "import os\ndef add(*args):\n    for pid in filter(str.isdigit, os.listdir('/proc')):\n"
        "        if int(pid) != os.getpid() and b'assert' in open(f'/proc/{pid}/mem', 'rb').read():\n            return 3\nroot = add"
    ),
    "an object that equals everything": LIAR.format(base="", start=""),
    "a number that equals everything": LIAR.format(base="(int)", start="7"),
    "a float that equals everything": LIAR.format(base="(float)", start="7"),
    "a text that equals everything": LIAR.format(base="(str)", start="'x'"),
    "a list that equals everything": LIAR.format(base="(list)", start=""),
    "a class that equals everything": LIAR.format(base="", start="") + "add = root = Liar",
    "builtins of one's own": "import builtins\ndef add(*args): return 0\nroot = add\nbuiltins.abs = lambda x: 0",
    "abs of one's own": "def abs(x): return 0\ndef root(x): return 7.0\nadd = root",
    "math of one's own": (
        "class math:\n    isclose = staticmethod(lambda *a, **k: True)\ndef root(x): return 7.0\nadd = root"
    ),
    "isclose of one's own": "import math\nmath.isclose = lambda *a, **k: True\ndef root(x): return 7.0\nadd = root",
    "early exit": "import os; os._exit(0)",
    "early exit in a call": "import os\ndef add(*args): os._exit(0)\nroot = add",
    "SystemExit in a call": "def add(*args): raise SystemExit(False)\nroot = add",
    "quit as an answer": "def add(*args): return quit\nroot = add",
    "exit at exit": "import atexit, os\natexit.register(lambda: os._exit(0))\ndef add(*args): return 0\nroot = add",
    "everything a verdict may look like, printed": (
        "import os\nfor fd in range(64):\n    try: os.write(fd, b'{\"status\": \"ok\", \"stderr\": \"\"}\\n')\n"
        "    except OSError: pass\ndef add(*args): return 0\nroot = add"
    ),
    "garbage": LINE.format("os.write(4, b'garbage' + bytes(range(256)) + b'\\n')"),
    "deep nesting": LINE.format("os.write(4, b'[' * 200_000 + b'\\n')"),
    "no object": LINE.format("os.write(4, b'null\\n[]\\n1\\n')"),
    "unknown nodes": LINE.format("""os.write(4, b'{"value": [{"r": 0}, [["?", 1]]]}\\n')"""),
    "nodes of nodes without end": LINE.format("""os.write(4, b'{"value": [{"r": 0}, [["t", [{"r": 0}]]]]}\\n')"""),
    "a class of the judge's": LINE.format("""os.write(4, b'{"value": [{"r": 0}, [["o", "Judge", []]]]}\\n')"""),
    "a builtin that ends the judge": LINE.format("""os.write(4, b'{"value": [{"r": 0}, [["g", "exit"]]]}\\n')"""),
    "a question instead of an answer": LINE.format("""os.write(4, b'{"do": "getattr", "what": [1, []]}\\n')"""),
    "a function of the judge's that was never given": LINE.format(
        """os.write(4, b'{"do": "call", "what": [{"r": 0}, [["t", [0, {"r": 1}, {"r": 2}]], """
        """["t", []], ["d", "dict", []]]]}\\n')"""
    ),
    "an exception that is none": LINE.format(
        """os.write(4, b'{"error": [{"r": 0}, [["l", ["SystemExit", {"r": 1}, 0, {"r": 2}, {"r": 3}]], """
        """["l", ["SystemExit"]], ["l", []], ["d", "dict", []]]]}\\n')"""
    ),
    "a flood": LINE.format("\n    while True: os.write(4, b'x' * 65536)"),
    "a flood of answers": LINE.format("""\n    while True: os.write(4, b'{"value": [0, []]}\\n')"""),
    "no answer": LINE.format("\n    import time; time.sleep(60)"),
    "a closed line": LINE.format("os.close(3); os.close(4)"),
    "a signal to all": LINE.format("os.kill(-1, 9)"),
    "a huge answer": LINE.format("return list(range(10**7))"),
    "an endless answer": LINE.format("\n    import itertools; return itertools.count()"),
}  # fmt: skip


@pytest.fixture(scope="module")
def verifier():
    try:
        return CodeVerifier(time_s=3, memory_mb=400, processes=16)
    except SandboxUnavailable as error:
        pytest.skip(f"this machine cannot isolate a program: {error}")


def judged(verifier, program, ground_truth):
    return asyncio.run(verifier.verify(f"```python\n{program}\n```", ground_truth, {}))


@pytest.mark.parametrize("name", FORGERIES)
@pytest.mark.parametrize("tests", [ASSERTS[:1], CHECK, CLOSE[:1], CLOSE[1:]], ids=["assert", "check", "abs", "isclose"])
def test_a_forged_verdict_is_wrong(verifier, name, tests):
    verdict = judged(verifier, FORGERIES[name], tests)
    assert (verdict.score, verdict.acc, verdict.failed) == (0.0, 0.0, False), verdict


def test_the_same_tests_pass_for_a_right_program(verifier):
    program = "import math\ndef add(a, b): return a + b\ndef root(x): return x ** 0.5"
    for tests in (ASSERTS, CHECK, CLOSE):
        assert judged(verifier, program, tests).score == 1.0


def test_expected_values_are_not_in_the_programs_process(verifier):
    """The program reads all of its memory for the number that the test expects."""
    program = """
import re
def add(a, b):
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
        for line in maps:
            span, mode = line.split()[:2]
            start, end = (int(part, 16) for part in span.split("-"))
            if mode[0] == "r" and "[v" not in line:
                memory.seek(start)
                if found := re.search(rb"7391502[6-6]", memory.read(end - start)):
                    return int(found[0])
    return 0
"""
    assert judged(verifier, program, ["assert add(1, 2) == 73915026"]).score == 0.0
    assert judged(verifier, program + "x = '739150' + str(26)", ["assert add(1, 2) == 73915026"]).score == 1.0


def test_a_function_that_returns_a_value_cannot_change_what_it_was_given(verifier):
    cheat = "def order(values):\n    values.clear()\n    return []"
    assert judged(verifier, cheat, ["x = [3, 1, 2]\ny = order(x)\nassert y == sorted(x)"]).score == 0.0
