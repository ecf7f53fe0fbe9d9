"""Verifiable instructions (IFEval), checked by lm-eval's implementation of them.

Needs the extra ``ifeval``. Instructions that count sentences also need NLTK's data ``punkt_tab``; where it is missing,
the verdict on such a row is a failure that says so.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

from reward.answer_region import final_part
from reward.options import count, flag, positive
from reward.process_pool import LimitedPool, TimeLimitExceeded, WorkerDied
from reward.verdict import Verdict, failure, kept_of, plain

MAX_RESPONSE = 100_000  # characters; no instruction of IFEval asks for as much


class MissingDataError(RuntimeError):
    """A data set of NLTK is not installed."""


def start_worker() -> None:
    """Load the library; language detection draws at random unless told otherwise."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    import langdetect
    import lm_eval.tasks.ifeval.instructions_registry  # noqa: F401

    langdetect.DetectorFactory.seed = 0


def known_instructions() -> frozenset[str]:
    """Ids of the instructions that the library can check."""
    from lm_eval.tasks.ifeval import instructions_registry

    return frozenset(instructions_registry.INSTRUCTION_DICT)


def followed(prompt: str, response: str, ids: Sequence[str], arguments: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Whether each instruction is followed, by IFEval's strict rule.

    Raises:
        ValueError: an unknown instruction, or arguments that it does not take. MissingDataError.
    """
    from lm_eval.tasks.ifeval import utils

    if unknown := sorted(set(ids) - known_instructions()):
        raise ValueError(f"instructions {unknown} are not IFEval's; known: {', '.join(sorted(known_instructions()))}")
    example = utils.InputExample(
        key=0, instruction_id_list=list(ids), prompt=prompt, kwargs=[dict(a) for a in arguments]
    )
    try:
        return utils.test_instruction_following_strict(example, response).follow_instruction_list
    except LookupError as error:  # NLTK's, many lines long
        raise MissingDataError(
            "NLTK's data punkt_tab is missing; run `python -m nltk.downloader punkt_tab` where there is a network"
        ) from error
    except TypeError as error:
        raise ValueError(f"instructions {list(ids)} do not take these arguments: {error}") from error


@cache
def _pool(workers: int) -> LimitedPool:
    return LimitedPool(workers, start_worker)


class IfEvalVerifier:
    """Instructions of the ground truth against the response's final part.

    The ground truth is a mapping, or JSON text of one, with ``instruction_id_list`` and ``kwargs`` (one mapping per
    instruction), as in IFEval's own data. The prompt, which some instructions need, is ``extra_info.prompt``.

    Args:
        partial: score the share of instructions that are followed; otherwise 1 for all of them and 0 for less. ``acc``
            is 1 for all of them in both cases.
        time_limit_s: for one response; past it the verdict is a failure.
        workers: processes per process of the reward loop.
    """

    def __init__(self, partial: bool = False, time_limit_s: float = 10.0, workers: int = 1):
        self.partial, self.time_limit_s = flag("partial", partial), positive("time_limit_s", time_limit_s)
        self.workers = count("workers", workers)
        if missing := [name for name in ("lm_eval", "langdetect", "immutabledict", "nltk") if find_spec(name) is None]:
            raise ValueError(f"ifeval needs {', '.join(missing)}: pip install 'poise-verl[ifeval]'")

    async def verify(self, response: str, ground_truth: Any, extra_info: Mapping[str, Any]) -> Verdict:
        """Judge. Raises ValueError for a ground truth that cannot be read."""
        ids, arguments = _read(ground_truth)
        text = final_part(response).strip()  # all of it: what is forbidden must not stand at its beginning either
        if not text or len(text) > MAX_RESPONSE:
            return Verdict(0.0, 0.0, reason="no final part" if not text else "too long")
        prompt = str(kept_of(extra_info, "prompt") or "")
        try:
            kept = await _pool(self.workers).run(followed, prompt, text, ids, arguments, limit_s=self.time_limit_s)
        except (TimeLimitExceeded, WorkerDied, MissingDataError) as error:
            return failure(f"ifeval: {error}")
        return Verdict(sum(kept) / len(kept) if self.partial else float(all(kept)), float(all(kept)))


def _read(ground_truth: Any) -> tuple[list[str], list[dict[str, Any]]]:
    try:
        truth = json.loads(ground_truth) if isinstance(ground_truth, str) else ground_truth
        ids = [str(item) for item in truth["instruction_id_list"]]
        arguments = [plain(dict(item or {})) for item in truth["kwargs"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"ifeval ground truth {str(ground_truth)[:200]!r}: want a mapping with instruction_id_list and kwargs"
        ) from error
    if not ids or len(ids) != len(arguments):
        raise ValueError(f"ifeval ground truth: {len(ids)} instructions, {len(arguments)} kwargs; want one for each")
    return ids, arguments
