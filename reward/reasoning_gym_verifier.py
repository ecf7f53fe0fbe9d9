"""Scores of reasoning-gym tasks, by the library's own verifier.

verl calls :func:`compute_score` once per response (``reward.custom_reward_function``). The response is text of the form
``<think> ... </think> answer``, decoded without special tokens; what stands after the last ``</think>`` is the answer.
"""

import asyncio
from collections.abc import Mapping
from functools import cache
from typing import Any

from reasoning_gym.factory import get_score_answer_fn

from reward.verdict import RIGHT, WRONG, Verdict, kept_of

CLOSE = "</think>"


@cache
def verifier_of(data_source: str):
    """The library's ``score_answer(answer, entry)`` for a data source, which is the task's name.

    Kept between calls: making one builds the task's dataset object, which costs more than scoring does.

    Raises:
        ValueError: the library has no task of this name.
    """
    return get_score_answer_fn(data_source)


def answer_of(solution: str) -> str | None:
    """The text after the last ``</think>``, stripped; None where the reasoning is never closed or nothing follows."""
    _, closed, answer = solution.rpartition(CLOSE)
    return answer.strip() or None if closed else None


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **kwargs: Any
) -> dict[str, float]:
    """Score one response; the signature is verl's.

    Returns:
        ``score`` and ``acc``, both 1.0 where the verifier's value is full and 0.0 elsewhere. The library gives a wrong
        number a part of the value if its text contains the right one (12 for 2); that is no success, so not rewarded.
    """
    answer = answer_of(solution_str)
    right = answer is not None and verifier_of(data_source)(answer, {"answer": str(ground_truth)}) >= 1.0
    return {"score": float(right), "acc": float(right)}


class ReasoningGymVerifier:
    """The same, behind the router: the task's name is the data source's last part (``reasoning_gym/chain_sum``)."""

    async def verify(self, response: str, ground_truth: Any, extra_info: Mapping[str, Any]) -> Verdict:
        """Judge in a thread: some of the library's verifiers take their time. `extra_info` may hold the task's
        ``entry`` (the library's dict), which some verifiers need."""
        source = str(extra_info["data_source"]).rpartition("/")[2]
        answer = answer_of(response)
        if answer is None:
            return WRONG
        entry = kept_of(extra_info, "entry") or {"answer": str(ground_truth)}
        value = await asyncio.to_thread(verifier_of(source), answer, entry)
        return RIGHT if value >= 1.0 else WRONG
