"""Which prompts are candidates: drawn from the data set in the order of its epochs, and for a while kept when they are
not chosen.

A prompt is known by its place in the data set. Each epoch is a permutation that follows from the seed, so all there is
to save is how far it was drawn, and who waits.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probe.checked import read, settle
from probe.settings import Count

COLUMNS = ("place", "epoch", "age")


@dataclass
class Candidate:
    """A prompt: its place in the data set, the epoch it was drawn in, and in how many steps it was judged."""

    place: int
    epoch: int
    age: int = 0


@dataclass(frozen=True)
class Counters:
    """How far the data were drawn: epoch, place in it, prompts so far."""

    epoch: int
    cursor: int
    drawn: int
    chosen: int
    left: int

    def __post_init__(self):
        settle(self)
        if min(self.epoch, self.cursor, self.drawn, self.chosen, self.left) < 0:
            raise ValueError("counters of drawn prompts are not negative")


class CandidatePool:
    """Candidates for the next step, no prompt twice among them.

    Args:
        size: prompts in the data set.
        shuffle: whether an epoch is in an order of its own, or in the data set's.
        max_age, repeat: as in `SelectSettings`.
    """

    def __init__(self, size: int, seed: int = 0, shuffle: bool = True, max_age: Count | None = 1, repeat: bool = False):
        if size < 1:
            raise ValueError("the data set is empty: there is no prompt to draw")
        self.size, self.seed, self.shuffle, self.max_age, self.repeat = size, seed, shuffle, max_age, repeat
        self.epoch = self.cursor = 0
        self.drawn = self.chosen = self.left = 0
        self._waiting: dict[int, Candidate] = {}  # by place, oldest first
        self._order = self._permutation()

    def _permutation(self) -> np.ndarray:
        order = np.arange(self.size)
        return np.random.default_rng([self.seed, self.epoch]).permutation(order) if self.shuffle else order

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def candidates(self) -> list[Candidate]:
        """Those who wait, oldest first."""
        return list(self._waiting.values())

    def refresh(self, count: int) -> list[Candidate]:
        """Candidates for a step: who waited too long leaves, and new ones are drawn until there are `count`, or the
        whole data set. All of them count as judged once more."""
        if self.max_age is not None:
            old = [item.place for item in self._waiting.values() if item.age >= self.max_age]
            for place in old:
                del self._waiting[place]
            self.left += len(old)
        while len(self._waiting) < min(count, self.size):
            self.draw()
        for item in self._waiting.values():
            item.age += 1
        return self.candidates

    def draw(self) -> Candidate:
        """The next prompt of the data; one that waits already from an earlier epoch gives way to itself."""
        if self.cursor == self.size:
            self.epoch, self.cursor = self.epoch + 1, 0
            self._order = self._permutation()
        item = Candidate(int(self._order[self.cursor]), self.epoch)
        self.cursor += 1
        self.drawn += 1
        if self._waiting.pop(item.place, None) is not None:
            self.left += 1
        self._waiting[item.place] = item
        return item

    def take(self, place: int) -> None:
        """The prompt is asked: it is no candidate any more, unless prompts may repeat."""
        self.chosen += 1
        if not self.repeat:
            del self._waiting[place]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Columns of those who wait, int64, and counters."""
        rows = [(item.place, item.epoch, item.age) for item in self._waiting.values()]
        table_N3 = torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)
        counters = {name: getattr(self, name) for name in ("epoch", "cursor", "drawn", "chosen", "left")}
        return {name: table_N3[:, index].clone() for index, name in enumerate(COLUMNS)}, counters

    def load_state(self, columns: dict[str, Tensor], counters: Any) -> None:
        """Set what `state` gave. Raises ValueError for what it cannot have given."""
        saved = read(Counters, counters)
        if set(columns) != set(COLUMNS) or len({len(column) for column in columns.values()}) > 1:
            raise ValueError(f"want equally long columns {', '.join(COLUMNS)}")
        if any(column.dtype != torch.int64 or column.ndim != 1 for column in columns.values()):
            raise ValueError("columns are whole numbers")
        place_N, epoch_N, age_N = (columns[name] for name in COLUMNS)
        inside_N = (place_N >= 0) & (place_N < self.size) & (epoch_N >= 0) & (epoch_N <= saved.epoch) & (age_N >= 0)
        if not inside_N.all() or len(place_N.unique()) < len(place_N) or saved.cursor > self.size:
            raise ValueError("candidates that the data set does not have")
        rows = zip(place_N.tolist(), epoch_N.tolist(), age_N.tolist(), strict=True)
        self._waiting = {place: Candidate(place, epoch, age) for place, epoch, age in rows}
        for name in ("epoch", "cursor", "drawn", "chosen", "left"):
            setattr(self, name, getattr(saved, name))
        self._order = self._permutation()
