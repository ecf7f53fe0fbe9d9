"""One domain's probe: a window, an estimator that follows it, and the guard's verdict.

Shapes: R rows of a step, N rows in the window, F features.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from probe import weights
from probe.checked import Range, read, settle
from probe.cross_fit import cross_fit, left_out_mean
from probe.estimators import Estimator, make_estimator
from probe.guard import BASELINES, Verdict, judge
from probe.settings import FeatureLayout, ProbeSettings
from probe.state import Tensors, check_tensors, prefixed, split
from probe.step import EarlierRows, StepRows
from probe.window import SlidingWindow

RLOO_ONLY = Verdict((0.0, 1.0, 0.0), (float("nan"),) * 3)


@dataclass(frozen=True)
class Saved:
    """What a domain's probe saves beside tensors; window and estimator check their own part."""

    window: dict[str, Any]
    estimator: dict[str, Any]
    weights: tuple[Annotated[float, Range(0, 1)], ...]
    errors: tuple[Annotated[float, Range(0)] | None, ...]  # None: NaN

    def __post_init__(self):
        settle(self)
        if len(self.weights) != len(BASELINES) or abs(sum(self.weights) - 1.0) > 1e-6:
            raise ValueError(f"weights {self.weights}: want {len(BASELINES)} that sum to one")
        if len(self.errors) != len(BASELINES):
            raise ValueError(f"errors {self.errors}: want {len(BASELINES)}")


