"""Values and requests between a program and the tests that judge it, as lines of JSON; standard library only.

Neither side ever sees an object of the other, and nothing is pickled. Values of built-in types arrive as copies.
Anything else stays where it is and arrives as a handle: a number that stands for it, for the owner to look up.

A value is ``[root, nodes]``. Text, numbers, true, false and null stand for themselves; ``{"r": 3}`` is nodes[3], a
list of a tag and its contents. So depth, sharing and cycles cost no recursion. Tags:

    l list, t tuple, s set, f frozenset, d dict     p plain value of a subclass     x another value type
    o instance of a class that both know by name    g builtin by name               h, H the sender's, receiver's handle
"""

import builtins
import json
import sys
from collections.abc import Callable
from typing import IO, Any

MAX_LINE = 32 << 20  # bytes
SCALARS = frozenset((str, int, float, bool, type(None)))
CONTAINERS = ((list, "l"), (tuple, "t"), (set, "s"), (frozenset, "f"))
# Those that compute from what they are given, and do nothing else: called by a test, they end, read and write nothing.
BUILTINS = (
    "int", "float", "complex", "bool", "str", "bytes", "bytearray", "list", "tuple", "set", "frozenset", "dict",
    "range", "abs", "all", "any", "chr", "len", "max", "min", "ord", "pow", "round", "sorted", "sum",
)  # fmt: skip


class BrokenOff(BaseException):
    """The other side ended, or sent what is no message. Not an Exception: tests must not catch it."""


class Coder:
    """Encodes and decodes values for one side. The side says how objects beyond built-in values travel.

    Args:
        own: types for `give` that might pass for something else.
        give: node for an object that is no built-in value.
        take: object for the contents of such a node: (tag, contents, this coder's `get`).
    """

    def __init__(
        self,
        own: tuple[type, ...],
        give: Callable[[Any, Callable[[Any], Any]], list],
        take: Callable[[str, list, Callable[[Any], Any]], Any],
    ):
        self.own, self.give, self.take = own, give, take

    def encode(self, value: Any) -> list:
        nodes: list[list] = []
        places: dict[int, int] = {}
        kept: list[Any] = []  # alive, so that ids stay theirs

        def inline(item: Any) -> Any:
            if type(item) in SCALARS:
                return item
            place = places.get(id(item))
            if place is None:
                place = places[id(item)] = len(kept)
                kept.append(item)
            return {"r": place}

        root = inline(value)
        while len(nodes) < len(kept):
            nodes.append(self._node(kept[len(nodes)], inline))
        return [root, nodes]

    def _node(self, value: Any, inline: Callable[[Any], Any]) -> list:
        kind = type(value)
        if kind in self.own:
            return self.give(value, inline)
        if kind.__module__ == "numpy" and hasattr(value, "tolist"):  # arrays and their numbers count as plain values
            return ["p", inline(value.tolist())]
        for base, tag in CONTAINERS:
            if isinstance(value, base):
                return [tag, list(value) if set(map(type, value)) <= SCALARS else [inline(item) for item in value]]
        if isinstance(value, dict):
            special = kind.__name__ if kind.__module__ == "collections" else "dict"
            return ["d", special, [[inline(key), inline(item)] for key, item in dict.items(value)]]
        for scalar in (str, int, float):
            if isinstance(value, scalar):
                return ["p", scalar.__str__(value) if scalar is str else scalar(value)]
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name in VALUES:
            return ["x", name, [inline(part) for part in VALUES[name][0](value)]]
        for name in BUILTINS:
            if getattr(builtins, name) is value:
                return ["g", name]
        return self.give(value, inline)

    def decode(self, message: Any) -> Any:
        """Raises BrokenOff for what `encode` does not give."""
        try:
            root, nodes = message
            return self._decode(root, nodes)
        except (
            ArithmeticError, AttributeError, ImportError, LookupError, RecursionError, TypeError, ValueError,
        ) as error:  # fmt: skip
            raise BrokenOff(f"no message: {type(error).__name__} {error}") from None

    def _decode(self, root: Any, nodes: list) -> Any:
        built: dict[int, Any] = {}
        later: list[Callable[[], None]] = []  # contents of what can be made empty

        def get(item: Any) -> Any:
            if type(item) in SCALARS:
                return item
            place = item["r"]
            if place not in built:
                built[place] = make(nodes[place])
            return built[place]

        def make(node: list) -> Any:
            tag = node[0]
            if tag == "l":
                made: Any = []
                later.append(lambda: made.extend(map(get, node[1])))
            elif tag == "d":
                made = MAPPINGS[node[1]]() if node[1] in MAPPINGS else {}
                later.append(lambda: made.update({get(key): get(item) for key, item in node[2]}))
            elif tag == "s":
                made = set()
                later.append(lambda: made.update(map(get, node[1])))
            elif tag in "tf":
                made = (tuple if tag == "t" else frozenset)(map(get, node[1]))
            elif tag == "p":
                made = get(node[1])
            elif tag == "x":
                made = VALUES[node[1]][1](*map(get, node[2]))
            elif tag == "g":
                made = getattr(builtins, BUILTINS[BUILTINS.index(node[1])])
            elif tag == "o":
                made = self.take(tag, node[1:], get)
                later.append(lambda: self.take("attributes", [made, node[2]], get))
            else:
                made = self.take(tag, node[1:], get)
            return made

        value = get(root)
        while later:
            later.pop()()
        return value


