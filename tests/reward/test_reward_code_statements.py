# ruff: noqa: E501 - programs are written as they run
"""Tests in the form of statements: what data sets write, judged without the program in the same process."""

import asyncio

import pytest

from reward.code.local_sandbox import SandboxUnavailable
from reward.code.verifier import CodeVerifier

STACK = """
class Empty(ValueError):
    def __init__(self, depth): super().__init__(depth); self.depth = depth
class Stack:
    kind = "lifo"
    def __init__(self, *values): self.values = list(values)
    def push(self, value): self.values.append(value); return self
    def pop(self):
        if not self.values: raise Empty(0)
        return self.values.pop()
    def __len__(self): return len(self.values)
    def __iter__(self): return iter(self.values)
    def __getitem__(self, place): return self.values[place]
    def __eq__(self, other): return self.values == other.values
    def __add__(self, other): return Stack(*self.values, *other.values)
    def __lt__(self, other): return len(self.values) < len(other.values)
    def __str__(self): return f"Stack{self.values}"
    def __enter__(self): return self
    def __exit__(self, *error): self.values = ["left"]
"""
# The form of LeetCode tasks: the task's own prefix has the classes, the tests use them.
PREFIX = """
from typing import List, Optional
class ListNode:
    def __init__(self, val=0, next=None):
        self.val, self.next = val, next
def list_node(values):
    head = None
    for value in reversed(values):
        head = ListNode(value, head)
    return head
def is_same_list(a, b):
    while a and b:
        if a.val != b.val: return False
        a, b = a.next, b.next
    return a is None and b is None
"""
REVERSE = """
class Solution:
    def reverse(self, head: Optional[ListNode]) -> Optional[ListNode]:
        last = None
        while head:
            head.next, last, head = last, head, head.next
        return last
"""

