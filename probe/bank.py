"""The probes of a run, one per domain: predict by earlier steps, or cross-fit; then learn this step's rows.

Shapes: R rows of a step, N rows in a window, F features.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from probe import state
from probe.checked import Range, SettingError, read, settle
from probe.domain import RLOO_ONLY, DomainProbe
from probe.estimators import Estimator, make_estimator
from probe.guard import ALWAYS
from probe.metrics import calibration_metrics, prediction_scores
from probe.prediction import Prediction
from probe.settings import Crossing, FeatureLayout, ProbeSettings
from probe.shared import cross_fit_shared, fit_shared
from probe.step import prepare

NAN = float("nan")


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
        crossing: what rows weigh and how values are fitted.
    """

    def __init__(
        self,
        settings: ProbeSettings,
        layout: FeatureLayout,
        device="cpu",
        seed: int = 0,
        self_target=False,
        crossing: Crossing = Crossing(),  # noqa: B008  frozen
    ):
        self.settings, self.layout, self.device, self.self_target = settings, layout, torch.device(device), self_target
        self.crossing, self.updates = crossing, 0
        if not layout.names and settings.guard == "off":
            raise SettingError("guard", "off", "combine, switch, rloo or constant: without features there is no probe")
        blocks = [
            torch.full((size,), name in crossing.prompt_blocks, device=self.device)
            for name, size in zip(layout.names, layout.sizes, strict=True)
        ]
        self._prompt_F = torch.cat(blocks) if blocks else torch.empty(0, dtype=torch.bool, device=self.device)
        self.probes = [DomainProbe(name, settings, layout, self.device, seed) for name in settings.domain_names]
        self.shared: Estimator = make_estimator(settings, layout, seed)

    def _check(self, x_RF: Tensor, domain_R: Tensor | None) -> tuple[Tensor, Tensor]:
        if x_RF.ndim != 2 or x_RF.shape[1] != self.layout.num_features:
            raise ValueError(
                f"rows of shape {tuple(x_RF.shape)} do not fit the layout of {self.layout.num_features} features "
                f"({', '.join(f'{n}: {s}' for n, s in zip(self.layout.names, self.layout.sizes, strict=True))})"
            )
        if domain_R is None:
            domain_R = torch.full((len(x_RF),), len(self.probes) - 1, device=self.device)
        return x_RF.to(self.device, torch.float32), domain_R.to(self.device)

    @torch.no_grad()
    def predict(self, x_RF: Tensor, domain_R: Tensor | None = None, weight_R: Tensor | None = None) -> Prediction:
        """Values of rows by the probes fitted in earlier updates. Raises ValueError for rows of another width.

        Args:
            weight_R: as in `update`.
        """
        x_RF, domain_R = self._check(x_RF, domain_R)
        value_R, constant_R = (torch.full((len(x_RF),), NAN, device=self.device) for _ in range(2))
        weight_R3 = torch.zeros(len(x_RF), 3, device=self.device)
        for index, probe in enumerate(self.probes):
            rows = (domain_R == index).nonzero().squeeze(1)
            if not len(rows):
                continue
            domain_RF = x_RF[rows] if len(self.probes) > 1 else x_RF
            value_R[rows] = self._value(probe, domain_RF)
            weight_R3[rows] = self._weights(probe, RLOO_ONLY.weight_E)
            constant_R[rows] = probe.constant
        weight_R = self._capped(weight_R, domain_R)
        return Prediction(value_R, weight_R3, constant_R, torch.ones_like(value_R) if weight_R is None else weight_R)

    @torch.no_grad()
    def cross_fit(
        self,
        x_RF: Tensor,
        reward_R: Tensor,
        group_R: Tensor,
        domain_R: Tensor | None = None,
        weight_R: Tensor | None = None,
    ) -> Prediction:
        """Values and constants of a step's rows from fits that hold earlier rows and the step's other prompts; nothing
        is learned. Arguments as in `update`, of all the step's rows; what is said of a row does not depend on the
        reward and the weight that any row of its prompt has of its own, other than through its features.

        The guard's weights are those of earlier steps; while it has none, the probe is taken, or RLOO where no feature
        depends on the prompt alone or the probe has no closed form.
        """
        x_RF, domain_R = self._check(x_RF, domain_R)
        weight_R = self._capped(weight_R, domain_R)
        reward_R, group_R = reward_R.to(self.device, torch.float32), group_R.to(self.device)
        rows = prepare(x_RF, reward_R, group_R, weight_R, self.self_target)
        value_R, constant_R = (torch.full((len(x_RF),), NAN, device=self.device) for _ in range(2))
        weight_R3 = torch.zeros(len(x_RF), 3, device=self.device)
        # nothing limits what folds of a first step may say: with siblings, RLOO is safer
        trusted = self._prompt_F.any() if self.shared.closed_form else self.self_target
        first = (1.0, 0.0, 0.0) if trusted else RLOO_ONLY.weight_E
        shared_R = cross_fit_shared(self.shared, self.settings, self.probes, rows)
        for index, probe in enumerate(self.probes):
            place = (domain_R == index).nonzero().squeeze(1)
            if not len(place):
                continue
            own_R, constant_R[place] = probe.cross_fit(rows.at(place), self._prompt_F)
            share = 1.0 if shared_R is None else probe.own_share
            if shared_R is not None and share < 1.0:
                own_R = shared_R[place] if share <= 0.0 else share * own_R + (1.0 - share) * shared_R[place]
            value_R[place] = own_R
            weight_R3[place] = self._weights(probe, first)
        return Prediction(value_R, weight_R3, constant_R, torch.ones_like(value_R) if weight_R is None else weight_R)

    def _weights(self, probe: DomainProbe, first: tuple[float, float, float]) -> Tensor:
        """(3,) the guard's weights for the domain's rows; `first` while it has judged nothing."""
        if self.settings.guard in ("rloo", "constant"):
            first = ALWAYS[self.settings.guard]
        verdict = probe.verdict.weight_E if probe.judged else first
        early = self.updates < self.settings.min_updates
        return torch.tensor(RLOO_ONLY.weight_E if early else verdict, device=self.device)

    def _capped(self, weight_R: Tensor | None, domain_R: Tensor) -> Tensor | None:
        """Weights of rows, capped by what earlier rows of their domain weighed."""
        if weight_R is None:
            return None
        weight_R = weight_R.to(self.device, torch.float32)
        cap_D = torch.tensor([probe.cap(self.crossing.weight_cap) for probe in self.probes], device=self.device)
        # a weight that is not finite stays so: no cap makes it good
        return torch.where(weight_R.isfinite(), torch.minimum(weight_R, cap_D.float()[domain_R]), weight_R)

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
        said: Prediction | None = None,
    ) -> dict[str, float]:
        """Score what was said of the new rows, put the good ones into the windows, fit, and weigh the baselines.

        Args:
            x_RF, reward_R: features and the row's own reward; rows with a non-finite number, or without a sibling of
                finite reward, are left out and counted.
            group_R: the prompt of each row; any integers that are distinct within this step.
            domain_R: index in `settings.domain_names`.
            step: the training step, for `max_age`.
            weight_R: how much the error of a baseline for this row's own reward counts, 0 or more; ratios matter.
                With them the probe tends to E[w r] / E[w] instead of E[r], and so do guard and constant. A row without
                a finite weight is treated as one without a reward; a row of weight 0 teaches its siblings nothing.
            said: what `predict` or `cross_fit` said of the same rows; asked again where it is not given.

        Returns:
            Metrics by name; those of several domains carry the domain's name as a prefix.
        """
        x_RF, domain_R = self._check(x_RF, domain_R)
        reward_R, group_R = reward_R.to(self.device, torch.float32), group_R.to(self.device)
        if said is None and self.crossing.fit == "fresh":
            said = self.cross_fit(x_RF, reward_R, group_R, domain_R, weight_R)
        before = self.predict(x_RF, domain_R) if said is None else said
        uncapped_R = None if weight_R is None else weight_R.to(self.device, torch.float32)
        rows = prepare(x_RF, reward_R, group_R, self._capped(weight_R, domain_R), self.self_target)
        finite_R, rewarded_R, good_R = rows.finite_R, rows.reward_R.isfinite(), rows.good_R
        target_R, target_weight_R = rows.target_R, rows.target_weight_R
        metrics = {
            "rows": float(len(x_RF)),
            "left_out_features": float((~finite_R).sum()),
            "left_out_reward": float((~rewarded_R).sum()),
            "left_out_alone": float((finite_R & rewarded_R & ~target_R.isfinite()).sum()),
        }
        scored_R = good_R & before.value_R.isfinite()
        columns = [before.value_R, target_R, before.constant_R]
        columns += [] if target_weight_R is None else [target_weight_R]
        value_S, target_S, constant_S, *weight = torch.stack(columns)[:, scored_R].cpu()  # one transfer for all scores
        scored_weight_S = weight[0] if weight else None
        metrics |= prediction_scores(value_S, target_S, constant_S, scored_weight_S)
        metrics |= calibration_metrics(value_S, target_S, weight_R=scored_weight_S)
        start = time.perf_counter()
        for index, probe in enumerate(self.probes):
            place = (good_R & (domain_R == index)).nonzero().squeeze(1)
            probe.learn(rows.at(place), before.value_R[place], step, None if uncapped_R is None else uncapped_R[place])
        left_out = fit_shared(self.shared, self.settings, self.probes)
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

    def _identity(self) -> dict:
        """What must agree between a state and the bank that loads it."""
        return {
            "features": dict(zip(self.layout.names, self.layout.sizes, strict=True)),
            "feature_order": self.layout.names,
            "settings": asdict(self.settings),
            "self_target": self.self_target,
            "crossing": asdict(self.crossing),
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
