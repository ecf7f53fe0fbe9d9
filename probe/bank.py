"""The probes of a run, one per domain: predict with what earlier steps taught, then learn from this step's rows.

Shapes: R rows of a step, N rows in a window, F features.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from probe import state
from probe.metrics import prediction_scores
from probe.pairing import sibling_mean
from probe.ridge import Ridge
from probe.settings import FeatureLayout, ProbeSettings
from probe.window import SlidingWindow


@dataclass(frozen=True)
class Prediction:
    """Of R rows: value_R (float32, NaN where not fitted or the row is not finite), trusted_R (bool, the guard prefers
    the probe over RLOO), constant_R (float32, mean reward of the window, NaN while it is empty)."""

    value_R: Tensor
    trusted_R: Tensor
    constant_R: Tensor


class DomainProbe:
    """Window, ridge and guard of one domain."""

    def __init__(self, settings: ProbeSettings, layout: FeatureLayout, device, seed: int):
        self.settings = settings
        self.window = SlidingWindow.empty(layout.num_features, device)
        self.ridge = Ridge(settings, layout, seed)
        self.low, self.high = 0.0, 1.0  # the rewards' range; widened when rewards leave it
        self.trusted = False

    def predict(self, x_RF: Tensor) -> Tensor:
        if not self.ridge.fitted:
            return torch.full((len(x_RF),), float("nan"), device=x_RF.device)
        finite_R = x_RF.isfinite().all(dim=1)
        value_R = self.ridge.predict(torch.where(finite_R.unsqueeze(1), x_RF, 0.0)).clamp(self.low, self.high)
        return torch.where(finite_R, value_R, float("nan"))

    def constant(self) -> float:
        return self.window.reward_N.mean().item() if len(self.window) else float("nan")

    def fit(self) -> dict[str, float]:
        """Fit on the window; the guard's errors are those of left-out prompts."""
        window = self.window
        if len(window) < self.settings.min_rows:
            return {"trusted": 0.0}
        self.low = min(self.low, window.reward_N.min().item())
        self.high = max(self.high, window.reward_N.max().item())
        left_out_N = self.ridge.fit(window.feature_NF, window.target_N, window.group_N)
        value_N = left_out_N.clamp(self.low, self.high)
        reward_N = window.reward_N.double()
        rloo_N = sibling_mean(reward_N, window.group_N)
        paired_N = rloo_N.isfinite()
        # the baseline a row would have got: its siblings' values; without a sibling (prompt-only probe), its own
        baseline_N = torch.where(paired_N, sibling_mean(value_N, window.group_N), value_N)
        error_probe = (reward_N - baseline_N).square().mean().item()
        error_constant = reward_N.var(correction=0).item()
        error_rloo = (reward_N - rloo_N)[paired_N].square().mean().item() if paired_N.any() else float("nan")
        rival = error_rloo if paired_N.any() else error_constant
        self.trusted = self.settings.guard == "off" or error_probe < rival
        return {
            "penalty": self.ridge.penalty,
            "error_probe": error_probe,
            "error_rloo": error_rloo,
            "error_constant": error_constant,
            "trusted": float(self.trusted),
        }


