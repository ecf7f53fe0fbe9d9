"""Which verifier judges which data: patterns over a row's ``data_source``, tried in order, the run's own first."""

import json
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from importlib import import_module
from typing import Any

from reward.options import check_options
from reward.verdict import Verifier

VERIFIERS = {
    "math": "reward.math_verifier:MathVerifier",
    "choice": "reward.choice_verifier:ChoiceVerifier",
    "json": "reward.json_verifier:JsonVerifier",
    "value": "reward.value_verifier:ValueVerifier",
    "parts": "reward.value_verifier:PartsVerifier",
    "code": "reward.code.verifier:CodeVerifier",
    "ifeval": "reward.ifeval_verifier:IfEvalVerifier",
    "reasoning_gym": "reward.reasoning_gym_verifier:ReasoningGymVerifier",
}
ROUTES: dict[str, str | dict[str, Any]] = {
    # GURU's domains, whose names contain other patterns
    "*codeio*": {"verifier": "value", "case": True},
    **dict.fromkeys(("*zebra_puzzle*", "*ordering_puzzle*", "*graph_logical*", "*arcagi*"), "value"),
    **dict.fromkeys(("logic__barc*", "simulation__barc*"), "value"),
    "table__*": "parts",
    **dict.fromkeys(("*gsm8k*", "*math*", "*aime*", "*amc*", "*hmmt*", "*brumo*", "*olympiad*", "*numina*"), "math"),
    **dict.fromkeys(
        ("*codecontests*", "*taco*", "*apps*", "*livecodebench*", "*humaneval*", "*mbpp*", "*code*"), "code"
    ),
    **dict.fromkeys(("*gpqa*", "*mmlu*", "*arc_challenge*", "*arc-challenge*", "*choice*"), "choice"),
    "stem__*": {"verifier": "math", "text": True},  # GURU asks a model; this is a rule
    **dict.fromkeys(("*bfcl*", "*toolcall*", "*tool_call*", "*xlam*", "*json*"), "json"),
    "*ifeval*": "ifeval",
    "reasoning_gym/*": "reasoning_gym",
}


class UnknownSourceError(ValueError):
    """No pattern matches a row's data source."""


def options_of(pattern: str, route: Any) -> tuple[str, dict[str, Any]]:
    """Verifier and options of a route. Raises ValueError."""
    where = f"routes.{pattern}"
    if isinstance(route, str):
        name, options = route, {}
    elif isinstance(route, Mapping):
        options = {str(key): value for key, value in route.items()}
        if "verifier" not in options:
            raise ValueError(f"{where}={options}: name a verifier, one of {', '.join(VERIFIERS)}")
        name = options.pop("verifier")
    else:
        raise ValueError(f"{where}={route!r}: want a verifier's name, or {{verifier: NAME, option: value}}")
    if not isinstance(name, str) or name not in VERIFIERS and ":" not in name:
        raise ValueError(f"{where}: no verifier {name!r}; choose from {', '.join(VERIFIERS)}, or module:Class")
    return name, options


def patterns_of(routes: Any) -> dict[str, Any]:
    if routes is None:
        return {}
    if not isinstance(routes, Mapping):
        raise ValueError(f"routes={routes!r}: want patterns over data_source to verifiers, as {{my_set*: math}}")
    return {str(pattern): route for pattern, route in routes.items()}


@cache
def _reasoning_gym_tasks() -> frozenset[str]:
    from reasoning_gym.factory import DATASETS

    return frozenset(DATASETS)


def find_route(data_source: str, routes: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """Name and options of the verifier for a data source.

    Raises:
        UnknownSourceError: nothing matches. ValueError: the route names no verifier.
    """
    return _found(data_source, routes)[1:]


def _found(data_source: str, routes: Mapping[str, Any] | None) -> tuple[str, str, dict[str, Any]]:
    """The pattern, and as `find_route`."""
    for pattern, route in [*patterns_of(routes).items(), *ROUTES.items()]:
        if fnmatchcase(data_source.lower(), pattern.lower()):
            name, options = options_of(pattern, route)
            if name == "reasoning_gym":
                _check_task(data_source)
            return pattern, name, options
    if data_source in _reasoning_gym_tasks():
        return data_source, "reasoning_gym", {}
    raise UnknownSourceError(
        f"no verifier for data_source {data_source!r}. Add a route: "
        f"+reward.custom_reward_function.reward_kwargs.routes='{{{data_source}: math}}' "
        f"(verifiers: {', '.join(VERIFIERS)}, or module:Class; patterns known: {', '.join([*(routes or {}), *ROUTES])})"
    )


def _check_task(data_source: str) -> None:
    task = data_source.rpartition("/")[2]
    if task not in _reasoning_gym_tasks():
        near = get_close_matches(task, _reasoning_gym_tasks(), n=3, cutoff=0.5)
        raise UnknownSourceError(
            f"data_source {data_source!r}: reasoning-gym has no task {task!r}"
            + (f"; near it: {', '.join(near)}" if near else "")
        )


def _factory(pattern: str, name: str, options: Mapping[str, Any]) -> Callable[..., Verifier]:
    """A verifier's class, once its options have been looked at. Raises ValueError with the option's path."""
    module, _, class_name = VERIFIERS.get(name, name).partition(":")
    try:
        factory: Callable[..., Verifier] = getattr(import_module(module), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"routes.{pattern}: verifier {name} cannot be loaded: {error}") from error
    try:
        if not callable(factory):
            raise ValueError(f"verifier: {name} is no class")
        check_options(factory, options)
    except ValueError as error:
        raise ValueError(f"routes.{pattern}.{error} (verifier {name})") from error
    return factory


@lru_cache(maxsize=256)
def _build(factory: Callable[..., Verifier], options: str) -> Verifier:
    return factory(**json.loads(options))


def verifier_of(data_source: str, routes: Mapping[str, Any] | None = None) -> Verifier:
    """The verifier for a data source, kept between calls. Raises as `find_route`, ValueError for bad options."""
    return build(*_found(data_source, routes))


def build(pattern: str, name: str, options: Mapping[str, Any]) -> Verifier:
    """The verifier of a route. Raises ValueError with the path of what is wrong; what its constructor raises."""
    where = f"routes.{pattern}"
    try:
        written = json.dumps(options, sort_keys=True, default=dict)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}={options!r}: options are texts, numbers, true, false or null") from error
    factory = _factory(pattern, name, options)
    try:
        return _build(factory, written)
    except (TypeError, ValueError) as error:
        about = next((option for option in options if str(error).startswith(f"{option}=")), None)
        raise ValueError(f"{where}{'.' if about else ': '}{error} (verifier {name})") from error
