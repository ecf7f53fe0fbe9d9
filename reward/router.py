"""The reward function that verl calls: one verifier per data source.

    reward.custom_reward_function.path=reward/router.py
    reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.routes='{my_set*: {verifier: math, time_limit_s: 3}}'

Patterns are tried in order, the run's own before the built-in ones. `check_sources` refuses data with a source that no
pattern matches, at start.
"""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from reward.shaping import format_bonus
from reward.verdict import Verdict, Verifier, failure

logger = logging.getLogger(__name__)

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


def _options(route: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(route, str):
        return route, {}
    options = {str(key): value for key, value in route.items()}
    if "verifier" not in options:
        raise ValueError(f"route {options}: name a verifier, one of {', '.join(VERIFIERS)}")
    return str(options.pop("verifier")), options


@cache
def _reasoning_gym_tasks() -> frozenset[str]:
    from reasoning_gym.factory import DATASETS

    return frozenset(DATASETS)


def find_route(data_source: str, routes: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """Name and options of the verifier for a data source.

    Raises:
        UnknownSourceError: nothing matches. ValueError: the route names no verifier.
    """
    for pattern, route in [*(routes or {}).items(), *ROUTES.items()]:
        if fnmatchcase(data_source.lower(), str(pattern).lower()):
            name, options = _options(route)
            if name not in VERIFIERS and ":" not in name:
                raise ValueError(f"route {pattern}: no verifier {name!r}; choose from {', '.join(VERIFIERS)}")
            return name, options
    if data_source in _reasoning_gym_tasks():
        return "reasoning_gym", {}
    raise UnknownSourceError(
        f"no verifier for data_source {data_source!r}. Add a route: "
        f"+reward.custom_reward_function.reward_kwargs.routes='{{{data_source}: math}}' "
        f"(verifiers: {', '.join(VERIFIERS)}, or module:Class; patterns known: {', '.join([*(routes or {}), *ROUTES])})"
    )


@lru_cache(maxsize=256)
def _build(name: str, options: str) -> Verifier:
    module, _, class_name = VERIFIERS.get(name, name).partition(":")
    factory: Callable[..., Verifier] = getattr(import_module(module), class_name)
    try:
        return factory(**json.loads(options))
    except TypeError as error:
        raise ValueError(f"verifier {name} does not take these options: {options} ({error})") from error


def verifier_of(data_source: str, routes: Mapping[str, Any] | None = None) -> Verifier:
    """The verifier for a data source, kept between calls. Raises as `find_route`, ValueError for bad options."""
    name, options = find_route(data_source, routes)
    return _build(name, json.dumps(options, sort_keys=True, default=lambda value: dict(value)))


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: dict[str, Any] | None = None,
    routes: Mapping[str, Any] | None = None,
    bonus: float = 0.0,
    **kwargs: Any,
) -> dict[str, float]:
    """Score one response; the signature is verl's.

    Args:
        routes: patterns over data_source, lower case, to a verifier's name or to its options.
        bonus: added to the score of a response in the wanted form, see `reward.shaping`.
        kwargs: what verl passes for reward models.

    Returns:
        ``score`` (what is trained on), ``acc`` (1.0 where right), ``verifier_failed`` (1.0 where there is no judgement;
        score and acc are 0 then and must not be learned from), ``format_bonus``.

    Raises:
        UnknownSourceError, ValueError: as `verifier_of`. What a verifier raises on one row (a ground truth that cannot
        be read) is no reason to lose a run: it is logged, and counts as a failed verifier.
    """
    verifier = verifier_of(data_source, routes)
    try:
        verdict = await verifier.verify(solution_str, ground_truth, {**(extra_info or {}), "data_source": data_source})
    except (
        Exception
    ) as error:  # whatever a model wrote or a library tripped over: the run goes on, the row does not count
        logger.exception("verifier of %s raised", data_source)
        verdict = failure(f"{type(error).__name__}: {error}")
    return as_reward(verdict, data_source, format_bonus(solution_str, bonus))


def as_reward(verdict: Verdict, data_source: str, extra: float = 0.0) -> dict[str, float]:
    """A verdict as verl takes it; a failure is logged."""
    if verdict.failed:
        logger.warning("verifier failed on a response of %s: %s", data_source, verdict.reason)
        extra = 0.0
    return {
        "score": verdict.score + extra,
        "acc": verdict.acc,
        "verifier_failed": float(verdict.failed),
        "format_bonus": extra,
    }


def sources_of(files: Iterable[str | Path]) -> dict[str, int]:
    """Rows of each data source in parquet files. Raises ValueError for a file without the column."""
    import pyarrow.parquet as pq

    counts: dict[str, int] = {}
    for file in files:
        names = pq.read_schema(file).names
        if "data_source" not in names:
            raise ValueError(f"{file} has no column data_source (columns: {', '.join(names)})")
        for entry in pq.read_table(file, columns=["data_source"])["data_source"].value_counts().to_pylist():
            counts[str(entry["values"])] = counts.get(str(entry["values"]), 0) + entry["counts"]
    return counts


def check_sources(files: Iterable[str | Path], routes: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Verifier of every data source in the files; builds each, so that a missing sandbox or library is found now.

    Raises:
        UnknownSourceError, ValueError: with what to add.
    """
    found = {}
    for source in sorted(sources_of(files)):
        verifier_of(source, routes)
        found[source] = find_route(source, routes)[0]
    return found