def _mappings() -> dict[str, Callable[[], Any]]:
    from collections import Counter, OrderedDict

    return {"Counter": Counter, "OrderedDict": OrderedDict}


def _values() -> dict[str, tuple[Callable[[Any], list], Callable[..., Any]]]:
    """Value types of the standard library: how they come apart, and together again."""

    def of(module: str, name: str) -> Callable[..., Any]:
        def build(*parts: Any) -> Any:
            return getattr(__import__(module), name)(*parts)

        return build

    def iso(name: str) -> Callable[[str], Any]:
        return lambda text: getattr(__import__("datetime"), name).fromisoformat(text)

    return {
        "builtins.complex": (lambda v: [v.real, v.imag], complex),
        "builtins.bytes": (lambda v: [v.hex()], bytes.fromhex),
        "builtins.bytearray": (lambda v: [v.hex()], bytearray.fromhex),
        "builtins.range": (lambda v: [v.start, v.stop, v.step], range),
        "builtins.slice": (lambda v: [v.start, v.stop, v.step], slice),
        "builtins.ellipsis": (lambda v: [], lambda: ...),
        "builtins.dict_keys": (lambda v: [tuple(v)], lambda items: dict.fromkeys(items).keys()),
        "collections.deque": (lambda v: [tuple(v), v.maxlen], of("collections", "deque")),
        "decimal.Decimal": (lambda v: [str(v)], of("decimal", "Decimal")),
        "fractions.Fraction": (lambda v: [v.numerator, v.denominator], of("fractions", "Fraction")),
        "datetime.date": (lambda v: [v.isoformat()], iso("date")),
        "datetime.datetime": (lambda v: [v.isoformat()], iso("datetime")),
        "datetime.time": (lambda v: [v.isoformat()], iso("time")),
        "datetime.timedelta": (lambda v: [v.days, v.seconds, v.microseconds], of("datetime", "timedelta")),
    }


MAPPINGS, VALUES = _mappings(), _values()


class Peer:
    """One end of the line. Either side may ask; while one waits for its answer it serves the other's questions."""

    def __init__(self, reading: IO[bytes], writing: IO[bytes]):
        self.reading, self.writing = reading, writing
        self.broken = False

    def ask(self, message: dict, serve: Callable[[dict], dict]) -> dict:
        """The answer. Raises BrokenOff, then and ever after, when there is none.

        Args:
            serve: answers a question of the other side's.
        """
        self.send(message)
        while True:
            answer = self.receive()
            if "do" not in answer:
                return answer
            self.send(serve(answer))

    def serve_all(self, serve: Callable[[dict], dict]) -> None:
        """Until the other side ends. Raises BrokenOff then."""
        while True:
            self.send(serve(self.receive()))

    def send(self, message: dict) -> None:
        if self.broken:
            raise BrokenOff
        try:
            self.writing.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")
            self.writing.flush()
        except OSError as error:
            self.broken = True
            raise BrokenOff(str(error)) from None

    def receive(self) -> dict:
        try:
            line = self.reading.readline(MAX_LINE)
            message = json.loads(line)
        except (OSError, ValueError, RecursionError) as error:
            self.broken = True
            raise BrokenOff(f"no message: {error}") from None
        if not isinstance(message, dict):
            self.broken = True
            raise BrokenOff("no message")
        return message


def attributes(value: Any) -> list[tuple[str, Any]]:
    """Of an object, its slots included."""
    found = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name) and not name.startswith("__"):
                found.setdefault(name, getattr(value, name))
    return list(found.items())


def allow_long_numbers() -> None:
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)