PASS = {
    "numbers": ("def add(a, b): return a + b", "assert add(1, 2) == 3\nassert add(0.1, 0.2) == 0.1 + 0.2"),
    "a builtin's name": ("def sum(a, b): return a * b", "assert sum(10, 15) == 150"),
    "isclose": ("def root(x): return x ** 0.5", "import math\nassert math.isclose(root(2), 1.41421356, rel_tol=1e-6)"),
    "the program's import": ("import math\ndef root(x): return x ** 0.5", "assert math.isclose(root(9), 3)"),
    "containers": (
        "def f(x): return {1: (x, [2.5]), (1, 2): {3, 4}, None: frozenset('a'), 'b': b'c', 2.0: 1j}",
        "assert f(7) == {1: (7, [2.5]), (1, 2): {4, 3}, None: frozenset('a'), 'b': b'c', 2.0: 1j}\n"
        "assert isinstance(f(7)[1], tuple) and type(f(7)[(1, 2)]) is set",
    ),
    "special numbers": (
        "def f(x): return [x, float('nan'), -float('inf'), 10 ** 5000, True, None]",
        "import math\na, b, c, d, e, n = f(1)\nassert a == 1 and math.isnan(b) and c < -1e308 and d == 10 ** 5000\n"
        "assert e is True and n is None",
    ),
    "value types": (
        "from collections import *\nfrom decimal import Decimal\nfrom fractions import Fraction\nimport datetime\n"
        "P = namedtuple('P', 'x y')\n"
        "def f(): return [Counter('aab'), deque([1, 2], 5), OrderedDict(a=1), defaultdict(list, {1: [2]}), P(1, 2),\n"
        "                 Decimal('1.50'), Fraction(2, 6), datetime.date(2020, 2, 29), range(3), {1: 2}.keys()]",
        "from collections import Counter, deque\nfrom decimal import Decimal\nfrom fractions import Fraction\n"
        "import datetime\nc, q, o, d, p, x, y, t, r, k = f()\n"
        "assert c == Counter(a=2, b=1) and q == deque([1, 2]) and o == {'a': 1} and d == {1: [2]} and p == (1, 2)\n"
        "assert x == Decimal('1.5') and y == Fraction(1, 3) and t == datetime.date(2020, 2, 29)\n"
        "assert list(r) == [0, 1, 2] and c.most_common(1) == [('a', 2)] and k == {1}",
    ),
    "around the call": (
        "def f(n): return list(range(n, 0, -1))",
        "assert sorted(f(3)) == [1, 2, 3] and len(f(4)) == 4 and set(f(3)) == {1, 2, 3} and max(f(5)) == 5\n"
        "assert all(x > 0 for x in f(9)) and 3 in f(3) and f(0) == [] and not f(0) and str(f(2)) == '[2, 1]'",
    ),
    "exceptions": (
        "def f(x):\n    if x < 0: raise ValueError('negative', x)\n    return {}['k']",
        "try:\n    f(-1)\n    assert False, 'no error'\nexcept ValueError as error:\n"
        "    assert error.args == ('negative', -1) and 'negative' in str(error)\n"
        "try:\n    f(1)\nexcept KeyError as error:\n    assert str(error) == \"'k'\"\nelse:\n    raise AssertionError",
    ),
    "exceptions of the program's": (
        STACK,
        "try:\n    Stack().pop()\n    assert False\nexcept Empty as error:\n"
        "    assert isinstance(error, ValueError) and error.depth == 0\n"
        "try:\n    Stack().pop()\n    assert False\nexcept ValueError:\n    pass",
    ),
    "unittest": (
        STACK,
        "import unittest\nclass T(unittest.TestCase):\n    def test_it(self):\n"
        "        with self.assertRaises(Empty):\n            Stack().pop()\n        self.assertEqual(Stack(1, 2).pop(), 2)\n"
        "        self.assertTrue(Stack(1) == Stack(1))\nif __name__ == '__main__':\n    unittest.main()",
    ),
    "objects with state": (
        STACK,
        "s = Stack(1)\ns.push(2).push([3, 4])\nassert len(s) == 3 and s[0] == 1 and s[-1] == [3, 4] and s.pop() == [3, 4]\n"
        "assert list(s) == [1, 2] and 2 in s and 9 not in s and str(s) == 'Stack[1, 2]' and f'{s}' == str(s)\n"
        "assert s == Stack(1, 2) and s != Stack(1) and Stack(1) < s and Stack(1) + Stack(2) == s\n"
        "assert s.kind == Stack.kind == 'lifo' and isinstance(s, Stack) and not isinstance(3, Stack)\n"
        "s.values = [8]\nassert s.pop() == 8 and not hasattr(s, 'nothing')\nwith s as t:\n    t.push(1)\nassert s.values == ['left']",
    ),
    "generators": (
        "def f(n):\n    while True:\n        yield n\n        n += 1",
        "import itertools\nassert list(itertools.islice(f(3), 3)) == [3, 4, 5]\ng = f(1)\nassert next(g) == 1 and next(g) == 2",
    ),
    "functions as answers and arguments": (
        "def twice(f): return lambda x: f(f(x))\ndef apply(f, *xs, key=None): return sorted(map(f, xs), key=key)",
        "def half(x): return x / 2\nassert twice(half)(8) == 2 and twice(twice(lambda x: x + 1))(0) == 4\n"
        "assert apply(len, 'ab', 'c', key=lambda n: -n) == [2, 1] and callable(twice(half))",
    ),
    "errors in a function that is given": (
        "def safe(f):\n    try: return f()\n    except ZeroDivisionError: return 'zero'",
        "assert safe(lambda: 1 / 0) == 'zero'",
    ),
    "coroutines": (
        "import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    return x + 1",
        "import asyncio\nassert asyncio.run(f(1)) == 2",
    ),
    "check(candidate)": (
        "def add(a, b): return a + b",
        "import random\nMETADATA = {'author': 'x'}\n\n\ndef check(candidate):\n    def reference(a, b):\n        return a + b\n"
        "    assert candidate(1, 2) == 3, 'small'\n    for _ in range(200):\n"
        "        a, b = random.randint(-9, 9), random.randint(-9, 9)\n        assert candidate(a, b) == reference(a, b)\n\n\n"
        "check(add)",
    ),
    "names that the tests define again": (
        "def helper(x): return 'the program'\ndef f(x): return x",
        "def helper(x): return 'the tests'\nassert helper(1) == 'the tests' and f(2) == 2",
    ),
    "constants": ("LIMIT = 10\ndef f(): return LIMIT", "assert f() == LIMIT == 10"),
    "arguments changed in place": (
        "def order(values, seen, box=None):\n    values.sort(); seen.add(1); box['a'] = values",
        "x, s, d = [3, 1, 2], set(), {}\norder(x, s, box=d)\nassert x == [1, 2, 3] and s == {1} and d == {'a': [1, 2, 3]}",
    ),
    "many arguments": (
        "def f(*a, **k): return [a, k]", "assert f(*range(300), x=1, self=2) == [tuple(range(300)), {'x': 1, 'self': 2}]",
    ),
    "text": ("def f(s): return s[::-1]", "assert f('a\\n\\u00e9\\ud800\\0b') == 'b\\0\\ud800\\u00e9\\na'"),
    "prints": ("print('noise')\ndef f():\n    print('noise')\n    return input.__name__", "print(1)\nassert f() == 'input'"),
    "deep and shared": (
        "def f(n):\n    x = []\n    for _ in range(n): x = [x]\n    y = [1]\n    y.append(y)\n    return x, [y, y]",
        "x, (y, z) = f(5000)\ndepth = 0\nwhile x:\n    x, depth = x[0], depth + 1\nassert depth == 5000 and y is z and y[1] is y",
    ),
    "a large answer": ("def f(n): return list(range(n))", "assert sum(f(10 ** 6)) == 10 ** 6 * (10 ** 6 - 1) // 2"),
}  # fmt: skip

