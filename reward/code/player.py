"""A judged program's own process: runs the program, then answers the tests' questions about what it defined.

Run in the sandbox, compiled, as ``python -I -B /harness/player.pyc`` with the line to the tests as file descriptors 3
and 4. The program can do with this process what it likes: what it says are its answers, and the judge is elsewhere.
"""

import builtins
import operator
import os
import sys
import types
from collections.abc import Callable
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from wire import BrokenOff, Coder, Peer, allow_long_numbers, attributes


class Callback:
    """A function of the tests, as the program sees it."""

    def __init__(self, player: "Player", key: int):
        self._player, self._key = player, key

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        player = self._player
        answer = player.peer.ask({"do": "call", "what": player.coder.encode((self._key, args, kwargs))}, player.serve)
        if "error" in answer:
            kind = getattr(builtins, str(answer["error"][0]), Exception)
            raise kind(*player.coder.decode(answer["error"][1]))
        return player.coder.decode(answer["value"])


class Player:
    """The program's objects by their handles, and the questions.

    Attributes:
        space: the program's names.
        classes: names of classes whose instances travel as copies, by their attributes.
    """

    def __init__(self, peer: Peer):
        self.peer = peer
        self.space: dict[str, Any] = {}
        self.classes: list[str] = []
        self.objects: list[Any] = []
        self.keys: dict[int, int] = {}  # by id; `objects` keeps them alive
        self.coder = Coder((Callback,), self.give, self.take)
        self.known: dict[str, type] = {}

    def give(self, value: Any, inline: Callable[[Any], Any]) -> list:
        if isinstance(value, Callback):
            return ["H", value._key]
        kind = type(value)
        if kind.__name__ in self.classes and kind is self.class_named(kind.__name__):
            return ["o", kind.__name__, [[name, inline(item)] for name, item in attributes(value)]]
        key = self.keys.setdefault(id(value), len(self.objects))
        if key == len(self.objects):
            self.objects.append(value)
        if isinstance(value, types.ModuleType):
            return ["h", key, "module", value.__name__]
        if isinstance(value, type) and issubclass(value, BaseException):
            return ["h", key, "exception", value.__name__, bases(value)]
        flavour = "awaitable" if isinstance(value, types.CoroutineType) else "callable" if callable(value) else "object"
        return ["h", key, flavour, getattr(kind, "__name__", "")]

    def take(self, tag: str, contents: list, get: Callable[[Any], Any]) -> Any:
        if tag == "h":
            return Callback(self, contents[0])
        if tag == "H":
            return self.objects[contents[0]]
        if tag == "o":
            kind = self.class_named(contents[0])
            return object.__new__(kind)
        made, items = contents
        for name, item in items:
            object.__setattr__(made, name, get(item))
        return made

    def class_named(self, name: str) -> type:
        """The program's, or one without methods in its place."""
        kind = self.space.get(name)
        if isinstance(kind, type):
            return kind
        return self.known.setdefault(name, type(name, (), {}))

    def serve(self, message: dict) -> dict:
        what = self.coder.decode(message["what"])
        try:
            if message["do"] == "names":
                return {"value": self.coder.encode({name: self.space[name] for name in what if name in self.space})}
            if message["do"] != "call":
                return {"value": self.coder.encode(QUESTIONS[message["do"]](*what))}
            return self.call(*what)
        except Exception as error:
            kind = type(error)
            key = self.give(kind, lambda item: item)[1]
            told = [kind.__name__, bases(kind), key, error.args, dict(attributes(error))]
            return {"error": self.coder.encode(told)}

    def call(self, function: Any, args: tuple, kwargs: dict) -> dict:
        """A function that returns None may have changed its arguments in place: then they are told again."""
        before = self.coder.encode((args, kwargs))
        value = function(*args, **kwargs)
        answer: dict[str, Any] = {"value": self.coder.encode(value)}
        if value is None and (after := self.coder.encode((args, kwargs))) != before:
            answer["arguments"] = after
        return answer


def bases(kind: type) -> list[str]:
    return [base.__name__ for base in kind.__mro__ if getattr(builtins, base.__name__, None) is base]


def _leave(manager: Any) -> Any:
    return type(manager).__exit__(manager, None, None, None)


QUESTIONS: dict[str, Callable[..., Any]] = {
    "getattr": getattr, "setattr": setattr, "delattr": delattr, "iter": iter, "next": next, "len": len, "str": str,
    "repr": repr, "format": format, "bool": bool, "int": int, "float": float, "complex": complex, "round": round,
    "isinstance": isinstance, "enter": lambda manager: type(manager).__enter__(manager), "leave": _leave,
    "await": lambda coroutine: __import__("asyncio").run(coroutine),
    **{name: getattr(operator, name) for name in (
        "getitem", "setitem", "delitem", "index", "neg", "pos", "abs", "invert", "eq", "ne", "lt", "le", "gt", "ge",
        "add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift", "and_", "or_", "xor",
    )},
}  # fmt: skip


def main() -> None:
    allow_long_numbers()
    player = Player(Peer(os.fdopen(3, "rb"), os.fdopen(4, "wb")))
    with open("/box/main.py", encoding="utf-8") as file:
        source = file.read()
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    player.space, player.classes = module.__dict__, player.peer.receive()["classes"]
    exec(compile(source, "solution.py", "exec"), module.__dict__)
    try:
        player.peer.serve_all(player.serve)
    except BrokenOff:  # judged
        pass


if __name__ == "__main__":
    main()