class ProbeBank:
    """One `DomainProbe` per name in `settings.domain_names`.

    Args:
        layout: what a feature row consists of.
        device: where windows live and fits run.
        seed: of the subspace's random start.
        self_target: rows without siblings learn from their own reward: right only for features of the prompt alone.
    """

    def __init__(self, settings: ProbeSettings, layout: FeatureLayout, device="cpu", seed: int = 0, self_target=False):
        self.settings, self.layout, self.device, self.self_target = settings, layout, torch.device(device), self_target
        self.updates = 0
        self.probes = [DomainProbe(settings, layout, self.device, seed) for _ in settings.domain_names]

    def _check(self, x_RF: Tensor, domain_R: Tensor | None) -> tuple[Tensor, Tensor]:
        if x_RF.ndim != 2 or x_RF.shape[1] != self.layout.num_features:
            raise ValueError(
                f"rows of shape {tuple(x_RF.shape)} do not fit the layout of {self.layout.num_features} features "
                f"({', '.join(f'{n}: {s}' for n, s in zip(self.layout.names, self.layout.sizes, strict=True))})"
            )
        if domain_R is None:
            domain_R = torch.full((len(x_RF),), len(self.probes) - 1)
        return x_RF.to(self.device, torch.float32), domain_R.to(self.device)

    @torch.no_grad()
    def predict(self, x_RF: Tensor, domain_R: Tensor | None = None) -> Prediction:
        """Values of rows by the probes fitted in earlier updates. Raises ValueError for rows of another width."""
        x_RF, domain_R = self._check(x_RF, domain_R)
        value_R, constant_R = (torch.full((len(x_RF),), float("nan"), device=self.device) for _ in range(2))
        trusted_R = torch.zeros(len(x_RF), dtype=torch.bool, device=self.device)
        for index, probe in enumerate(self.probes):
            rows = domain_R == index
            value_R[rows] = probe.predict(x_RF[rows])
            trusted_R[rows] = probe.trusted
            constant_R[rows] = probe.constant()
        return Prediction(value_R, trusted_R, constant_R)

    @torch.no_grad()
    def update(
        self, x_RF: Tensor, reward_R: Tensor, group_R: Tensor, domain_R: Tensor | None = None, step: int = 0
    ) -> dict[str, float]:
        """Score the present probes on the new rows, put the good ones into the windows, and fit.

        Args:
            x_RF, reward_R: features and the row's own reward; rows with a non-finite number, or without a sibling of
                finite reward, are left out and counted.
            group_R: the prompt of each row; any integers that are distinct within this step.
            domain_R: index in `settings.domain_names`.
            step: the training step, for `max_age`.

        Returns:
            Metrics by name; those of several domains carry the domain's name as a prefix.
        """
        x_RF, domain_R = self._check(x_RF, domain_R)
        reward_R, group_R = reward_R.to(self.device, torch.float32), group_R.to(self.device)
        target_R = sibling_mean(reward_R, group_R)
        if self.self_target:
            target_R = torch.where(target_R.isfinite(), target_R, reward_R)
        finite_R, rewarded_R = x_RF.isfinite().all(dim=1), reward_R.isfinite()
        good_R = finite_R & rewarded_R & target_R.isfinite()
        before = self.predict(x_RF, domain_R)
        metrics = {
            "rows": float(len(x_RF)),
            "left_out_features": float((~finite_R).sum()),
            "left_out_reward": float((~rewarded_R).sum()),
            "left_out_alone": float((finite_R & rewarded_R & ~target_R.isfinite()).sum()),
        }
        scored_R = good_R & before.value_R.isfinite()
        metrics |= prediction_scores(before.value_R[scored_R], target_R[scored_R], before.constant_R[scored_R])
        start = time.perf_counter()
        for index, (name, probe) in enumerate(zip(self.settings.domain_names, self.probes, strict=True)):
            rows = good_R & (domain_R == index)
            probe.window.push(
                x_RF[rows], reward_R[rows], target_R[rows], group_R[rows], step,
                self.settings.window_rows, self.settings.max_age,
            )  # fmt: skip
            prefix = f"{name}/" if len(self.probes) > 1 else ""
            metrics |= {f"{prefix}{key}": value for key, value in probe.fit().items()}
            if prefix:
                metrics[f"{prefix}window_rows"] = float(len(probe.window))
        metrics["window_rows"] = float(sum(len(probe.window) for probe in self.probes))
        metrics["time_solve_s"] = time.perf_counter() - start
        self.updates += 1
        return metrics

    def save(self, folder: str | Path) -> None:
        """Write the state to `folder`, atomically; see `probe.state`."""
        state.save(self, Path(folder))

    def load(self, folder: str | Path) -> None:
        """Read what `save` wrote. Raises ValueError where it is another probe's or damaged, and says how."""
        state.load(self, Path(folder))