class DomainProbe:
    """Learns by `learn` and says what a row is worth by `predict`; `judge` afterwards sets the weights."""

    def __init__(self, name: str, settings: ProbeSettings, layout: FeatureLayout, device, seed: int):
        self.settings = settings
        self.window = SlidingWindow(settings.rows_of(name), layout.num_features, device)
        self.estimator: Estimator = make_estimator(settings, layout, seed)
        self.verdict = RLOO_ONLY

    def predict(self, x_RF: Tensor) -> Tensor:
        """(R,) float32; NaN before the first fit and for rows that are not finite."""
        if not self.estimator.fitted:
            return torch.full((len(x_RF),), float("nan"), device=x_RF.device)
        return self.estimator.predict(x_RF)

    @property
    def constant(self) -> float:
        """Mean reward of the window, in the rows' weights; NaN while it is empty."""
        order = self.window.order
        weight_N = weights.relative(self.window.weight[order])
        return weights.mean(self.window.reward[order], weight_N).item() if len(order) else float("nan")

    @property
    def own_share(self) -> float:
        """How far the domain stands on its own rows rather than on the shared probe's, 0..1."""
        if not self.estimator.fitted or len(self.window) < self.settings.min_rows:
            return 0.0
        return 1.0 if not self.settings.borrow_rows else min(1.0, len(self.window) / self.settings.borrow_rows)

    @property
    def judged(self) -> bool:
        """Whether the guard has had rows to judge the baselines on."""
        return any(error == error for error in self.verdict.error_E)

    def cap(self, share: float | None) -> float:
        """What a row may weigh at most: a quantile of the window's weights before they were capped, so of earlier steps
        only; infinite while the window is short of rows."""
        if share is None or len(self.window) < self.settings.min_rows:
            return float("inf")
        return weights.quantile(self.window.uncapped[self.window.order], share)

    def cross_fit(self, step: StepRows, prompt_F: Tensor | None) -> tuple[Tensor, Tensor]:
        """Values and constants (R,) of a step's rows, from the window and the step's other prompts."""
        window, order = self.window, self.window.order
        known = self.estimator.strength_ > 0
        coordinate_NK = self.estimator.window_coordinates(window) if known else None
        feature_NF = window.feature[order[:0] if known else order]  # a full window is not copied without need
        target_N, weight_N, group_N = (column[order] for column in (window.target, window.target_weight, window.group))
        earlier = EarlierRows(feature_NF, target_N, weight_N, group_N, coordinate_NK)
        value_R = cross_fit(self.estimator, earlier, step, self.settings.min_rows, prompt_F)
        counts_R = step.counts_R(of_targets=False)
        return value_R, left_out_mean(
            step.reward_R, counts_R, step.group_R, window.reward[order], window.weight[order].double()
        )

    def learn(self, rows: StepRows, value_R: Tensor, step: int, uncapped_R: Tensor | None = None) -> None:
        """Take in rows that can be learned, with what was said of them, and, with rows enough, follow the window. A
        step without rows, and without rows that grew too old, changes nothing."""
        columns = (rows.feature_RF, rows.reward_R, rows.target_R, value_R, rows.group_R, step, self.settings.max_age)
        change = self.window.push(*columns, rows.weight_R, rows.target_weight_R, uncapped_R)
        if len(self.window) < self.settings.min_rows:
            self.estimator.lose_track()
        elif len(change.new_slots) or change.left:
            self.estimator.follow(self.window, change)

    def judge(self, shared_left_out_N: Tensor | None, share: float) -> dict[str, float]:
        """Weigh the baselines on the window's rows.

        Args:
            shared_left_out_N: the shared probe's out-of-prompt predictions of these rows, where the domain borrows.
            share: weight of the domain's own probe.
        """
        if len(self.window) < self.settings.min_rows and shared_left_out_N is None:
            self.verdict = RLOO_ONLY
        else:
            order = self.window.order
            value_N = self._out_of_prompt(shared_left_out_N, share)
            weight_N = weights.relative(self.window.weight[order])
            reward_N, group_N = self.window.reward[order], self.window.group[order]
            self.verdict = judge(self.settings.guard, value_N, reward_N, group_N, weight_N)
        metrics = {f"weight_{name}": w for name, w in zip(BASELINES, self.verdict.weight_E, strict=True)}
        metrics |= {f"error_{name}": e for name, e in zip(BASELINES, self.verdict.error_E, strict=True)}
        penalty = getattr(self.estimator, "penalty_", None)
        return metrics | ({} if penalty is None else {"penalty": penalty})

    def _out_of_prompt(self, shared_left_out_N: Tensor | None, share: float) -> Tensor:
        own_N = self.estimator.left_out_
        if share <= 0.0 and shared_left_out_N is not None:
            return shared_left_out_N
        if own_N is not None and shared_left_out_N is not None:
            return share * own_N + (1.0 - share) * shared_left_out_N
        if own_N is not None:
            return own_N
        # what was said before the rows were learned is honest for every estimator
        return self.window.value[self.window.order].double()

    def state(self) -> tuple[Tensors, dict]:
        """Tensors, and numbers as JSON has them: finite, or None."""
        rows, counters = self.window.state()
        learned, numbers = self.estimator.state(self.window.order)
        tensors = prefixed("window", rows) | prefixed("estimator", learned)
        left_out_N = self.estimator.left_out_
        if left_out_N is not None and len(left_out_N) == len(self.window):  # of another length: not of these rows
            tensors["guard.left_out"] = left_out_N
        return tensors, {
            "window": counters,
            "estimator": numbers,
            "weights": list(self.verdict.weight_E),
            "errors": [error if error == error else None for error in self.verdict.error_E],
        }

    def load_state(self, tensors: Tensors, numbers: Any) -> None:
        """Set what `state` gave. Raises ValueError for what it cannot have given."""
        saved = read(Saved, numbers)
        window, learned, guard = split(tensors, ("window", "estimator", "guard"))
        self.window.load_state(window, saved.window)
        rows = len(self.window)
        self.estimator.load_state(learned, saved.estimator, self.window.rows, rows)
        check_tensors("guard", guard, {"left_out": ("N", torch.float64)}, {"N": rows}, holes=("left_out",))
        self.estimator.left_out_ = guard.get("left_out")
        errors = tuple(float("nan") if error is None else error for error in saved.errors)
        self.verdict = Verdict(saved.weights, errors)  # type: ignore[arg-type]
