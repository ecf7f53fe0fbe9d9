"""The rows a probe is fitted on: the newest ones, whole prompt groups in and out.

Shapes: N rows in the window, R new rows, F features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class SlidingWindow:
    """Attributes: feature_NF float32, reward_N (the row's own) and target_N float32, group_N int64 (growing with age of
    the run: a larger id is newer), step_N int64."""

    feature_NF: Tensor
    reward_N: Tensor
    target_N: Tensor
    group_N: Tensor
    step_N: Tensor
    next_group: int = 0

    @classmethod
    def empty(cls, features: int, device) -> "SlidingWindow":
        def column(dtype):
            return torch.empty(0, dtype=dtype, device=device)

        return cls(
            torch.empty(0, features, device=device),
            column(torch.float32),
            column(torch.float32),
            column(torch.int64),
            column(torch.int64),
        )

    def __len__(self) -> int:
        return len(self.group_N)

    def push(
        self,
        feature_RF: Tensor,
        reward_R: Tensor,
        target_R: Tensor,
        group_R: Tensor,
        step: int,
        rows: int,
        max_age: int | None,
    ) -> None:
        """Add rows, then drop the oldest groups until at most `rows` rows of at most `max_age` steps are left."""
        if len(group_R):
            _, place_R = torch.unique(group_R, return_inverse=True)
            new_R = place_R + self.next_group
            self.next_group = int(new_R.max()) + 1
            self.feature_NF = torch.cat([self.feature_NF, feature_RF])
            self.reward_N = torch.cat([self.reward_N, reward_R])
            self.target_N = torch.cat([self.target_N, target_R])
            self.group_N = torch.cat([self.group_N, new_R])
            self.step_N = torch.cat([self.step_N, torch.full_like(new_R, step)])
        keep_N = torch.ones(len(self), dtype=torch.bool, device=self.group_N.device)
        if max_age is not None:
            keep_N &= self.step_N > step - max_age
        if int(keep_N.sum()) > rows:
            groups, counts = torch.unique(self.group_N[keep_N], return_counts=True)
            newest_first = counts.flip(0).cumsum(0).flip(0)
            fitting = groups[newest_first <= rows]
            # one group larger than the window: keep it rather than nothing
            oldest = fitting[0] if len(fitting) else groups[-1]
            keep_N &= self.group_N >= oldest
        if not bool(keep_N.all()):
            for name in ("feature_NF", "reward_N", "target_N", "group_N", "step_N"):
                setattr(self, name, getattr(self, name)[keep_N])
