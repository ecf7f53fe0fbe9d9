"""Options of verifiers, checked before a run: name, value, what is wanted."""

import inspect
import math
import typing
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, Union


def positive(name: str, value: Any) -> float:
    """A finite number above 0. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name}={value!r}: want a number above 0, as {name}: 5.0")
    return float(value)


def at_least(name: str, value: Any, least: float = 0.0) -> float:
    """A finite number from `least` on. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
        raise ValueError(f"{name}={value!r}: want a number, {least:g} or more")
    return float(value)


def count(name: str, value: Any) -> int:
    """A whole number, 1 or more. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r}: want a whole number, 1 or more")
    return value


def flag(name: str, value: Any) -> bool:
    """True or False. Raises ValueError."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: want true or false")
    return value


_WANTED = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text", NoneType: "null"}


def _fits(value: Any, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def check_options(factory: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Names and plain types of options by what a verifier's constructor says it takes.

    Raises:
        ValueError: an option that it does not take, or one of another type; says which there are.
    """
    parameters = inspect.signature(factory).parameters
    try:
        hints = typing.get_type_hints(factory.__init__ if isinstance(factory, type) else factory)  # type: ignore[misc]
    except (NameError, TypeError):  # somebody's own class, whose hints are for readers only
        hints = {}
    rest = next((name for name, p in parameters.items() if p.kind is p.VAR_KEYWORD), None)
    known = [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for name, value in options.items():
        if name not in known and rest is None:
            raise ValueError(f"{name}: there is no such option; there are: {', '.join(known) or 'none'}")
        hint = hints.get(name if name in known else str(rest), Any)
        kinds = typing.get_args(hint) if typing.get_origin(hint) in (Union, UnionType) else (hint,)
        if all(kind in _WANTED for kind in kinds) and not any(_fits(value, kind) for kind in kinds):
            raise ValueError(f"{name}={value!r}: want {' or '.join(_WANTED[kind] for kind in kinds)}")
