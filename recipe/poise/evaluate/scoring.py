"""Verdicts by the same function that training uses: verl's ``compute_score`` signature, plain or async."""

import asyncio
import importlib
import inspect
import math
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from recipe.poise.data.errors import first_line
from recipe.poise.evaluate.settings import EvaluationError
from recipe.poise.evaluate.suites import Suite


@dataclass(frozen=True)
class Verdict:
    score: float
    acc: float
    verifier_failed: bool


def load_reward(name: str) -> Callable:
    """The function ``MODULE:FUNCTION``, or ``PATH.py:FUNCTION``.

    Raises:
        EvaluationError: there is no such module, file or function, or it cannot be loaded.
    """
    module_name, found, function = name.rpartition(":")
    if not found or not module_name:
        raise EvaluationError(f"--reward {name}: want MODULE:FUNCTION or PATH.py:FUNCTION")
    try:
        if module_name.endswith(".py"):
            from verl.utils.import_utils import load_extern_object

            loaded = load_extern_object(module_name, function)
        else:
            loaded = getattr(importlib.import_module(module_name), function)
    except (Exception, SystemExit) as error:  # it is a person's program, which runs here and may raise anything
        raise EvaluationError(f"--reward {name} cannot be loaded: {raised(error.__cause__ or error)}") from error
    if not callable(loaded):
        raise EvaluationError(f"--reward {name} is not a function")
    return loaded


def raised(error: BaseException) -> str:
    """What a person's function raised, and where: what is wanted of a traceback to mend it."""
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith("<frozen ")]
    return f"{first_line(error)} ({frames[-1].filename}:{frames[-1].lineno})"


def check_sources(function: Callable, suites: list[Suite]) -> None:
    """Refuse suites that the router cannot judge, before anything is sampled. Of other functions nothing is known.

    Raises:
        EvaluationError: no verifier for a data source, or one that cannot run here (a missing sandbox or library).
    """
    from reward.router import compute_score
    from reward.routes import ROUTES, UnknownSourceError, verifier_of

    if function is not compute_score:
        return
    for suite in suites:
        for source in dict.fromkeys(row["data_source"] for row in suite.rows):
            try:
                verifier_of(source)
            except UnknownSourceError as error:
                raise EvaluationError(
                    f"suite {suite.name}: the router has no verifier for data_source {source!r}. Make the data with a "
                    f"--data-source that it knows ({', '.join(ROUTES)}), or give --reward FILE.py:FUNCTION"
                ) from error
            except (ValueError, ImportError, OSError, RuntimeError) as error:
                raise EvaluationError(
                    f"suite {suite.name}: the verifier of data_source {source!r} cannot run: {error}"
                ) from error


def verdict_of(result: Any) -> Verdict:
    """What a reward function returned, which may be a number or verl's dict.

    A score that is not finite is a failed verifier's, as in training.

    Raises:
        TypeError: neither a number nor a dict with ``score``.
    """
    if isinstance(result, int | float):
        result = {"score": result}
    if not isinstance(result, dict) or "score" not in result:
        raise TypeError(f"the reward function returned {result!r:.100}, want a number or a dict with 'score'")
    score = float(result["score"])
    acc = float(result.get("acc", score))
    failed = bool(result.get("verifier_failed", False)) or not (math.isfinite(score) and math.isfinite(acc))
    return Verdict(0.0, 0.0, True) if failed else Verdict(score, acc, False)


class Scorer:
    """Scores responses beside the sampling. An exception in the reward function reaches `Future.result`."""

    def __init__(self, function: Callable, workers: int = 4):
        self._function = function
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="reward")
        self._loop: asyncio.AbstractEventLoop | None = None
        if inspect.iscoroutinefunction(function):
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="reward loop", daemon=True)
            self._thread.start()
            self._slots = asyncio.Semaphore(64)

    def submit(self, row: dict[str, Any], response: str) -> "Future[Verdict]":
        """Score a response to a row of verl's schema."""
        arguments = {
            "data_source": row["data_source"],
            "solution_str": response,
            "ground_truth": row["reward_model"]["ground_truth"],
            "extra_info": dict(row.get("extra_info") or {}),
        }
        if self._loop is None:
            return self._pool.submit(lambda: verdict_of(self._function(**arguments)))
        return asyncio.run_coroutine_threadsafe(self._awaited(arguments), self._loop)

    async def _awaited(self, arguments: dict[str, Any]) -> Verdict:
        async with self._slots:
            return verdict_of(await self._function(**arguments))

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
