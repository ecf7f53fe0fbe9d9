"""Several estimators as one.

Shapes: N rows, F features, E members.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from probe import weights
from probe.estimators.base import Estimator
from probe.guard import simplex_least_squares
from probe.state import prefixed, split


class Ensemble(Estimator):
    """A weighted mean of estimators.

    Args:
        members: unfitted estimators over one layout.
        stacked: weights that fit the members' out-of-prompt predictions best (non-negative, summing to one); else
            equal ones.
        folds: prompts are dealt into so many parts for those predictions.
    """

    TENSORS = {"weight_": ("E", torch.float64)}

    def __init__(self, members: list[Estimator], stacked: bool = True, folds: int = 5):
        if not members:
            raise ValueError("an ensemble needs at least one member")
        super().__init__(members[0].layout)
        self.members, self.stacked, self.folds = members, stacked, folds
        self.weight_: Any = None  # (E,) after fit

    @property
    def fitted(self) -> bool:
        return self.weight_ is not None

    def _out_of_prompt(self, x_NF: Tensor, y_N: Tensor, group_N: Tensor, weight_N: Tensor | None) -> Tensor:
        """(N, E) predictions by members that have not seen the row's prompt."""
        _, place_N = torch.unique(group_N, return_inverse=True)
        folds = min(self.folds, int(place_N.max()) + 1)
        result_NE = y_N.new_full((len(y_N), len(self.members)), float(weights.mean(y_N, weight_N)))
        if folds < 2:
            return result_NE
        for fold in range(folds):
            out_N = place_N % folds == fold
            inside = None if weight_N is None else weight_N[~out_N]
            for index, member in enumerate(self.members):
                fresh = copy.deepcopy(member).fit(x_NF[~out_N], y_N[~out_N], group_N[~out_N], inside)
                result_NE[out_N, index] = fresh.predict(x_NF[out_N])
        return result_NE

    def _fit(self, x_NF: Tensor, y_N: Tensor, group_N: Tensor, weight_N: Tensor | None) -> Tensor:
        out_NE = self._out_of_prompt(x_NF, y_N, group_N, weight_N).double()
        count = len(self.members)
        weight_E = torch.full((count,), 1.0 / count, dtype=torch.float64, device=x_NF.device)
        if self.stacked:
            weight = None if weight_N is None else weight_N.cpu().numpy()
            found_E = simplex_least_squares(out_NE.cpu().numpy(), y_N.double().cpu().numpy(), weight)
            weight_E = torch.from_numpy(found_E).to(x_NF.device)
        for member in self.members:
            member.fit(x_NF, y_N, group_N, weight_N)
        self.weight_ = weight_E
        return out_NE @ weight_E

    def _predict(self, x_NF: Tensor) -> Tensor:
        return torch.stack([member.predict(x_NF) for member in self.members], dim=1).double() @ self.weight_

    def state(self, slots):
        tensors, numbers = super().state(slots)
        for index, member in enumerate(self.members):
            member_tensors, member_numbers = member.state(slots)
            tensors |= prefixed(str(index), member_tensors)
            numbers |= prefixed(str(index), member_numbers)
        return tensors, numbers

    def _sizes(self) -> dict[str, int]:
        return super()._sizes() | {"E": len(self.members)}

    def load_state(self, tensors, numbers, slots, rows) -> None:
        own, members = [], []
        for entries in (tensors, numbers):
            own.append({name: entry for name, entry in entries.items() if "." not in name})
            rest = {name: entry for name, entry in entries.items() if "." in name}
            members.append(split(rest, map(str, range(len(self.members)))))
        super().load_state(own[0], own[1], slots, rows)
        for member, learned, learned_numbers in zip(self.members, *members, strict=True):
            member.load_state(learned, learned_numbers, slots, rows)
