"""Settings in dataclasses: every value has the type that its annotation says, or is refused by name with a remedy.

    @dataclass(frozen=True)
    class Mine:
        rows: Annotated[int, Range(1)] = 64

        def __post_init__(self):
            settle(self)

That is all a dataclass needs; `read` makes one from a mapping and names unknown keys, `checked` looks at one value.
Annotations may be bool, int, float, str, None, Literal, tuple[X, ...], dict[str, X], another such dataclass, unions of
these, and Annotated with a `Range`, `NOT_EMPTY` or `DISTINCT`.

Nothing is guessed, whether a value comes from Python, from YAML or from a command line (OmegaConf):
- A whole number is one: 4096.0, 1e3 and true are none. A number may be whole, and is finite. Text is never a number.
- A list becomes a tuple, a mapping a dict, OmegaConf's as well. Text is no list of letters.
"""

import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

LARGEST_INT = 2**63 - 1  # what a tensor holds
LARGEST_FLOAT = sys.float_info.max
NOT_EMPTY = "not empty"  # a list or text; blanks alone are empty
DISTINCT = "no value twice"  # a list
Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Range:
    """Bounds of a number; `above` and `below` are not reached themselves."""

    low: float = -float("inf")
    high: float = float("inf")
    above: float = -float("inf")
    below: float = float("inf")

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high and self.above < value < self.below

    def __str__(self) -> str:
        words = {"of at least": self.low, "above": self.above, "at most": self.high, "below": self.below}
        return " and ".join(f"{word} {bound:,}" for word, bound in words.items() if abs(bound) < float("inf"))


class SettingError(ValueError):
    """A setting that cannot be used: ``path=value: want ..., for instance ...``."""

    def __init__(self, path: str, value: Any, want: str, example: Any = None):
        self.path, self.value, self.want, self.example = path, value, want, example
        super().__init__(self._message())

    def _message(self) -> str:
        remedy = "" if self.example is None else f", for instance {shown(self.example)}"
        return f"{self.path}={shown(self.value)}: want {self.want}{remedy}"

    def under(self, path: str) -> "SettingError":
        """The same of a setting that lies under `path`."""
        return type(self)(f"{path}.{self.path}", self.value, self.want, self.example)

    def __reduce__(self):  # errors travel between processes
        return type(self), (self.path, self.value, self.want, self.example)


class UnknownSetting(SettingError):
    """A key that there is no setting for; `want` lists those that there are."""

    def _message(self) -> str:
        return f"unknown setting {self.path}={shown(self.value)}; known there: {self.want}"


class MissingSetting(SettingError):
    """A setting that has no default and is not there."""

    def _message(self) -> str:
        return f"{self.path} is missing: want {self.want}"


def shown(value: Any) -> str:
    """A value in a line of YAML; text in quotes, so that '5' is not taken for 5."""
    if value is None or isinstance(value, bool):
        text = str(value).lower() if value is not None else "null"
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{key}: {shown(item)}" for key, item in value.items()) + "}"
    elif isinstance(value, Sequence) and not isinstance(value, str):
        text = f"[{', '.join(map(shown, value))}]"
    else:
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def checked(value: Any, kind: Any, path: str, default: Any = None) -> Any:
    """`value` as the annotation `kind` asks for; lists as tuples, mappings as dicts or dataclasses.

    Args:
        path: its name in the error.
        default: an example for the error, where none follows from the value.

    Raises:
        SettingError: it is of another type, out of range, empty, or names something twice.
    """
    try:
        return _as(value, kind, path)
    except SettingError as error:
        if error.path != path:
            raise
        raise SettingError(path, value, error.want, _example(value, kind, default)) from None


def settle(settings: Any) -> None:
    """Check every field of a dataclass, frozen or not, and set it to what `checked` gives."""
    hints = get_type_hints(type(settings), include_extras=True)
    for entry in fields(settings):
        default = entry.default if entry.default_factory is MISSING else entry.default_factory()
        value = checked(getattr(settings, entry.name), hints[entry.name], entry.name, default)
        object.__setattr__(settings, entry.name, value)


