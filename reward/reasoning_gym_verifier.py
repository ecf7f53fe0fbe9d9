"""Scores of reasoning-gym tasks, by the library's own verifier.

verl calls :func:`compute_score` once per response (``reward.custom_reward_function``). The response is text of the form
``<think> ... </think> answer``, decoded without special tokens; what stands after the last ``</think>`` is the answer.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from reasoning_gym.factory import get_score_answer_fn

from reward.options import count, positive
from reward.process_pool import LimitedPool, TimeLimitExceeded, WorkerDied
from reward.reasoning_gym_answers import EVALUATED, FORMULAS, is_formula, same_text
from reward.verdict import RIGHT, WRONG, Verdict, failure, kept_of, plain

CLOSE = "</think>"
MAX_ANSWER = 100_000  # characters


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
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    *,
    reward_router_address: str | None = None,
    reward_model_tokenizer: Any = None,
) -> dict[str, float]:
    """Score one response; the signature is verl's (the last two are for reward models, and not used).

    Returns:
        ``score`` and ``acc``, both 1.0 where the verifier's value is full and 0.0 elsewhere. The library gives a wrong
        number a part of the value if its text contains the right one (12 for 2); that is no success, so not rewarded.

    Raises:
        ValueError: no ground truth, or an unknown task.
    """
    if ground_truth is None:
        raise ValueError(f"a row of {data_source} has no ground truth (null); mend or drop it")
    answer = answer_of(solution_str)
    right = answer is not None and is_right(data_source, answer, {"answer": str(ground_truth)})
    return {"score": float(right), "acc": float(right)}


def is_right(task: str, answer: str, entry: dict[str, Any]) -> bool:
    """Whether the library's value is full. Answers that the library would evaluate do not reach it, see
    `reward.reasoning_gym_answers`.

    Raises:
        ValueError: the library trips over the entry's own answer too. Over another answer alone: that one is wrong.
    """
    if task in EVALUATED:
        return same_text(task, answer, entry)
    if task in FORMULAS and not is_formula(answer):
        return False
    score = verifier_of(task)
    try:
        return bool(score(answer, entry) >= 1.0)
    except Exception:  # the library's verifiers take answers in many forms, and check few
        try:
            score(entry["answer"], entry)
        except Exception as error:
            raise ValueError(f"reasoning-gym cannot score this entry of {task}: {error!r:.200}") from error
        return False


def start_worker() -> None:
    """Load the library."""
    verifier_of("chain_sum")


@cache
def _pool(workers: int) -> LimitedPool:
    return LimitedPool(workers, start_worker)


class ReasoningGymVerifier:
    """The same, behind the router: the task's name is the data source's last part (``reasoning_gym/chain_sum``).

    In worker processes, because some of the library's verifiers compute with what the model wrote and may not end.

    Args:
        time_limit_s: for one answer; past it the verdict is a failure.
        workers: processes per process of the reward loop.
    """

    def __init__(self, time_limit_s: float = 10.0, workers: int = 1):
        self.time_limit_s, self.workers = positive("time_limit_s", time_limit_s), count("workers", workers)

    async def verify(self, response: str, ground_truth: Any, extra_info: Mapping[str, Any]) -> Verdict:
        """Judge. `extra_info` may hold the task's ``entry`` (the library's dict), which some verifiers need.

        Raises ValueError for an entry that the library cannot score."""
        task = str(extra_info["data_source"]).rpartition("/")[2]
        answer = answer_of(response)
        if answer is None or len(answer) > MAX_ANSWER:
            return WRONG
        entry = plain(kept_of(extra_info, "entry")) or {"answer": str(ground_truth)}
        try:
            right = await _pool(self.workers).run(is_right, task, answer, entry, limit_s=self.time_limit_s)
        except (TimeLimitExceeded, WorkerDied) as error:
            return failure(f"reasoning-gym: {error}")
        return RIGHT if right else WRONG