FAIL = {
    "another value": ("def f(): return [1, 2]", "assert f() == [2, 1]"),
    "another type": ("def f(): return (1, 2)", "assert f() == [1, 2]"),
    "no exception": ("def f(): pass", "try:\n    f()\n    assert False\nexcept ValueError:\n    pass"),
    "another exception": ("def f(): raise KeyError(1)", "try:\n    f()\nexcept ValueError:\n    pass"),
    "bare except around a program that ends": ("import os\ndef f(): os._exit(0)", "try:\n    f()\nexcept:\n    pass"),
    "nothing defined": ("pass", "assert f() == 1"),
    "nothing under a builtin's name": ("pass", "assert max(1, 2) == 2"),
    "no program": ("def f(: pass", "assert f() == 1"),
    "an error at the start": ("1 / 0\ndef f(): return 1", "assert f() == 1"),
    "unittest": ("def f(): return 2", "import unittest\nclass T(unittest.TestCase):\n    def test_it(self):\n"
                 "        self.assertEqual(f(), 1)\nunittest.main()"),
    "an object and a value": (STACK, "assert Stack(1) == [1]"),
    "an object in arithmetic with a value": (STACK, "assert Stack(1) + 1"),
}  # fmt: skip


@pytest.fixture(scope="module")
def verifier():
    try:
        return CodeVerifier(time_s=5)
    except SandboxUnavailable as error:
        pytest.skip(f"this machine cannot isolate a program: {error}")


def judged(verifier, program, tests, prefix=""):
    response = f"```python\n{program}\n```"
    return asyncio.run(verifier.verify(response, {"functional": tests}, {"prefix": prefix} if prefix else {}))


@pytest.mark.parametrize("name", PASS)
def test_a_right_program_passes(verifier, name):
    verdict = judged(verifier, *PASS[name])
    assert (verdict.score, verdict.failed) == (1.0, False), verdict


@pytest.mark.parametrize("name", FAIL)
def test_a_wrong_program_does_not(verifier, name):
    verdict = judged(verifier, *FAIL[name])
    assert (verdict.score, verdict.failed) == (0.0, False), verdict


def test_classes_of_the_tasks_prefix_travel_by_value(verifier):
    tests = "def check(f):\n    assert is_same_list(f(list_node([1, 2, 3])), list_node([3, 2, 1]))\n"
    tests += "    assert f(head=list_node([])) is None\n"
    tests += "    assert is_same_list(f(list_node(range(3000))), list_node(range(2999, -1, -1)))\n"
    tests += "check(Solution().reverse)"
    assert judged(verifier, REVERSE, tests, PREFIX).score == 1.0
    assert judged(verifier, REVERSE.replace("return last", "return head"), tests, PREFIX).score == 0.0
    forged = REVERSE.replace("return last", "return head") + "\ndef is_same_list(a, b): return True\n"
    forged += "ListNode.__eq__ = lambda self, other: True"
    assert judged(verifier, forged, tests, PREFIX).score == 0.0
    forged = REVERSE.replace("return last", "return ListNode(Liar())") + "\nclass Liar:\n"
    forged += "    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
    assert judged(verifier, forged, tests, PREFIX).score == 0.0
    in_place = "class Solution:\n    def cut(self, head): head.next = None"
    tests = "x = list_node([1, 2])\nSolution().cut(x)\nassert is_same_list(x, list_node([1]))"
    assert judged(verifier, in_place, tests, PREFIX).score == 1.0


def test_a_prefix_that_the_program_completes(verifier):
    verdict = judged(
        verifier, "    return a + b", "def check(f):\n    assert f(1, 2) == 3\ncheck(add)", "def add(a, b):"
    )
    assert verdict.score == 1.0


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        ("assert f( == 1", "no Python"),
        ("import no_such_module_at_all\nassert f() == 1", "imports fail"),
        ("def check(candidate):\n    assert candidate() == 1", "no name of the program"),
    ],
)
def test_tests_that_can_judge_no_program_give_no_judgement(verifier, tests, said):
    verdict = judged(verifier, "def f(): return 1", tests)
    assert verdict.failed and said in verdict.reason
