"""The reward function that verl calls: one verifier per data source.

    reward.custom_reward_function.path=reward/router.py
    reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.routes='{my_set*: {verifier: math, time_limit_s: 3}}'

Patterns are in `reward.routes`, and tried in order, the run's own before the built-in ones. `check_sources` refuses
data with a source that no pattern matches, at start.
"""

import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from reward.data_files import sources_of, truths_missing
from reward.options import at_least
from reward.routes import UnknownSourceError, build, find_route, options_of, patterns_of, verifier_of
from reward.shaping import format_bonus
from reward.verdict import Verdict, failure, kept_of

__all__ = ["UnknownSourceError", "check_kwargs", "check_sources", "compute_score", "find_route", "verifier_of"]

logger = logging.getLogger(__name__)


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: dict[str, Any] | None = None,
    routes: Mapping[str, Any] | None = None,
    bonus: float = 0.0,
    *,
    reward_router_address: str | None = None,
    reward_model_tokenizer: Any = None,
) -> dict[str, float]:
    """Score one response; the signature is verl's.

    Args:
        routes: patterns over data_source, lower case, to a verifier's name or to its options.
        bonus: added to the score of a response in the wanted form, see `reward.shaping`.
        reward_router_address, reward_model_tokenizer: what verl passes to every reward function where there is a
            reward model; not used.

    Returns:
        ``score`` (what is trained on), ``acc`` (1.0 where right), ``verifier_failed`` (1.0 where there is no judgement;
        score and acc are 0 then and must not be learned from), ``format_bonus``.

    Raises:
        UnknownSourceError, ValueError: as `verifier_of`, or a bad bonus. What a verifier raises on one row (a ground
        truth that cannot be read) is no reason to lose a run: it is logged, and counts as a failed verifier.
    """
    verifier, bonus = verifier_of(data_source, routes), at_least("bonus", bonus)
    told = {**(extra_info or {}), "data_source": data_source}
    if _is_missing(ground_truth) and kept_of(told, "entry") is None:
        verdict = failure(f"the row's ground truth is missing ({ground_truth!r}); mend or drop it")
        return as_reward(verdict, data_source)
    try:
        verdict = await verifier.verify(solution_str, ground_truth, told)
    except (
        Exception
    ) as error:  # whatever a model wrote or a library tripped over: the run goes on, the row does not count
        logger.exception("verifier of %s raised", data_source)
        verdict = failure(f"{type(error).__name__}: {error}")
    return as_reward(verdict, data_source, format_bonus(solution_str, bonus))


def _is_missing(truth: Any) -> bool:
    """None, the NaN that a table has in its place, or a list with one of them."""
    if isinstance(truth, list | tuple):
        return any(map(_is_missing, truth))
    return truth is None or isinstance(truth, float) and truth != truth


def check_kwargs(kwargs: Mapping[str, Any] | None) -> None:
    """Look at a run's ``reward_kwargs`` before it starts.

    Raises:
        ValueError: an unknown name, or a value that `compute_score` would refuse; says what to do.
    """
    known = ("routes", "bonus")
    for name in kwargs or {}:
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            raise ValueError(
                f"reward.custom_reward_function.reward_kwargs.{name}: there is no such setting"
                + (f"; did you mean {near[0]}?" if near else "")
                + f" (there are: {', '.join(known)})"
            )
    at_least("reward.custom_reward_function.reward_kwargs.bonus", (kwargs or {}).get("bonus", 0.0))
    for pattern, route in patterns_of((kwargs or {}).get("routes")).items():
        name, options = options_of(pattern, route)
        with suppress(RuntimeError):  # this machine cannot do it: that matters only where a row needs it
            build(pattern, name, options)


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


def check_sources(files: Iterable[str | Path], routes: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Verifier of every data source in the files; builds each, so that a missing sandbox or library is found now.

    Routes that no source needs are looked at too.

    Raises:
        UnknownSourceError, ValueError: with what to add or to mend; also for rows without a source or ground truth.
        RuntimeError: a verifier cannot work on this machine.
    """
    check_kwargs({"routes": routes})
    found = {}
    files = list(files)
    for source in sorted(sources_of(files)):
        verifier_of(source, routes)
        found[source] = find_route(source, routes)[0]
    for file in files:
        if missing := truths_missing(file, {source for source, name in found.items() if name != "reasoning_gym"}):
            raise ValueError(f"{file}: {missing}. Mend or drop these rows")
    return found
