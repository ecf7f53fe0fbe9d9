"""The rows a probe is fitted on: the newest ones, whole prompt groups in and out, in memory that never grows.

Shapes: C slots, N rows in the window, R new rows, F features.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from probe.checked import Range, checked
from probe.state import Declared, check_tensors

COLUMNS: Declared = {
    "feature": ("NF", torch.float32),
    "reward": ("N", torch.float32),
    "target": ("N", torch.float32),
    "value": ("N", torch.float32),
    "weight": ("N", torch.float32),
    "target_weight": ("N", torch.float32),
    "uncapped": ("N", torch.float32),
    "group": ("N", torch.int64),
    "step": ("N", torch.int64),
    "serial": ("N", torch.int64),
}
Counters = dict[Literal["next_group", "next_serial"], Annotated[int, Range(0)]]


@dataclass(frozen=True)
class Change:
    """What a `push` did: slots that hold new rows, and how many rows left."""

    new_slots: Tensor
    left: int


class SlidingWindow:
    """At most `rows` rows of `features` numbers on `device`, in slots that rows keep while they stay.

    The rows are read through `order`: slots of the rows that are in the window, oldest first. Memory is
    rows x features x 4 bytes, and 56 bytes a row besides.

    Columns, all over slots: feature (C, F) float32, reward, target (what the row's probe value should be), value (what
    the probe said before it learned the row; NaN where it could not), weight (how much the row's own reward counts),
    target_weight (how much its target counts; positive), uncapped (the weight before a cap, from which later rows' cap
    is made) float32, group, step, serial int64. A group with a larger number is newer.
    """

    def __init__(self, rows: int, features: int, device="cpu"):
        self.rows = rows
        self.feature = torch.zeros(rows, features, device=device)
        self.reward, self.target, self.value = (torch.zeros(rows, device=device) for _ in range(3))
        self.weight, self.target_weight, self.uncapped = (torch.ones(rows, device=device) for _ in range(3))
        self.group, self.step = (torch.zeros(rows, dtype=torch.int64, device=device) for _ in range(2))
        self.serial = torch.full((rows,), -1, dtype=torch.int64, device=device)  # order of arrival; -1: free slot
        self.next_group = 0
        self.next_serial = 0
        self._order: Tensor | None = None

    @property
    def order(self) -> Tensor:
        """(N,) slots of the rows, oldest first."""
        if self._order is None:
            taken = (self.serial >= 0).nonzero().squeeze(1)
            self._order = taken[self.serial[taken].argsort()]
        return self._order

    def __len__(self) -> int:
        return len(self.order)

    def push(
        self,
        feature_RF: Tensor,
        reward_R: Tensor,
        target_R: Tensor,
        value_R: Tensor,
        group_R: Tensor,
        step: int,
        max_age: int | None = None,
        weight_R: Tensor | None = None,
        target_weight_R: Tensor | None = None,
        uncapped_R: Tensor | None = None,
    ) -> Change:
        """Add rows; the oldest groups make room for them, and rows older than `max_age` steps leave.

        Of more new rows than the window holds, the last groups stay. Without weights they are 1, and `uncapped` is
        `weight` where it is not given.
        """
        before = len(self)
        keep_R = newest_groups(group_R, self.rows)
        if not keep_R.all():  # else they are not copied
            feature_RF = feature_RF[keep_R]
        reward_R, target_R = reward_R[keep_R], target_R[keep_R]
        value_R, group_R = value_R[keep_R], group_R[keep_R]
        # when not even all the new rows fit, nothing older stays
        self._drop(len(group_R) if bool(keep_R.all()) else self.rows, step, max_age)
        left = before - len(self)
        free = (self.serial < 0).nonzero().squeeze(1)[: len(group_R)]
        if len(free):
            self.feature[free], self.reward[free], self.target[free] = feature_RF, reward_R, target_R
            self.value[free], self.step[free] = value_R, step
            self.weight[free] = 1.0 if weight_R is None else weight_R[keep_R]
            self.target_weight[free] = 1.0 if target_weight_R is None else target_weight_R[keep_R]
            self.uncapped[free] = self.weight[free] if uncapped_R is None else uncapped_R[keep_R]
            _, place_R = torch.unique(group_R, return_inverse=True)
            self.group[free] = place_R + self.next_group
            self.serial[free] = self.next_serial + torch.arange(len(free), device=free.device)
            self.next_group += int(place_R.max()) + 1
            self.next_serial += len(free)
        self._order = None
        return Change(free, left)

    def _drop(self, needed: int, step: int, max_age: int | None) -> None:
        """Free slots: rows that are too old, then the oldest groups until `needed` rows fit."""
        slots = self.order
        if max_age is not None:
            old = slots[self.step[slots] <= step - max_age]
            self.serial[old] = -1
            slots = slots[self.step[slots] > step - max_age]
        surplus = len(slots) + needed - self.rows
        if surplus > 0:
            groups, counts = torch.unique(self.group[slots], return_counts=True)
            last = groups[(counts.cumsum(0) >= surplus).nonzero()[0, 0]]  # the newest group that has to go
            self.serial[slots[self.group[slots] <= last]] = -1
        self._order = None

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """The rows, oldest first, by column, and the counters."""
        slots = self.order
        return {name: getattr(self, name)[slots] for name in COLUMNS}, {
            "next_group": self.next_group,
            "next_serial": self.next_serial,
        }

    def load_state(self, rows: dict[str, Tensor], counters: Any) -> None:
        """Set what `state` gave, in the first slots. Raises ValueError for what it cannot have given."""
        counters = checked(counters, Counters, "window")
        if set(counters) != {"next_group", "next_serial"} or set(rows) != set(COLUMNS):
            raise ValueError(
                f"window: has {', '.join([*counters, *rows])}, want next_group, next_serial, {', '.join(COLUMNS)}"
            )
        count = rows["serial"].numel()
        if count > self.rows:
            raise ValueError(f"window: {count} rows, there is room for {self.rows}")
        check_tensors("window", rows, COLUMNS, {"N": count, "F": self.feature.shape[1]}, holes=("value",))
        serial_N, group_N = rows["serial"], rows["group"]
        bounds = torch.cat([serial_N.new_full((1,), -1), serial_N, serial_N.new_full((1,), counters["next_serial"])])
        if not (bounds.diff() > 0).all() or not ((group_N >= 0) & (group_N < counters["next_group"])).all():
            raise ValueError("window: rows that are not in order, or groups out of range")
        if (rows["weight"] < 0).any() or (rows["target_weight"] <= 0).any() or (rows["uncapped"] < 0).any():
            raise ValueError("window: weights out of range")
        self.serial[:] = -1
        for name in COLUMNS:
            getattr(self, name)[:count] = rows[name]
        self.next_group, self.next_serial = counters["next_group"], counters["next_serial"]
        self._order = None


def newest_groups(group_R: Tensor, rows: int) -> Tensor:
    """(R,) bool: rows of the last groups (by first appearance of their largest id) that fit `rows`."""
    if len(group_R) <= rows:
        return torch.ones(len(group_R), dtype=torch.bool, device=group_R.device)
    groups, place_R, counts = torch.unique(group_R, return_inverse=True, return_counts=True)
    fits = counts.flip(0).cumsum(0).flip(0) <= rows
    return fits[place_R]
