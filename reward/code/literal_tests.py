"""Tests that are plain: assertions on calls with written-out arguments, and written-out results.

A server that runs one source and gives back its output has no second process to judge in. Such tests need none: the
calls go there, the results come back as data (`reward.code.wire`), and are compared here with what was expected, which
stays here. Tests of any other form are not judged that way.
"""

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward.code.wire import SCALARS, Coder

_SOURCE = """
import json as _json, os as _os, sys as _sys, types as _types
_task = _json.load(_sys.stdin)
_out = _os.dup(1)
_os.dup2(2, 1)
_wire = _types.ModuleType("wire")
exec(_task["wire"], _wire.__dict__)
_wire.allow_long_numbers()
def _opaque(value, inline):
    return ["?"]
_coder = _wire.Coder((), _opaque, None)
_solution = _types.ModuleType("solution")
_sys.modules["solution"] = _solution
exec(compile(_task["source"], "solution.py", "exec"), _solution.__dict__)
_answers = []
for _name, _function, _what in _task["calls"]:
    if _name not in _solution.__dict__:
        raise NameError(_name)
    _args, _kwargs = _coder.decode(_what)
    _answers.append(_coder.encode(eval(_function, _solution.__dict__)(*_args, **_kwargs)))
_os.write(_out, (_task["mark"] + _json.dumps(_answers)).encode())
"""
_CODER = Coder((), lambda value, inline: ["?"], lambda tag, contents, get: None)


@dataclass(frozen=True)
class Call:
    """A call and what is said of its result: kind "equal" (to `expected`), "true" or "false"."""

    name: str
    function: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    kind: str
    expected: Any = None


def literal_calls(tests: str) -> list[Call] | None:
    """The calls of plain tests, at the top or in a ``def check(candidate)`` that is called once; None for others."""
    try:
        body = ast.parse(tests).body
        checks = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
        calls = []
        for node in body:
            if isinstance(node, ast.Assert):
                calls.append(_call_of(node.test, {}))
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                checked = node.value
                if not isinstance(checked.func, ast.Name) or len(checked.args) != 1 or checked.keywords:
                    return None
                check = checks[checked.func.id]
                [parameter] = [argument.arg for argument in check.args.args]
                for line in check.body:
                    if isinstance(line, ast.Assert):
                        calls.append(_call_of(line.test, {parameter: checked.args[0]}))
                    elif not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)):
                        return None
            elif isinstance(node, ast.Assign):
                ast.literal_eval(node.value)
            elif not isinstance(node, ast.FunctionDef | ast.Import | ast.ImportFrom | ast.Pass):
                return None
        return calls or None
    except (SyntaxError, ValueError, KeyError, TypeError, RecursionError, MemoryError):
        return None


def _call_of(test: ast.expr, names: dict[str, ast.expr]) -> Call:
    """Raises ValueError for another form."""
    kind, expected = "true", None
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        kind, test = "false", test.operand
    elif isinstance(test, ast.Compare):
        if len(test.ops) != 1 or not isinstance(test.ops[0], ast.Eq | ast.Is):
            raise ValueError("another comparison")
        left, right = test.left, test.comparators[0]
        if not isinstance(left, ast.Call):
            left, right = right, left
        kind, expected, test = "equal", ast.literal_eval(right), left
    if not isinstance(test, ast.Call) or any(keyword.arg is None for keyword in test.keywords):
        raise ValueError("no call")
    function = test.func
    if isinstance(function, ast.Name):
        function = names.get(function.id, function)
    names_in = [node.id for node in ast.walk(function) if isinstance(node, ast.Name)]
    if len(names_in) != 1:
        raise ValueError("a function that is computed")
    args = tuple(map(ast.literal_eval, test.args))
    kwargs = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in test.keywords}
    return Call(names_in[0], ast.unparse(function), args, kwargs, kind, expected)


def source_and_stdin(source: str, calls: list[Call], mark: str) -> tuple[str, str]:
    """What a server runs; the answers come behind `mark`."""
    what = [(call.name, call.function, _CODER.encode((call.args, call.kwargs))) for call in calls]
    wire = (Path(__file__).parent / "wire.py").read_text(encoding="utf-8")
    return _SOURCE, json.dumps({"wire": wire, "source": source, "calls": what, "mark": mark})


def all_as_expected(stdout: str, calls: list[Call], mark: str) -> bool:
    """Whether what came back is what the tests say. Never raises; takes time by the size of what is expected."""
    if not stdout.startswith(mark):
        return False
    try:
        answers = json.loads(stdout[len(mark) :])
        return len(answers) == len(calls) and all(map(_as_expected, calls, answers))
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return False


def _as_expected(call: Call, answer: list) -> bool:
    root, nodes = answer
    if call.kind == "equal":
        return _same(call.expected, root, nodes)
    node = nodes[root["r"]] if isinstance(root, dict) else None
    truth = bool(root) if node is None else len(node[-1]) > 0 if node[0] in ("l", "t", "s", "f", "d") else None
    return truth is (call.kind == "true")


def _same(expected: Any, item: Any, nodes: list) -> bool:
    """Python's ``==``, led by the expected value: nothing is built of an answer, so none is too large."""
    if type(item) in SCALARS:
        return type(expected) in (*SCALARS, complex) and bool(item == expected)
    node = nodes[item["r"]]
    tag, inner = node[0], node[-1]
    if tag == "p":
        return _same(expected, inner, nodes)
    if tag == "x":
        return [tag, *node[1:]] == _CODER.encode(expected)[1][0] if isinstance(expected, complex | bytes) else False
    kinds = {"l": list, "t": tuple, "s": set, "f": frozenset, "d": dict}
    sets = (set, frozenset)
    if tag not in kinds or not (type(expected) is kinds[tag] or (kinds[tag] in sets and type(expected) in sets)):
        return False
    if len(inner) != len(expected):
        return False
    if tag in ("l", "t"):
        return all(_same(mine, theirs, nodes) for mine, theirs in zip(expected, inner, strict=True))
    if tag == "d":
        pairs = [(mine, value) for mine, value in expected.items()]
        return all(
            any(_same(key, theirs[0], nodes) and _same(value, theirs[1], nodes) for theirs in inner)
            for key, value in pairs
        )
    return all(any(_same(mine, theirs, nodes) for theirs in inner) for mine in expected)
