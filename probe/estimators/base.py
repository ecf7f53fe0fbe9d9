"""What every estimator of the expected reward has in common.

scikit-learn's conventions: the constructor stores parameters, `fit(X, y, groups)` learns attributes that end in ``_``,
`predict(X)` uses them, `sklearn.base.clone` copies what is not learned. On any torch device that knows float64; the
same seed gives the same numbers.

Shapes: N rows, F features.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from probe import weights
from probe.checked import Range, checked, shown
from probe.settings import FeatureLayout
from probe.state import Declared, check_tensors
from probe.step import finite_rows, without_bad_rows
from probe.window import Change, SlidingWindow


class Estimator(ABC):
    """Attributes after `fit`: low_, high_ (the rewards' range, at least [0, 1]; predictions are clipped to it),
    left_out_ ((N,) float64 predictions of the fitted rows by a fit that has not seen their prompt; None where there is
    no cheap way).
    """

    # learned attributes that make up the state; a tensor whose first dimension is N has a row per slot of the window
    TENSORS: Declared = {}
    OPTIONAL = ("basis_", "projected_")  # those of TENSORS that a fitted estimator may lack
    alike = False  # whether rows count alike in the regression, and by weight only in what is made of its predictions
    closed_form = False  # whether prompts can be left out without another fit
    strength_ = 0.0  # of linear estimators: the penalty on squared coordinates; 0: there is nothing to cross-fit with
    NUMBERS: Mapping[str, Any] = {"low_": Annotated[float, Range(high=0)], "high_": Annotated[float, Range(1)]}

    def __init__(self, layout: FeatureLayout):
        self.layout = layout
        self.low_, self.high_ = 0.0, 1.0
        self.left_out_: Tensor | None = None

    @property
    @abstractmethod
    def fitted(self) -> bool:
        """Whether `predict` can be called."""

    @abstractmethod
    def _fit(self, x_NF: Tensor, y_N: Tensor, group_N: Tensor, weight_N: Tensor | None) -> Tensor | None:
        """Learn; returns the left-out predictions, not yet clipped. Weights are positive and as `weights.relative`
        gives them."""

    @abstractmethod
    def _predict(self, x_NF: Tensor) -> Tensor:
        """(N,), not yet clipped."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """What the constructor was given, by name (scikit-learn's protocol)."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def fit(self, X: Tensor, y: Tensor, groups: Tensor, sample_weight: Tensor | None = None) -> "Estimator":
        """Learn from rows X (N, F) with targets y (N,); `groups` (N,) names each row's prompt. Forgets earlier rows.

        Args:
            sample_weight: (N,) how much each row's error counts, in the fit and in all that is chosen by errors. Only
                ratios matter. A row of weight 0 is as good as left out: nothing is said of it in `left_out_` (NaN).

        Raises:
            ValueError: no rows, shapes that do not fit, numbers that are not finite, or no positive weight.
        """
        self.low_, self.high_ = 0.0, 1.0
        return self._learn_rows(X, y, groups, sample_weight)

    def _learn_rows(self, x_NF: Tensor, y_N: Tensor, group_N: Tensor, weight_N: Tensor | None) -> "Estimator":
        self._check(x_NF, y_N, group_N)
        counts = None
        if weight_N is not None:
            if weight_N.shape != y_N.shape or not (weight_N.isfinite() & (weight_N >= 0)).all() or not weight_N.any():
                raise ValueError("want a finite weight for each row, none negative and not all zero")
            if not weight_N.all():
                counts = weight_N > 0
                x_NF, y_N, group_N, weight_N = x_NF[counts], y_N[counts], group_N[counts], weight_N[counts]
        self._widen(y_N)
        left_out_N = self._fit(x_NF.float(), y_N.float(), group_N, weights.relative(weight_N))
        if counts is not None and left_out_N is not None:
            counted_N, left_out_N = left_out_N, left_out_N.new_full((len(counts),), float("nan"))
            left_out_N[counts] = counted_N
        self._finish(left_out_N)
        return self

    def follow(self, window: SlidingWindow, change: Change) -> "Estimator":
        """Learn from a window after `change`; here all of it, elsewhere only what changed. The rewards' range stays as
        wide as it ever was: that a reward left the window does not make it impossible."""
        slots = window.order
        columns = (window.feature, window.target, window.group, window.target_weight)
        return self._learn_rows(*(column[slots] for column in columns))

    def lose_track(self) -> None:  # noqa: B027  most estimators have no track to lose
        """The window changes without being followed: the next `follow` starts from its rows."""

    def predict(self, X: Tensor) -> Tensor:
        """(N,) float32 within [low_, high_]; NaN for rows with a number that is not finite.

        Raises:
            RuntimeError: before `fit`. ValueError: rows of another width.
        """
        if not self.fitted:
            raise RuntimeError(f"{type(self).__name__} has not been fitted")
        self._check_width(X)
        finite_N = finite_rows(X)
        value_N = self._predict(without_bad_rows(X, finite_N).float()).float()
        return torch.where(finite_N, value_N.clamp(self.low_, self.high_), float("nan"))

    def coordinates(self, x_NF: Tensor) -> Tensor:
        """(N, K) what the fitted estimator is a ridge regression on, with the penalty `strength_`."""
        raise NotImplementedError(f"{type(self).__name__} has no closed form to leave prompts out by")

    def window_coordinates(self, window: SlidingWindow) -> Tensor:
        """The same of a window's rows, oldest first."""
        return self.coordinates(window.feature[window.order])

    def linked(self, linear_N: Tensor) -> Tensor:
        """What the estimator says where its regression says `linear_N`, not yet clipped."""
        return linear_N

    def _widen(self, y_N: Tensor) -> None:
        self.low_, self.high_ = min(self.low_, float(y_N.min())), max(self.high_, float(y_N.max()))

    def _finish(self, left_out_N: Tensor | None) -> None:
        self.left_out_ = None if left_out_N is None else left_out_N.clamp(self.low_, self.high_)

    def _check_width(self, x_NF: Tensor) -> None:
        if x_NF.ndim != 2 or x_NF.shape[1] != self.layout.num_features:
            blocks = ", ".join(f"{n}: {s}" for n, s in zip(self.layout.names, self.layout.sizes, strict=True))
            raise ValueError(
                f"rows of shape {tuple(x_NF.shape)} do not fit the layout of "
                f"{self.layout.num_features} features ({blocks})"
            )

    def _check(self, x_NF: Tensor, y_N: Tensor, group_N: Tensor) -> None:
        self._check_width(x_NF)
        if not len(x_NF) == len(y_N) == len(group_N) > 0:
            raise ValueError(f"want as many targets and groups as rows: {len(x_NF)}, {len(y_N)}, {len(group_N)}")
        if not (x_NF.isfinite().all() and y_N.isfinite().all()):
            raise ValueError("rows and targets must be finite: leave bad rows out before fit")

    def state(self, slots: Tensor) -> tuple[dict[str, Tensor], dict[str, float | int | None]]:
        """Learned tensors (those that are set) and numbers.

        Args:
            slots: the followed window's order; of tensors with a row per slot, these rows are given.
        """
        tensors = {name: value for name in self.TENSORS if (value := getattr(self, name)) is not None}
        tensors |= {name: tensors[name][slots] for name in tensors if self._slotted(name)}
        return tensors, {name: getattr(self, name) for name in self.NUMBERS}

    def _slotted(self, name: str) -> bool:
        return self.TENSORS[name][0].startswith("N")

    def _sizes(self) -> dict[str, int]:
        """Sizes that the learned tensors must have, by the letters in TENSORS."""
        return {"F": self.layout.num_features, "P": self.layout.num_state_features}

    def load_state(self, tensors: dict[str, Tensor], numbers: Any, slots: int, rows: int) -> None:
        """Set what `state` gave, for a window of so many slots whose rows stand in the first ones, in order. Raises
        ValueError for what it cannot have given."""
        check_tensors("estimator", tensors, self.TENSORS, self._sizes() | {"N": rows})
        lacking = set(self.TENSORS) - set(self.OPTIONAL) - set(tensors)
        if tensors and lacking:
            raise ValueError(f"estimator: lacks {', '.join(sorted(lacking))}")
        if not isinstance(numbers, Mapping) or set(numbers) != set(self.NUMBERS):
            raise ValueError(f"estimator: want the numbers {', '.join(self.NUMBERS)}, not {shown(numbers)}")
        for name in self.TENSORS:
            tensor = tensors.get(name)
            if tensor is not None and self._slotted(name):
                part, tensor = tensor, tensor.new_zeros(slots, *tensor.shape[1:])
                tensor[:rows] = part
            setattr(self, name, tensor)
        for name, kind in self.NUMBERS.items():
            setattr(self, name, checked(numbers[name], kind, f"estimator.{name}"))
