"""Mathematical answers, judged for equality by math-verify in worker processes."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from reward.answer_region import final_answer
from reward.math_judge import UnreadableGold, equal, start_worker
from reward.math_text import explosive, integer_of, normalise
from reward.options import count, flag, positive
from reward.process_pool import LimitedPool, TimeLimitExceeded, WorkerDied
from reward.verdict import RIGHT, WRONG, Verdict, failure

MAX_ANSWER = 2_000  # characters; nothing longer is an answer


@cache
def _pool(workers: int) -> LimitedPool:
    return LimitedPool(workers, start_worker)


class MathVerifier:
    """The answer that a response gives last, against the ground truth.

    Args:
        time_limit_s: for one answer; past it the verdict is a failure, not a wrong answer.
        workers: processes per process of the reward loop.
        text: a ground truth that is no mathematics is text: right if it is the same but for case, else wrong. Without
            this, another answer than the same is a failure.
    """

    def __init__(self, time_limit_s: float = 5.0, workers: int = 2, text: bool = False):
        self.time_limit_s, self.workers = positive("time_limit_s", time_limit_s), count("workers", workers)
        self.text = flag("text", text)

    async def verify(self, response: str, ground_truth: Any, extra_info: Mapping[str, Any]) -> Verdict:
        """Judge; several ground truths (a list) are alternatives. Raises ValueError for one that cannot be read."""
        golds = [normalise(str(gold)) for gold in (ground_truth if _is_list(ground_truth) else [ground_truth])]
        if not golds or not all(golds):
            raise ValueError(f"empty mathematical ground truth: {ground_truth!r}")
        found = final_answer(response)
        if found is None or len(found) > MAX_ANSWER:
            return WRONG
        answer = normalise(found)
        if not answer:
            return WRONG
        if answer in golds or (self.text and answer.casefold() in map(str.casefold, golds)):
            return RIGHT
        number = integer_of(answer)
        if number is not None and None not in (integers := [integer_of(gold) for gold in golds]):
            return RIGHT if number in integers else WRONG
        if explosive(answer) and not any(map(explosive, golds)):
            return WRONG
        try:
            for gold in golds:
                if await _pool(self.workers).run(equal, answer, gold, limit_s=self.time_limit_s):
                    return RIGHT
        except (TimeLimitExceeded, WorkerDied) as error:
            return failure(f"math-verify: {error}")
        except UnreadableGold:
            if not self.text:
                raise
        return WRONG


def _is_list(value: Any) -> bool:
    return not isinstance(value, str | bytes) and hasattr(value, "__len__")
