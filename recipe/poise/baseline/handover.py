"""What an advantage estimator needs beyond verl's arguments.

verl's V1 trainer hands an estimator rewards, mask and prompt ids, but no field of ours (FIELDS in its
``_compute_advantage`` are fixed). So the trainer opens a handover around verl's own method, and the registered function
takes the batch from there. Nothing of verl is repeated or replaced.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

T = TypeVar("T")


class Handover(Generic[T]):
    """``with handover(batch): ...`` in the trainer, `take` in the estimator that is called within.

    Args:
        estimator: its name, for the error.
    """

    def __init__(self, estimator: str):
        self._estimator = estimator
        self._current: ContextVar[T | None] = ContextVar(f"poise_handover_{estimator}", default=None)

    @contextmanager
    def __call__(self, batch: T) -> Iterator[T]:
        token = self._current.set(batch)
        try:
            yield batch
        finally:
            self._current.reset(token)

    def take(self) -> T:
        """The batch under way.

        Raises:
            RuntimeError: there is none: the trainer is not ours.
        """
        batch = self._current.get()
        if batch is None:
            raise RuntimeError(
                f"algorithm.adv_estimator={self._estimator} needs POISE's trainer: start with "
                "`python -m recipe.poise.main_poise`"
            )
        return batch
