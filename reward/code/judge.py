"""Tests in the form of statements, run in a process that never sees the program; standard library only.

The tests' names for what the program defined are stand-ins: what is asked of them travels as plain data to the process
in which the program runs (`reward.code.player`), and comes back as values of built-in types. So ``==`` is Python's own.
An object of the program that is no plain value stays there: calls, attributes, items, iteration, ``str()`` and the like
are asked of it, but it equals no plain value, and computes and compares only with other objects of the program.
"""

import ast
import builtins
import importlib
import symtable
import sys
import traceback
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import IO, Any

from wire import BrokenOff, Coder, Peer, allow_long_numbers, attributes

ALIASES = {"np": "numpy", "pd": "pandas", "torch": "torch", "numpy": "numpy"}
# What a test may use without an import of its own, counting on the program's; it must not be the program's own.
HELPERS = {
    "isclose": "math", "fabs": "math", "Counter": "collections", "deque": "collections", "OrderedDict": "collections",
    "defaultdict": "collections", "deepcopy": "copy", "reduce": "functools", "allclose": "numpy",
    "array_equal": "numpy",
}  # fmt: skip


class Unusable(Exception):
    """The tests cannot judge any program."""


class Remote:
    """Stands for an object of the program; two that stand for the same object are one."""

    __slots__ = ("_judge_", "_key_")

    def __init__(self, judge: "Judge", key: int):
        object.__setattr__(self, "_judge_", judge)
        object.__setattr__(self, "_key_", key)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__name__", "__doc__"):
            raise AttributeError(name)
        return self._judge_.ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._judge_.ask("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._judge_.ask("delattr", self, name)

    def __hash__(self) -> int:
        return hash(self._key_)

    def __eq__(self, other: Any) -> Any:
        if self is other:
            return True
        return self._judge_.ask("eq", self, other) is True if isinstance(other, Remote) else NotImplemented

    def __ne__(self, other: Any) -> Any:
        if self is other:
            return False
        return self._judge_.ask("ne", self, other) is True if isinstance(other, Remote) else NotImplemented

    def __contains__(self, item: Any) -> bool:
        return any(item is mine or item == mine for mine in self)  # not asked: it would be believed

    def __iter__(self) -> Any:
        iterator = self._judge_.ask("iter", self)
        return iterator if isinstance(iterator, Remote) else iter(iterator)

    def __next__(self) -> Any:
        return self._judge_.ask("next", self)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and self._judge_.ask("isinstance", value, self) is True

    def __exit__(self, *error: Any) -> None:
        self._judge_.ask("leave", self)

    def __enter__(self) -> Any:
        return self._judge_.ask("enter", self)


class RemoteCallable(Remote):
    __slots__ = ()

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self._judge_.call(self, args, kwargs)


def _forwarded(name: str, kind: type | None) -> Callable[..., Any]:
    """An operation on one object (and a key, a value); the answer must be of the type that Python wants."""

    def operation(self: Remote, *rest: Any) -> Any:
        answer = self._judge_.ask(name, self, *rest)
        if kind is not None and type(answer) is not kind:
            raise TypeError(f"{name}() of the program's object gave {type(answer).__name__}")
        return answer

    return operation


def _between(name: str, reflected: bool) -> Callable[[Remote, Any], Any]:
    """An operation on two objects of the program. With a value of the tests it would tell that, and be believed."""

    def operation(self: Remote, other: Any) -> Any:
        if not isinstance(other, Remote):
            return NotImplemented
        return self._judge_.ask(name, other, self) if reflected else self._judge_.ask(name, self, other)

    return operation


for _name, _kind in {
    "len": int, "str": str, "repr": str, "format": str, "bool": bool, "int": int, "float": float, "index": int,
    "complex": complex, "round": None, "getitem": None, "setitem": None, "delitem": None, "neg": None, "pos": None,
    "abs": None, "invert": None,
}.items():  # fmt: skip
    setattr(Remote, f"__{_name}__", _forwarded(_name, _kind))
for _name in ("lt", "le", "gt", "ge"):
    setattr(Remote, f"__{_name}__", _between(_name, False))
for _name in (
    "add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift", "and_", "or_", "xor",
):  # fmt: skip
    setattr(Remote, f"__{_name.strip('_')}__", _between(_name, False))
    setattr(Remote, f"__r{_name.strip('_')}__", _between(_name, True))


class Judge:
    """The tests' side of the line.

    Args:
        space: the tests' names.
    """

    def __init__(self, reading: IO[bytes], writing: IO[bytes], space: dict[str, Any]):
        self.peer = Peer(reading, writing)
        self.space = space
        self.coder = Coder((Remote, RemoteCallable), self.give, self.take)
        self.remotes: dict[int, Any] = {}
        self.functions: list[Any] = []

    def ask(self, question: str, *what: Any) -> Any:
        return self.value_of(self.peer.ask({"do": question, "what": self.coder.encode(what)}, self.serve))

    def call(self, function: Any, args: tuple, kwargs: dict) -> Any:
        answer = self.peer.ask({"do": "call", "what": self.coder.encode((function, args, kwargs))}, self.serve)
        value = self.value_of(answer)
        if value is None and "arguments" in answer:
            new_args, new_kwargs = self.decode(answer["arguments"])
            for old, new in zip((*args, *kwargs.values()), (*new_args, *new_kwargs.values()), strict=False):
                change(old, new)
        return value

    def value_of(self, answer: dict) -> Any:
        if "error" in answer:
            raise self.exception(self.decode(answer["error"]))
        return self.decode(answer.get("value"))

    def decode(self, message: Any) -> Any:
        try:
            return self.coder.decode(message)
        except BrokenOff:
            self.peer.broken = True
            raise

    def exception(self, told: Any) -> Exception:
        try:
            name, bases, key, args, attributes = told
            error = self.exception_class(name, bases, key)(*args)
            vars(error).update({name: value for name, value in attributes.items() if not name.startswith("_")})
            return error
        except (AttributeError, TypeError, ValueError):
            self.peer.broken = True
            raise BrokenOff("no exception") from None

    def exception_class(self, name: str, bases: list[str], key: int) -> type[Exception]:
        """A builtin one, or one of ours for one of the program's, under the nearest builtin one."""
        found = getattr(builtins, bases[0])
        if not (isinstance(found, type) and issubclass(found, Exception)):
            raise TypeError(name)
        if bases[0] == name:
            return found
        if (ours := self.by_value(name)) and issubclass(ours, Exception):
            return ours
        if key not in self.remotes:
            self.remotes[key] = type(name, (found,), {"__init__": lambda self, *args, **kwargs: None})
        return self.remotes[key]

    def give(self, value: Any, inline: Callable[[Any], Any]) -> list:
        if isinstance(value, Remote):
            return ["H", value._key_]
        kind = type(value)
        if isinstance(value, type):  # an exception class of the program's, see `exception_class`
            for key, known in self.remotes.items():
                if known is value:
                    return ["H", key]
        if self.by_value(kind.__name__) is kind:
            return ["o", kind.__name__, [[name, inline(item)] for name, item in attributes(value)]]
        if callable(value):
            self.functions.append(value)
            return ["h", len(self.functions) - 1]
        raise TypeError(f"an object of type {kind.__name__} cannot be given to the program")

    def take(self, tag: str, contents: list, get: Callable[[Any], Any]) -> Any:
        if tag == "H":
            return self.functions[contents[0]]
        if tag == "o":
            kind = self.by_value(contents[0])
            if kind is None:
                raise TypeError(contents[0])
            return object.__new__(kind)
        if tag == "attributes":
            made, items = contents
            for name, item in items:
                if name.startswith("__") or callable(getattr(type(made), name, None)):
                    raise TypeError(name)
                object.__setattr__(made, name, get(item))
            return made
        key, flavour, name = contents[:3]
        if tag != "h" or type(key) is not int:
            raise TypeError(tag)
        if flavour == "exception":
            return self.exception_class(name, contents[3], key)
        if flavour == "awaitable":
            return self.awaited(Remote(self, key))
        if key not in self.remotes:
            self.remotes[key] = (RemoteCallable if flavour == "callable" else Remote)(self, key)
        return self.remotes[key]

    async def awaited(self, coroutine: Remote) -> Any:
        return self.ask("await", coroutine)

    def by_value(self, name: str) -> type | None:
        """A class that the tests define."""
        kind = self.space.get(name)
        return kind if isinstance(kind, type) and kind.__module__ == self.space["__name__"] else None

    def serve(self, message: dict) -> dict:
        """The program calls a function that the tests gave it."""
        if message.get("do") != "call":
            self.peer.broken = True
            raise BrokenOff("no question")
        try:
            key, args, kwargs = self.decode(message.get("what"))
            function = self.functions[key]
        except (LookupError, TypeError, ValueError):
            self.peer.broken = True
            raise BrokenOff("no question") from None
        try:
            return {"value": self.coder.encode(function(*args, **kwargs))}
        except Exception as error:
            return {"error": [type(error).__name__, self.coder.encode(tuple(map(str, error.args)))]}


def change(old: Any, new: Any) -> None:
    """Make an argument what the program made of it."""
    if type(old) is not type(new):
        return
    if isinstance(old, list | bytearray):
        old[:] = new
    elif isinstance(old, dict | set):
        old.clear()
        old.update(new)
    elif not isinstance(old, Remote) and hasattr(old, "__dict__") and not isinstance(old, FunctionType | type):
        vars(old).clear()
        vars(old).update(vars(new))


def free_names(text: str) -> tuple[set[str], set[str]]:
    """Names that the tests use and do not bind: (the builtins' own among them, the others)."""
    top = symtable.symtable(text, "test.py", "exec")
    used: set[str] = set()
    bound = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    todo = [top]
    while todo:
        table = todo.pop()
        todo += table.get_children()
        for symbol in table.get_symbols():
            at_top = table is top or symbol.is_global()
            if at_top and symbol.is_referenced():
                used.add(symbol.get_name())
            if symbol.is_declared_global() and symbol.is_assigned():
                bound.add(symbol.get_name())
    free = {name for name in used - bound if not name.startswith("__")}
    own = {name for name in free if hasattr(builtins, name)}
    return own, free - own


def wanted_names(text: str, space: dict[str, Any]) -> list[str]:
    """The names that are the program's. What is known here (by the task's prefix, or a module) is taken from here, so
    that a program cannot put another function in its place."""
    own, free = free_names(text)
    free -= space.keys()
    if not free:
        # a tested function may bear a builtin's name (sum); where several are used, which one cannot be known
        if len(own) == 1:
            return list(own)
        raise Unusable("the tests use no name of the program")
    with_attributes = {
        node.value.id
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    for name in sorted(free):
        module = ALIASES.get(name, name if name in sys.stdlib_module_names else "")
        helper = HELPERS.get(name, "") if len(free) > 1 else ""
        try:
            if module and name in with_attributes:
                space[name] = importlib.import_module(module)
            elif helper:
                space[name] = getattr(importlib.import_module(helper), name)
        except ImportError:
            continue
    return sorted(free - space.keys())


def run_tests(tests: str, prefix: str, reading: IO[bytes], writing: IO[bytes]) -> None:
    """Return if the program passes.

    Raises:
        Unusable: the tests are at fault. Any other exception: the program does not pass.
    """
    allow_long_numbers()
    module = ModuleType("__main__")
    space = module.__dict__
    sys.modules["__main__"], sys.argv = module, ["test.py"]
    try:
        before = compile(prefix, "prefix.py", "exec")
    except SyntaxError:  # the head of the function that the program goes on with
        before = compile("", "prefix.py", "exec")
    try:
        code, tree = compile(tests, "test.py", "exec"), ast.parse(tests)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise Unusable(f"the tests are no Python: {error}") from error
    try:
        exec(before, space)
        for node in tree.body:  # before the program has its say: so what fails here is no fault of its
            if isinstance(node, ast.Import | ast.ImportFrom):
                exec(compile(ast.Module([node], []), "test.py", "exec"), {})
    except Exception as error:
        raise Unusable(f"the tests' prefix or imports fail: {type(error).__name__} {error}") from error
    names = wanted_names(tests, space)
    classes = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    classes += [name for name, value in space.items() if isinstance(value, type) and value.__module__ == "__main__"]
    judge = Judge(reading, writing, space)
    judge.peer.send({"classes": classes})
    found = judge.ask("names", *names)
    if not isinstance(found, dict) or (len(names) == 1 and names[0] not in found):
        raise NameError(f"the program does not define {names}")
    space.update({name: found[name] for name in names if name in found})
    try:
        exec(code, space)
    except SystemExit as error:
        if error.code is not False:  # that of unittest.main() after tests that all pass
            raise
    if judge.peer.broken:
        raise BrokenOff


def verdict(tests: str, prefix: str, reading: IO[bytes], writing: IO[bytes]) -> dict[str, str]:
    """{"status": "ok", "error" (the program does not pass) or "unusable" (the tests are at fault), "stderr": why}."""
    try:
        run_tests(tests, prefix, reading, writing)
    except Unusable as error:
        return {"status": "unusable", "stderr": str(error)}
    except BaseException:  # whatever the tests raise at last says that they do not pass
        return {"status": "error", "stderr": traceback.format_exc()[-2000:]}
    return {"status": "ok", "stderr": ""}
