"""The probes of a run, one per domain: predict with what earlier steps taught, then learn from this step's rows.

Shapes: R rows of a step, N rows in a window, F features.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from probe import state
from probe.checked import Range, read, settle
from probe.domain import DomainProbe
from probe.estimators import Estimator, make_estimator
from probe.metrics import calibration_metrics, prediction_scores
from probe.pairing import sibling_mean
from probe.settings import FeatureLayout, ProbeSettings
from probe.window import newest_groups

NAN = float("nan")


@dataclass(frozen=True)
class Prediction:
    """Of R rows: value_R (NaN where not fitted or the row is not finite), weight_R3 (of probe, RLOO and constant in the
    row's baseline; sums to one), constant_R (mean reward of the window, NaN while it is empty). All float32."""

    value_R: Tensor
    weight_R3: Tensor
    constant_R: Tensor


@dataclass(frozen=True)
class Saved:
    """What a bank saves beside tensors; domains and the shared estimator check their own part."""

    updates: Annotated[int, Range(0)]
    shared: dict[str, Any]
    domains: dict[str, Any]

    def __post_init__(self):
        settle(self)


class ProbeBank:
    """One `DomainProbe` per name in `settings.domain_names`, and a probe that domains short of rows share.

    Args:
        layout: what a feature row consists of.
        device: where windows live and fits run.
        seed: of the subspace's random start.
        self_target: rows without siblings learn from their own reward: right only for features of the prompt alone.
    """

    def __init__(self, settings: ProbeSettings, layout: FeatureLayout, device="cpu", seed: int = 0, self_target=False):
        self.settings, self.layout, self.device, self.self_target = settings, layout, torch.device(device), self_target
        self.updates = 0
        self.probes = [DomainProbe(name, settings, layout, self.device, seed) for name in settings.domain_names]
        self.shared: Estimator = make_estimator(settings, layout, seed)

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
        value_R, constant_R = (torch.full((len(x_RF),), NAN, device=self.device) for _ in range(2))
        weight_R3 = torch.zeros(len(x_RF), 3, device=self.device)
        for index, probe in enumerate(self.probes):
            rows = (domain_R == index).nonzero().squeeze(1)
            if not len(rows):
                continue
            domain_RF = x_RF[rows] if len(self.probes) > 1 else x_RF
            value_R[rows] = self._value(probe, domain_RF)
            weight_R3[rows] = torch.tensor(probe.verdict.weight_E, device=self.device)
            constant_R[rows] = probe.constant
        return Prediction(value_R, weight_R3, constant_R)

    def _value(self, probe: DomainProbe, x_RF: Tensor) -> Tensor:
        share = self._own_share(probe)
        if share >= 1.0:
            return probe.predict(x_RF)
        shared_R = self.shared.predict(x_RF)
        return shared_R if share <= 0.0 else share * probe.predict(x_RF) + (1.0 - share) * shared_R

    @torch.no_grad()
    def update(
        self,
        x_RF: Tensor,
        reward_R: Tensor,
        group_R: Tensor,
        domain_R: Tensor | None = None,
        step: int = 0,
        weight_R: Tensor | None = None,
    ) -> dict[str, float]:
        """Score the present probes on the new rows, put the good ones into the windows, fit, and weigh the baselines.

        Args:
            x_RF, reward_R: features and the row's own reward; rows with a non-finite number, or without a sibling of
                finite reward, are left out and counted.
            group_R: the prompt of each row; any integers that are distinct within this step.
            domain_R: index in `settings.domain_names`.
            step: the training step, for `max_age`.
            weight_R: how much the error of a baseline for this row's own reward counts, 0 or more; ratios matter.
                With them the probe tends to E[w r] / E[w] instead of E[r], and so do guard and constant. A row without
                a finite weight is treated as one without a reward; a row of weight 0 teaches its siblings nothing.

        Returns:
            Metrics by name; those of several domains carry the domain's name as a prefix.
        """
        x_RF, domain_R = self._check(x_RF, domain_R)
        reward_R, group_R = reward_R.to(self.device, torch.float32), group_R.to(self.device)
        target_weight_R = None
        if weight_R is not None:
            weight_R = weight_R.to(self.device, torch.float32)
            reward_R = torch.where(weight_R.isfinite() & (weight_R >= 0), reward_R, NAN)
            weight_R = torch.where(reward_R.isfinite(), weight_R, NAN)
            target_weight_R = sibling_mean(weight_R, group_R)  # of all the pairs that the target stands for
        target_R = sibling_mean(reward_R, group_R, None if weight_R is None else weight_R.nan_to_num())
        if self.self_target:
            alone_R = ~target_R.isfinite()
            target_R = torch.where(alone_R, reward_R, target_R)
            if weight_R is not None and target_weight_R is not None:
                target_weight_R = torch.where(alone_R, weight_R, target_weight_R)
        if target_weight_R is not None:
            target_R = torch.where(target_weight_R > 0, target_R, NAN)
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
        scored_weight_R = None if target_weight_R is None else target_weight_R[scored_R]
        said = (before.value_R[scored_R], target_R[scored_R])
        metrics |= prediction_scores(*said, before.constant_R[scored_R], scored_weight_R)
        metrics |= calibration_metrics(*said, weight_R=scored_weight_R)
        start = time.perf_counter()
        for index, probe in enumerate(self.probes):
            rows = (good_R & (domain_R == index)).nonzero().squeeze(1)
            counts = [None if column is None else column[rows] for column in (weight_R, target_weight_R)]
            probe.learn(x_RF[rows], reward_R[rows], target_R[rows], before.value_R[rows], group_R[rows], step, *counts)
        left_out = self._fit_shared()
        for name, probe, shared_left_out_N in zip(self.settings.domain_names, self.probes, left_out, strict=True):
            prefix = f"{name}/" if len(self.probes) > 1 else ""
            share = self._own_share(probe)
            verdict = probe.judge(shared_left_out_N, share)
            metrics |= {f"{prefix}{key}": value for key, value in verdict.items()}
            if prefix:
                metrics |= {f"{prefix}window_rows": float(len(probe.window)), f"{prefix}own_share": share}
        metrics["window_rows"] = float(sum(len(probe.window) for probe in self.probes))
        metrics["time_solve_s"] = time.perf_counter() - start
        self.updates += 1
        return metrics

    def _own_share(self, probe: DomainProbe) -> float:
        """Weight of the domain's own probe against the shared one."""
        return probe.own_share if self.shared.fitted else 1.0

    def _fit_shared(self) -> list[Tensor | None]:
        """Fit the shared probe while a domain borrows; its out-of-prompt predictions of each window's rows.

        It is made of the newest rows of every domain, as many in all as one window holds, and only as long as a domain
        with rows is short of them: a state that passes.
        """
        nothing: list[Tensor | None] = [None] * len(self.probes)
        borrowers = [p for p in self.probes if len(p.window) and p.own_share < 1.0]
        if len(self.probes) < 2 or not borrowers or not self.settings.borrow_rows:
            return nothing
        slots = [_newest(p, self.settings.window_rows // len(self.probes)) for p in self.probes]
        if sum(map(len, slots)) < self.settings.min_rows:
            return nothing
        pairs = list(zip(self.probes, slots, strict=True))
        group_N = torch.cat([p.window.group[s] * len(self.probes) + i for i, (p, s) in enumerate(pairs)])
        x_NF = torch.cat([p.window.feature[s] for p, s in pairs])
        target_N = torch.cat([p.window.target[s] for p, s in pairs])
        self.shared.fit(x_NF, target_N, group_N, torch.cat([p.window.target_weight[s] for p, s in pairs]))
        if self.shared.left_out_ is None:
            return nothing
        parts = self.shared.left_out_.split([len(s) for s in slots])
        whole = [len(s) == len(p.window) for p, s in pairs]  # a borrower has few rows: all of them took part
        return [
            part if all_of_it and probe in borrowers else None
            for part, all_of_it, probe in zip(parts, whole, self.probes, strict=True)
        ]

    def _identity(self) -> dict:
        """What must agree between a state and the bank that loads it."""
        return {
            "features": dict(zip(self.layout.names, self.layout.sizes, strict=True)),
            "feature_order": self.layout.names,
            "settings": asdict(self.settings),
            "self_target": self.self_target,
        }

    def save(self, folder: str | Path) -> None:
        """Write the state to `folder`, atomically; see `probe.state`."""
        tensors, numbers = self.shared.state(torch.empty(0, dtype=torch.int64, device=self.device))
        tensors = state.prefixed("shared", tensors)
        domains = {}
        for index, (name, probe) in enumerate(zip(self.settings.domain_names, self.probes, strict=True)):
            learned, domains[name] = probe.state()
            tensors |= state.prefixed(str(index), learned)
        content = {"updates": self.updates, "shared": numbers, "domains": domains}
        state.write(Path(folder), self._identity(), content, tensors)

    def load(self, folder: str | Path) -> None:
        """Read what `save` wrote. A bank that could not be filled is of no use afterwards.

        Raises:
            FileNotFoundError: no state there. ValueError: another probe's or damaged; says how and what to do.
        """
        folder = Path(folder)
        identity, content, tensors = state.read(folder)
        state.check_identity(folder, self._identity(), identity)
        tensors = {key: tensor.to(self.device) for key, tensor in tensors.items()}
        try:
            saved = read(Saved, content)
            if set(saved.domains) != set(self.settings.domain_names):
                raise ValueError(f"domains {', '.join(saved.domains)}, want {', '.join(self.settings.domain_names)}")
            shared, *parts = state.split(tensors, ["shared", *map(str, range(len(self.probes)))])
            self.shared.load_state(shared, saved.shared, 0, 0)
            probes = dict(zip(self.settings.domain_names, self.probes, strict=True))
            for (name, numbers), learned in zip(saved.domains.items(), parts, strict=True):
                try:
                    probes[name].load_state(learned, numbers)
                except ValueError as error:
                    raise ValueError(f"domain {name}, {error}") from error
            self.updates = saved.updates
            # tensors that do not fit each other are found here rather than in the first step
            for estimator in (self.shared, *(probe.estimator for probe in self.probes)):
                if estimator.fitted:
                    estimator.predict(torch.zeros(1, self.layout.num_features, device=self.device))
        except (ValueError, RuntimeError) as error:
            raise state.damaged(folder, error) from error


def _newest(probe: DomainProbe, rows: int) -> Tensor:
    """Slots of the domain's newest whole groups, at most `rows` rows, oldest first."""
    order = probe.window.order
    return order[newest_groups(probe.window.group[order], rows)]