def read(cls: type[Settings], values: Any, path: str = "") -> Settings:
    """The dataclass `cls` made of a mapping.

    Raises:
        SettingError: no mapping, a key that `cls` does not have, or a value it refuses, named with its path.
    """
    known = sorted(entry.name for entry in fields(cls))  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise SettingError(path, values, f"a mapping with the keys {', '.join(known)}")
    try:
        for key, value in values.items():
            if key not in known:
                raise UnknownSetting(str(key), value, ", ".join(known))
        for entry in fields(cls):  # type: ignore[arg-type]
            if entry.name not in values and entry.default is MISSING and entry.default_factory is MISSING:
                raise MissingSetting(entry.name, None, described(get_type_hints(cls, include_extras=True)[entry.name]))
        return cls(**values)
    except SettingError as error:
        raise error.under(path) if path else error from None


def _parts(kind: Any) -> tuple[Any, tuple, tuple]:
    """The bare annotation, its arguments, and the limits that it is Annotated with."""
    limits: tuple = ()
    if get_origin(kind) is Annotated:
        kind, *rest = get_args(kind)
        limits = tuple(rest)
    return get_origin(kind) or kind, get_args(kind), limits


def _as(value: Any, kind: Any, path: str) -> Any:
    """`checked`, without an example in the error."""
    bare, parts, limits = _parts(kind)
    listed, mapped = isinstance(value, Sequence) and not isinstance(value, str), isinstance(value, Mapping)
    if bare in (Union, types.UnionType):
        for part in parts:
            try:
                return _as(value, part, path)
            except SettingError:
                continue
        fits = False
    elif is_dataclass(bare):
        return value if isinstance(value, bare) else read(bare, value, path)  # type: ignore[arg-type]
    elif bare is Literal:
        fits = isinstance(value, str) and value in parts
    elif bare is tuple:
        fits = listed
    elif bare is dict:
        fits = mapped
    elif bare is Any:
        return value
    elif bare is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_FLOAT
    elif bare is int:
        fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_INT
    else:
        fits = isinstance(value, bare or type(None))
    if fits:
        if bare is float:
            value = float(value)
        elif bare is tuple:
            value = tuple(checked(item, parts[0], f"{path}[{place}]") for place, item in enumerate(value))
        elif bare is dict:
            names = [checked(name, parts[0], f"a name in {path}") for name in value]
            value = {name: checked(value[name], parts[1], f"{path}.{name}") for name in names}
        fits = all(_within(value, limit) for limit in limits)
    if not fits:
        raise SettingError(path, value, described(kind))
    return value


def _within(value: Any, limit: Any) -> bool:
    if isinstance(limit, Range):
        return limit.holds(value)
    if limit == NOT_EMPTY:
        return bool(value.strip() if isinstance(value, str) else value)
    return len(set(value)) == len(value)


def described(kind: Any) -> str:
    """What an annotation asks for, in words."""
    bare, parts, limits = _parts(kind)
    if bare in (Union, types.UnionType):
        return " or ".join(map(described, parts))
    if bare is Any:
        return "anything"
    words = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text", tuple: "a list"}
    text = words.get(bare, "a mapping" if bare is dict else "null")
    if bare is Literal:
        text = f"one of {', '.join(parts)}"
    text += "".join(f" {limit}" if isinstance(limit, Range) else f", {limit}" for limit in limits)
    each = {tuple: 0, dict: 1}.get(bare)
    return text if each is None else f"{text}, each of it {described(parts[each])}"


def _example(value: Any, kind: Any, default: Any) -> Any:
    """What to write instead of `value`: the same in the right form where that is plain, else the default."""
    forms: list = [[value]]
    if isinstance(value, float) and abs(value) <= LARGEST_INT and value == int(value):
        forms = [int(value), [value]]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        forms = [[item for place, item in enumerate(value) if item not in value[:place]]]
    for form in forms:
        try:
            return _as(form, kind, "")
        except SettingError:
            continue
    named = _parts(kind)[0] is Literal  # all that fit are named already
    none = named or default is MISSING or default in ("", (), {}) or is_dataclass(default)
    return None if none else default
