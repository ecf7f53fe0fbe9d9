"""Advantages of rollouts by estimator, for a pool of prompts with the same number of rollouts each.

Shapes: P prompts with N rollouts each, R = P N rows in that order, T response tokens (padded). A group is `n`
neighbouring rows of a prompt.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import compute_optimal_token_baseline_advantage

from probe import Crossing, FeatureLayout, ProbeBank, ProbeSettings
from probe.pairing import sibling_mean
from probe.settings import Weighted
from recipe.poise.baseline.advantage import compute_advantages
from recipe.poise.studies.rollout_pool import Pool


def groups_of(rows: int, n: int) -> Tensor:
    """(R,) number of the group of n neighbours."""
    return torch.arange(rows) // n


def group_mean(x_R: Tensor, n: int, weight_R: Tensor | None = None) -> Tensor:
    """(R,) mean over the row's group, itself included, weighted; 0 where nothing weighs."""
    weight_R = torch.ones_like(x_R) if weight_R is None else weight_R.to(x_R)
    total_G1 = (x_R * weight_R).view(-1, n).sum(1, keepdim=True)
    return (total_G1 / weight_R.view(-1, n).sum(1, keepdim=True).clamp(min=1e-30)).expand(-1, n).reshape(-1)


def rloo(reward_R: Tensor, n: int, weight_R: Tensor | None = None) -> Tensor:
    """Reward minus the (weighted) mean of the group's other rewards; the plain mean where none of them weighs."""
    group_R = groups_of(len(reward_R), n)
    others_R = sibling_mean(reward_R, group_R, weight_R)
    return reward_R - torch.where(others_R.isfinite(), others_R, sibling_mean(reward_R, group_R))


def grpo(reward_R: Tensor, n: int) -> Tensor:
    """Reward minus the group's mean, over its deviation: the group's own reward is in both."""
    deviation_R = reward_R.view(-1, n).std(dim=1).repeat_interleave(n)
    return (reward_R - group_mean(reward_R, n)) / (deviation_R + 1e-6)


def opo(reward_R: Tensor, length_R: Tensor, n: int) -> Tensor:
    """Reward minus the group's length-weighted mean, itself included, as published (arXiv 2505.23585)."""
    return reward_R - group_mean(reward_R, n, length_R)


def constant(reward_R: Tensor, n: int, weight_R: Tensor) -> Tensor:
    """Reward minus the weighted mean reward of all other prompts; `n` rows per prompt."""
    part_P1 = torch.stack([reward_R * weight_R, weight_R], dim=1).view(-1, n, 2).sum(1)
    others_P = part_P1.sum(0) - part_P1
    return reward_R - (others_P[:, 0] / others_P[:, 1]).repeat_interleave(n)


def kept_by_dapo(reward_R: Tensor, n: int) -> Tensor:
    """(R,) bool, rows of groups whose rewards are not all equal."""
    return (reward_R.view(-1, n) != reward_R.view(-1, n)[:, :1]).any(1).repeat_interleave(n)


def token_baseline(reward_R: Tensor, n: int, log_prob_RT: Tensor, sum_pi_squared_RT: Tensor, mask_RT: Tensor) -> Tensor:
    """(R, T) advantages of tokens by verl's own optimal token baseline (arXiv 2602.07078); the reward stands at the
    last token."""
    mask_RT = mask_RT.float()
    last_R = mask_RT.sum(1).long() - 1
    reward_RT = torch.zeros_like(mask_RT)
    reward_RT[torch.arange(len(reward_R)), last_R] = reward_R.float()
    advantage_RT, _ = compute_optimal_token_baseline_advantage(
        reward_RT, mask_RT, groups_of(len(reward_R), n).numpy(), log_prob_RT.float(), sum_pi_squared_RT.float()
    )
    return advantage_RT


def steps(pool: Pool, n: int, rows: int) -> list[Tensor]:
    """Row numbers of steps of about `rows` rows in groups of n: all prompts once, then again with their next n
    rollouts."""
    place_R = torch.arange(len(pool.reward_R)) % pool.n
    found: list[Tensor] = []
    for first in range(0, pool.n, n):
        visit = ((place_R >= first) & (place_R < first + n)).nonzero().squeeze(1)
        found += visit.split(max(1, rows // n) * n)
    return found


@dataclass(frozen=True)
class ProbeForm:
    """One form of POISE: what rows weigh (`energy` or not), how it is fitted, whether the prompt's state is all that
    the probe sees (then n may be 1), and where weights enter (`poise.probe.weighted`)."""

    weighted: bool
    fit: str
    prompt_only: bool = False
    where: Weighted = "link"


class ProbeRun:
    """The project's probe and guard in a run at a fixed policy: earlier steps are learned one by one, then each batch
    of the pool is the next step after them.

    Args:
        earlier: rows of earlier steps, other prompts. weight_R: of its rows. n: rows per prompt in a step.
        step_rows: rows of a step. cap: `poise.weight_cap`.
    """

    def __init__(
        self, form: ProbeForm, earlier: Pool, weight_R: Tensor, n: int, step_rows: int, cap: float | None, seed: int
    ):
        self.form, self.n, self.step_rows = form, n, step_rows
        layout = earlier.layout
        if form.prompt_only:
            layout = FeatureLayout(("prompt",), (layout.sizes[layout.names.index("prompt")],))
        self._columns = earlier.layout.slices["prompt"] if form.prompt_only else slice(None)
        weights = "energy" if form.weighted else "uniform"
        crossing = Crossing(weights, cap if form.weighted else None, form.fit, ("prompt",))  # type: ignore[arg-type]
        settings = ProbeSettings(weighted=form.where)
        self.bank = ProbeBank(settings, layout, seed=seed, self_target=form.prompt_only, crossing=crossing)
        for step, part in enumerate(steps(earlier, min(n, earlier.n), step_rows)):
            self.bank.update(
                earlier.feature_RF[part, self._columns],
                earlier.reward_R[part],
                earlier.prompt_R[part],
                step=step,
                weight_R=weight_R[part].float() if form.weighted else None,
            )

    def advantages(self, pool: Pool, weight_R: Tensor) -> tuple[Tensor, Tensor]:
        """(R,) advantages and (R,) the probe's values; each batch sees the bank as the earlier steps left it."""
        advantage_R, value_R = torch.zeros(len(pool.reward_R)), torch.zeros(len(pool.reward_R))
        for part in steps(pool, self.n, self.step_rows):
            advantage_R[part], value_R[part] = self._step(pool, part, weight_R)
        return advantage_R, value_R

    def _step(self, pool: Pool, part: Tensor, weight_R: Tensor) -> tuple[Tensor, Tensor]:
        x_RF, reward_R, group_R = pool.feature_RF[part, self._columns], pool.reward_R[part], pool.prompt_R[part]
        row_weight_R = weight_R[part].float() if self.form.weighted else None
        if self.form.fit == "fresh":
            said = self.bank.cross_fit(x_RF, reward_R, group_R, weight_R=row_weight_R)
        else:
            said = self.bank.predict(x_RF, weight_R=row_weight_R)
        found = compute_advantages(
            reward_R,
            group_R,
            said.value_R,
            said.weight_R3,
            said.constant_R,
            own_value=self.form.prompt_only,
            row_weight_B=said.row_weight_R,
        )
        return found.advantage_B, said.value_R

    @property
    def guard(self) -> dict[str, float]:
        """What the guard's baselines weigh."""
        return dict(zip(("probe", "rloo", "constant"), self.bank.probes[0].verdict.weight_E, strict=True))
