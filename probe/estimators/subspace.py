"""Estimators that are linear in a tracked low-dimensional subspace; SubspaceRidge is the default probe.

Shapes: C slots of the window, N rows in it, R new rows, F features, K dimensions that are solved in.
"""

from abc import abstractmethod
from typing import Annotated

import torch
from torch import Tensor

from probe import weights
from probe.checked import Range
from probe.estimators.linear import LinearEstimator
from probe.refresh import Refresh
from probe.ridge_path import ridge_path
from probe.settings import FeatureLayout, ProbeSettings, check_penalties
from probe.state import prefixed
from probe.subspace import Subspace
from probe.window import Change, SlidingWindow

DEFAULT_PENALTIES = ProbeSettings().penalties
COMPARED_ROWS = 512  # newest rows, whose captured variance later rows are compared with
GROWTH = 2


class SubspaceEstimator(LinearEstimator):
    """Linear in the leading directions of the jointly standardised states, and in the scalars.

    Follows a window at the cost of its new rows: rows keep their projection while they stay, so a step projects what
    came in and solves in K dimensions. The subspace itself is refreshed, from where it stands and a part in each step
    (`probe.refresh`): a refresh takes as many steps as bring a change of `refresh_share` of the window, rows that come
    and rows that go counted (2: every row is another). At once it is refreshed when the window has doubled, or when new
    rows stand out of it (their captured variance falls below `refresh_energy` of what it was). Between two refreshes
    the fit is exactly the batch fit in that subspace.

    Args:
        layout, rank, exact_features, seed: of the subspace, see `probe.subspace.Subspace`.
        penalties: grid to choose from by leave-one-prompt-out.
        link, weighted: see `LinearEstimator`.
    """

    TENSORS = {
        **LinearEstimator.TENSORS,
        "basis_": ("PR", torch.float32),
        "scale_": ("F", torch.float32),
        "center_": ("F", torch.float32),
        "projected_": ("NK", torch.float32),
    }
    NUMBERS = {
        **LinearEstimator.NUMBERS,
        "gain_": Annotated[float, Range(0)],
        "changed_": Annotated[int, Range(0)],
        "rows_": Annotated[int, Range(0)],
        "energy_": Annotated[float, Range(0)],
    }

    def __init__(
        self,
        layout: FeatureLayout,
        rank: int = 96,
        exact_features: int = 512,
        penalties=DEFAULT_PENALTIES,
        link: str = "auto",
        refresh_share: float = 2.0,
        refresh_energy: float = 0.9,
        seed: int = 0,
        weighted: str = "fit",
    ):
        super().__init__(layout, link, weighted)
        check_penalties(penalties)
        self.penalties, self.refresh_share, self.refresh_energy = tuple(penalties), refresh_share, refresh_energy
        self.rank, self.exact_features, self.seed = rank, exact_features, seed
        self.subspace = Subspace(layout, rank, exact_features, seed)
        self.projected_: Tensor | None = None  # (C, K), a row per slot of the window
        self.refresh = Refresh(self.subspace, self.alike)
        self.changed_ = 0  # rows that came or went since the last refresh
        self.rows_ = 0  # of the window then
        self.energy_ = 0.0

    # the subspace's learned attributes are part of this estimator's state
    basis_ = property(lambda s: s.subspace.basis_, lambda s, v: setattr(s.subspace, "basis_", v))
    scale_ = property(lambda s: s.subspace.scale_, lambda s, v: setattr(s.subspace, "scale_", v))
    center_ = property(lambda s: s.subspace.mean_, lambda s, v: setattr(s.subspace, "mean_", v))
    gain_ = property(lambda s: s.subspace.gain_, lambda s, v: setattr(s.subspace, "gain_", v))

    @abstractmethod
    def _solve(
        self, a_NK: Tensor, y_N: Tensor, group_N: Tensor, weight_N: Tensor | None
    ) -> tuple[Tensor, float, Tensor]:
        """Coefficients (K,) float64 and intercept on `a`, and out-of-prompt predictions; sets penalty_."""

    def _fit(self, x_NF: Tensor, y_N: Tensor, group_N: Tensor, weight_N: Tensor | None) -> Tensor:
        self.lose_track()  # from the start, whatever was fitted before
        rows_N = torch.arange(len(x_NF), device=x_NF.device)
        a_NK = self.subspace.refresh(x_NF, rows_N, self._in_regression(weight_N))
        return self._adopt(a_NK, y_N, group_N, weight_N)

    def _adopt(self, a_NK: Tensor, y_N: Tensor, group_N: Tensor, weight_N: Tensor | None) -> Tensor:
        coefficient_K, self.intercept_, left_out_N = self._solve(a_NK, y_N, group_N, weight_N)
        self.mean_, self.weight_ = self.subspace.mean_, self.subspace.unproject(coefficient_K)
        return left_out_N

    def state(self, slots):
        tensors, numbers = super().state(slots)
        under_way, progress = self.refresh.state(slots)
        return tensors | prefixed("refresh", under_way), numbers | prefixed("refresh", progress)

    def load_state(self, tensors, numbers, slots, rows) -> None:
        learned, under_way = _apart(tensors)
        own_numbers, progress = _apart(numbers)
        super().load_state(learned, own_numbers, slots, rows)
        self.subspace.check_loaded()
        if self.projected_ is not None:  # tensors that do not fit each other are found now, not in a later step
            found = self.subspace.project(self.projected_.new_zeros(1, self.layout.num_features)).shape[1]
            if found != self.projected_.shape[1]:
                raise ValueError(f"projections of {self.projected_.shape[1]} numbers in a subspace of {found}")
        self.refresh.load_state(under_way, progress, slots, rows)

    def lose_track(self) -> None:
        self.projected_ = self.basis_ = None
        self.refresh.stop()
        self.strength_ = 0.0  # it was of a basis that is gone

    def coordinates(self, x_NF: Tensor) -> Tensor:
        return self.subspace.project(x_NF)

    def window_coordinates(self, window: SlidingWindow) -> Tensor:
        return super().window_coordinates(window) if self.projected_ is None else self.projected_[window.order]

    def follow(self, window: SlidingWindow, change: Change) -> "SubspaceEstimator":
        slots, new = window.order, change.new_slots
        weight_N = weights.relative(window.target_weight[slots])
        self.changed_ += len(new) + change.left
        # a basis of few rows is not worth following for long
        stale = self.projected_ is None or len(slots) > GROWTH * self.rows_
        if not stale and len(new):
            self.projected_[new], share = self.subspace.project_measured(window.feature[new])  # type: ignore[index]
            stale = share < self.refresh_energy * self.energy_
        due = self.changed_ / max(self.refresh_share * len(slots), 1e-9)
        done = due >= 1.0
        if not stale and self._in_parts(len(slots)):
            done = self.refresh.advance(window, self.projected_, new, due)  # type: ignore[arg-type]
        if done and not stale and self.refresh.projected is not None:
            self._take_over(window, self._in_regression(weight_N))
        elif done or stale:
            a_NK = self.subspace.refresh(window.feature, slots, self._in_regression(weight_N))
            self.projected_ = a_NK.new_zeros(window.rows, a_NK.shape[1])
            self.projected_[slots] = a_NK
            self._refreshed(window)
        target_N = window.target[slots]
        self._widen(target_N)
        projected_NK = self.projected_[slots]  # type: ignore[index]
        self._finish(self._adopt(projected_NK, target_N, window.group[slots], weight_N))
        return self

    def _in_parts(self, rows: int) -> bool:
        """Whether the basis can be followed as it is: there is one, with as many directions as a fit would have."""
        wanted = min(self.rank, self.layout.num_state_features, rows)
        return self.basis_ is not None and self.basis_.shape[1] == wanted

    def _take_over(self, window: SlidingWindow, weight_N: Tensor | None) -> None:
        """The subspace that was made in parts becomes the present one."""
        slots, coming, self.projected_ = window.order, self.refresh.coming, self.refresh.projected
        self.center_, self.scale_, self.basis_ = coming.mean_, coming.scale_, coming.basis_
        a_NK = self.projected_[slots]  # type: ignore[index]
        self.subspace.set_gain(a_NK, weight_N)
        self.projected_[slots] = a_NK  # type: ignore[index]
        self._refreshed(window)

    def _refreshed(self, window: SlidingWindow) -> None:
        self.refresh.stop()
        self.changed_, self.rows_ = 0, len(window)
        _, self.energy_ = self.subspace.project_measured(window.feature[window.order[-COMPARED_ROWS:]])


def _apart(entries):
    """An estimator's own entries, and those of the refresh under way."""
    own = {name: entry for name, entry in entries.items() if not name.startswith("refresh.")}
    return own, {name.removeprefix("refresh."): entries[name] for name in entries if name not in own}


class SubspaceRidge(SubspaceEstimator):
    """Ridge in the tracked subspace."""

    closed_form = True

    def _solve(
        self, a_NK: Tensor, y_N: Tensor, group_N: Tensor, weight_N: Tensor | None
    ) -> tuple[Tensor, float, Tensor]:
        regression_N = self._in_regression(weight_N)
        solution = ridge_path(a_NK, y_N, group_N, self.penalties, weight_N=regression_N)
        self.penalty_, self.strength_ = solution.penalty, solution.strength
        # the rows' mean has moved since the subspace was centred
        intercept = solution.intercept - float(weights.mean(a_NK.double(), regression_N) @ solution.coefficient_K)
        return solution.coefficient_K, intercept, self._fit_link(solution.left_out_N, y_N, weight_N)
