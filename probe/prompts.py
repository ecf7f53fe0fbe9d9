"""What a prompt's own state tells before anything is answered: expected pass rate, how sure that is, and, where
rollouts weigh differently, their energy-weighted mean reward and mean weight.

Beside the bank of the baselines, with a guard of its own: one row per prompt, its state at the time, and what its
rollouts got.

Shapes: N rollouts of a step, G prompts of a step, C candidates, D hidden size.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from probe import weights
from probe.bank import ProbeBank
from probe.domain import DomainProbe
from probe.settings import Crossing, FeatureLayout, ProbeSettings, Weights

RATE, VALUE, ENERGY = "rate", "value", "energy"  # the banks, and their folders
SMALLEST = 1e-6  # of a weight, before its logarithm is taken


def prompt_settings(settings: ProbeSettings, rollouts: int) -> ProbeSettings:
    """The baselines' settings for a bank with a row per prompt instead of `rollouts` of them.

    Always the tracked ridge under the combining guard: where the probe knows nothing it gets no weight, all candidates
    look alike, and choosing is chance.
    """

    def prompts(rows: int) -> int:
        return max(1, rows // rollouts)

    return replace(
        settings,
        kind="subspace_ridge",
        guard="combine",
        min_updates=0,
        penalties=settings.penalties if len(settings.penalties) > 1 else ProbeSettings().penalties,
        window_rows=prompts(settings.window_rows),
        min_rows=prompts(settings.min_rows),
        domain_rows={name: prompts(rows) for name, rows in settings.domain_rows.items()},
        borrow_rows=settings.borrow_rows // rollouts,
    )


class PromptProbe:
    """Learns a step's prompts by `learn`, says what candidates promise by `judge`.

    Args:
        settings: of the baselines' bank. rollouts: of a prompt, as a rule.
        hidden_size: D.
        rated, weight_cap: what rollouts weigh, as in `Crossing`; uniform: there is a pass rate and nothing else.
    """

    def __init__(
        self,
        settings: ProbeSettings,
        hidden_size: int,
        rollouts: int = 1,
        rated: Weights = "uniform",
        weight_cap: float | None = None,
        device="cpu",
        seed: int = 0,
    ):
        settings = prompt_settings(settings, rollouts)
        layout = FeatureLayout(("prompt",), (hidden_size,))
        crossings = {RATE: Crossing()}
        if rated != "uniform":
            crossings |= {VALUE: Crossing(rated, weight_cap), ENERGY: Crossing()}
        self.banks = {
            name: ProbeBank(settings, layout, device, seed, self_target=True, crossing=crossing)
            for name, crossing in crossings.items()
        }

    @torch.no_grad()
    def learn(
        self,
        state_ND: Tensor,
        reward_N: Tensor,
        group_N: Tensor,
        domain_N: Tensor,
        step: int,
        weight_N: Tensor | None = None,
    ) -> dict[str, float]:
        """Take in a step's rollouts, a row per prompt; rollouts of one prompt have one state.

        Args:
            reward_N: NaN where there is none. weight_N: as in `ProbeBank.update`.

        Returns:
            How well the pass rates of the step's prompts were known before they were learned, and the guard's weight.
        """
        _, place_N = torch.unique(group_N, return_inverse=True)
        prompts = int(place_N.max()) + 1 if len(place_N) else 0
        first_G = torch.full((prompts,), len(place_N), dtype=torch.int64, device=place_N.device)
        first_G.scatter_reduce_(0, place_N, torch.arange(len(place_N), device=place_N.device), "amin")
        state_GD, domain_G = state_ND[first_G], domain_N[first_G]
        weight_N = torch.ones_like(reward_N) if weight_N is None else weight_N
        good_N = reward_N.isfinite() & weight_N.isfinite() & (weight_N >= 0)
        columns_N4 = torch.stack([torch.ones_like(reward_N), reward_N, weight_N, weight_N * reward_N], dim=1).double()
        sum_G4 = columns_N4.new_zeros(prompts, 4)
        sum_G4.index_add_(0, place_N, torch.where(good_N.unsqueeze(1), columns_N4, 0.0))
        count_G, reward_G, weight_G, weighted_G = sum_G4.unbind(1)
        own_G = torch.arange(prompts, device=place_N.device)
        targets = {
            RATE: (reward_G / count_G, None),
            VALUE: (weighted_G / weight_G, weight_G / count_G),
            ENERGY: ((weight_G / count_G).clamp(min=SMALLEST).log(), None),
        }
        metrics: dict[str, float] = {}
        for name, bank in self.banks.items():
            target_G, weight = targets[name]
            weight = None if weight is None else weight.float()
            learned = bank.update(state_GD, target_G.float(), own_G, domain_G, step, weight)
            if name == RATE:
                kept = ("correlation", "mae", "brier_skill", "window_rows", "penalty", "weight_probe", "error_probe")
                metrics |= {key: value for key, value in learned.items() if key.rsplit("/", 1)[-1] in kept}
        return metrics

    @torch.no_grad()
    def judge(self, state_CD: Tensor, domain_C: Tensor) -> Tensor:
        """(C, 5) float32: pass rate, the deviation of its error, energy-weighted mean reward, mean energy of a rollout
        up to a factor, and the share of pass rates' out-of-prompt variance that the domain's probe explains (what
        rollouts scatter cannot be explained, so it stays well below 1). NaN where nothing is known."""
        bank = self.banks[RATE]
        rate_C, share_C = _mixed(bank, state_CD, domain_C)
        table_C5 = torch.full((len(state_CD), 5), float("nan"), device=rate_C.device)
        table_C5[:, 0] = rate_C
        for index, probe in enumerate(bank.probes):
            rows = (domain_C.to(rate_C.device) == index).nonzero().squeeze(1)
            if len(rows):
                table_C5[rows, 1] = share_C[rows] * error_spread(probe, state_CD.to(bank.device)[rows])
                own, _, constant = probe.verdict.error_E
                table_C5[rows, 4] = max(0.0, 1.0 - own / constant) if constant > 0 else float("nan")
        if VALUE in self.banks:
            table_C5[:, 2] = _mixed(self.banks[VALUE], state_CD, domain_C)[0]
            table_C5[:, 3] = _mixed(self.banks[ENERGY], state_CD, domain_C)[0].exp()
        return table_C5

    def save(self, folder: str | Path) -> None:
        """A folder per bank in `folder`, each written atomically."""
        for name, bank in self.banks.items():
            bank.save(Path(folder) / name)

    def load(self, folder: str | Path) -> None:
        """Read what `save` wrote. Raises as `ProbeBank.load`."""
        for name, bank in self.banks.items():
            bank.load(Path(folder) / name)


def _mixed(bank: ProbeBank, state_CD: Tensor, domain_C: Tensor) -> tuple[Tensor, Tensor]:
    """Probe and constant in the guard's weights, (C,), and the probe's weight; NaN where there is neither."""
    said = bank.predict(state_CD, domain_C)
    weight_C2 = said.weight_R3[:, [0, 2]]
    part_C2 = torch.stack([said.value_R, said.constant_R], dim=1)
    weight_C2 = torch.where(part_C2.isfinite(), weight_C2, 0.0)
    total_C = weight_C2.sum(dim=1)
    value_C = (weight_C2 * part_C2.nan_to_num(0.0)).sum(dim=1) / total_C
    return value_C, torch.where(total_C > 0, weight_C2[:, 0] / total_C, float("nan"))


def error_spread(probe: DomainProbe, state_CD: Tensor) -> Tensor:
    """(C,) standard deviation of the ridge's own error: s sqrt(1/N + a^T (A^T W A + penalty)^-1 a), with s^2 its
    out-of-prompt error and a the centred coordinates. The link's slope is left out, and so is what the policy has
    learned since. While a domain has no ridge of its own, s; NaN before anything was judged."""
    estimator, window = probe.estimator, probe.window
    error = probe.verdict.error_E[0]
    if not estimator.fitted or not estimator.strength_ > 0 or error != error:
        return torch.full((len(state_CD),), error**0.5, device=state_CD.device)
    finite_C = state_CD.isfinite().all(dim=1)
    a_NK = estimator.window_coordinates(window).double()
    a_CK = estimator.coordinates(torch.where(finite_C.unsqueeze(1), state_CD, 0.0)).double()
    weight_N = None if estimator.alike else weights.relative(window.target_weight[window.order])
    mean_K = weights.mean(a_NK, weight_N)
    rooted_NK = (a_NK - mean_K) * (1.0 if weight_N is None else weight_N.sqrt().unsqueeze(1))
    gram_KK = rooted_NK.T @ rooted_NK
    gram_KK.diagonal().add_(estimator.strength_)
    a_CK = a_CK - mean_K
    leverage_C = (a_CK * torch.linalg.solve(gram_KK, a_CK.T).T).sum(dim=1) + 1.0 / len(a_NK)
    spread_C = (error * leverage_C.clamp(0.0, 1.0)).sqrt()
    return torch.where(finite_C, spread_C, float("nan")).to(state_CD.dtype)
