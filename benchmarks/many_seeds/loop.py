"""A plain policy-gradient loop over many seeds at once, with the project's own probe; and a baseline that knows.

Per seed what a run of `recipe.poise.compare` does in an update: prompts drawn without repetition, rollouts at
temperature 1, the verifier's reward, a baseline, one step of AdamW on the mean over tokens. No verl, Ray or vLLM.

Shapes: S seeds, B rollouts of an update, n of a prompt, L prompt tokens, T response tokens, F features, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.many_seeds.banks import Banks
from benchmarks.many_seeds.sampling import Rollouts, Sampler
from benchmarks.many_seeds.stacked import Stacked
from benchmarks.many_seeds.task import Part, TaskData
from recipe.poise.capture.energy import DEFAULT_FORM
from recipe.poise.capture.hook import resolve_block, token_spans
from recipe.poise.capture.signals import DEFAULT_SIGNALS, compute_signals

BLOCK, STATE_TOKENS = 19 / 36, 10  # recipe/poise/config/poise_base.yaml


@dataclass(frozen=True)
class Method:
    """kind: bank (the project's probe, with this guard), oracle (asks the policy itself, `extra` times per prompt), or
    what rewards of the group alone give. n: rollouts of a prompt."""

    kind: Literal["bank", "oracle", "rloo", "grpo"]
    n: int
    guard: str = "combine"
    extra: int = 0


METHODS = {
    "energy_constant": Method("bank", 1, "constant"),
    "poise": Method("bank", 2),
    "poise_n1": Method("bank", 1),
    "oracle": Method("oracle", 1, extra=16),
    "rloo": Method("rloo", 8),
    "grpo": Method("grpo", 8),
}


@dataclass(frozen=True)
class Settings:
    """Of all seeds alike; the defaults are launch/runs/compare/_base.yaml's."""

    rollouts: int = 32
    updates: int = 32
    learning_rate: float = 2e-4
    weight_decay: float = 0.01
    clip: float = 1.0
    validate_every: int = 4


def energy_of(rollouts: Rollouts) -> Tensor:
    """(S, B) of each response, from the log-probs of sampling."""
    square_SBT = torch.where(rollouts.mask_SBT, DEFAULT_FORM.of_tokens(rollouts.log_prob_SBT), 0.0)
    return DEFAULT_FORM.of_response(square_SBT.sum(-1), square_SBT.sqrt().sum(-1))


def of_group(kind: str, reward_SB: Tensor, n: int) -> Tensor:
    """(S, B) advantages of RLOO or GRPO."""
    reward_SPn = reward_SB.view(len(reward_SB), -1, n)
    centred_SPn = reward_SPn - reward_SPn.mean(2, keepdim=True)
    scale = n / (n - 1) if kind == "rloo" else 1 / (reward_SPn.std(2, keepdim=True) + 1e-6)
    return (centred_SPn * scale).reshape(reward_SB.shape)


class Trainer:
    """All seeds of one method. `banks` where its kind is "bank"."""

    def __init__(self, data: TaskData, method: Method, settings: Settings, seeds: list[int], banks: Banks | None):
        self.data, self.method, self.settings, self.banks = data, method, settings, banks
        self.device = data.train.prompt_NL.device.type
        self.model = Stacked(data.model, len(seeds), self.device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.generator = torch.Generator(self.device).manual_seed(min(seeds))
        self.block = resolve_block(BLOCK, data.model.config.num_hidden_layers)
        self.order_SN = torch.stack(
            [torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        )
        self.asked = 0  # prompts of each seed so far
        self.samplers: dict[tuple[int, int], Sampler] = {}

    def sample(self, part: Part, number_SB: Tensor) -> Rollouts:
        rows, length = number_SB.shape[1], part.prompt_NL.shape[1]
        if (rows, length) not in self.samplers:
            data = self.data
            self.samplers[rows, length] = Sampler(self.model, rows, length, data.limit, data.end, data.pad)
        return self.samplers[rows, length](part.prompt_NL[number_SB], part.mask_NL[number_SB], self.generator)

    def validate(self) -> Tensor:
        """(S,) accuracy at temperature 1, a response per prompt."""
        number_SB = torch.arange(len(self.data.val), device=self.device).expand(self.model.copies, -1)
        return self.data.right(self.data.val, number_SB, self.sample(self.data.val, number_SB)).mean(1)

    def _next_prompts(self) -> Tensor:
        """(S, B) rows of the training part, n neighbours alike; a permutation once through, then again."""
        count = self.settings.rollouts // self.method.n
        place_P = torch.arange(self.asked, self.asked + count) % self.order_SN.shape[1]
        self.asked += count
        return self.order_SN[:, place_P].repeat_interleave(self.method.n, 1).to(self.device)

    def step(self) -> dict[str, Tensor]:
        """One update of each seed; (S,) numbers of it by name."""
        number_SB, part = self._next_prompts(), self.data.train
        rollouts = self.sample(part, number_SB)
        reward_SB = self.data.right(part, number_SB, rollouts)
        ids_SBL = torch.cat([part.prompt_NL[number_SB], rollouts.token_SBT], dim=2)
        mask_SBL = torch.cat([part.mask_NL[number_SB], rollouts.mask_SBT], dim=2)
        state_SBLD, block_SBLD = self.model.states(ids_SBL, mask_SBL, self.block)
        log_p_SBTV = self.model.logits(state_SBLD[:, :, part.prompt_NL.shape[1] - 1 : -1]).log_softmax(-1)
        with torch.no_grad():
            energy_SB = energy_of(rollouts)
            if self.method.kind == "oracle":
                advantage_SB, ratio_S = self._oracle(number_SB, reward_SB, energy_SB)
            elif self.banks is not None:
                x_SBF = self._features(rollouts, ids_SBL, mask_SBL, block_SBLD, log_p_SBTV)
                advantage_SB, ratio_S = (x.to(self.device) for x in self.banks.step(x_SBF, reward_SB, energy_SB))
            else:
                advantage_SB = of_group(self.method.kind, reward_SB, self.method.n)
                ratio_S = torch.full((len(reward_SB),), float("nan"))
        log_prob_SBT = log_p_SBTV.gather(-1, rollouts.token_SBT.unsqueeze(-1)).squeeze(-1)
        own_SBT = rollouts.mask_SBT.float()
        loss_S = -(log_prob_SBT * own_SBT * advantage_SB.unsqueeze(2)).sum((1, 2)) / own_SBT.sum((1, 2))
        self.optimizer.zero_grad()
        loss_S.sum().backward()
        self._clip()
        self.optimizer.step()
        return {"reward": reward_SB.mean(1), "tokens": own_SBT.sum((1, 2)), "ratio": ratio_S}

    def _clip(self) -> None:
        """Each seed's gradient on its own."""
        norm_S = torch.stack([weight.grad.flatten(1).square().sum(1) for weight in self.model.parameters]).sum(0).sqrt()
        factor_S = (self.settings.clip / (norm_S + 1e-6)).clamp(max=1.0)
        for weight in self.model.parameters:
            weight.grad.mul_(factor_S.view(-1, *[1] * (weight.dim() - 1)))

    def _oracle(self, number_SB: Tensor, reward_SB: Tensor, energy_SB: Tensor) -> tuple[Tensor, Tensor]:
        """Advantages (S, B) over nearly the best baseline of a prompt, the energy-weighted mean reward of further
        rollouts by the same policy; and their energy-weighted square over the constant's (S,).

        The odds of the pass rate times what a success weighs beside a failure: energies are heavy-tailed, and two
        numbers of all rollouts stand better than a few rollouts of one prompt.
        """
        extra = self.method.extra
        number = number_SB.repeat_interleave(extra, 1)
        rollouts = self.sample(self.data.train, number)
        reward, energy = self.data.right(self.data.train, number, rollouts).double(), energy_of(rollouts)
        rate_SB = (reward.view(*number_SB.shape, extra).sum(2) + 0.5) / (extra + 1)
        won_S1, lost_S1 = ((energy * part).sum(1, keepdim=True) for part in (reward, 1 - reward))
        worth_S1 = (won_S1 / reward.sum(1, keepdim=True)) / (lost_S1 / (1 - reward).sum(1, keepdim=True))
        odds_SB = rate_SB / (1 - rate_SB) * worth_S1.nan_to_num(1.0, posinf=1.0)
        value_SB, constant_S1 = odds_SB / (1 + odds_SB), won_S1 / (won_S1 + lost_S1)
        squares = [(energy_SB * (reward_SB - base).square()).sum(1) for base in (value_SB, constant_S1)]
        return (reward_SB - value_SB).float(), squares[0] / squares[1]

    def _features(self, rollouts: Rollouts, ids_SBL, mask_SBL, block_SBLD, log_p_SBTV) -> Tensor:
        """(S, B, F) the project's own, of packed rows."""
        mask_RL = mask_SBL.flatten(0, 1)
        flat_T, hidden_TD = ids_SBL.flatten(0, 1)[mask_RL], block_SBLD.flatten(0, 1)[mask_RL]
        end_R = mask_RL.sum(1).cumsum(0)
        offsets, length_R = torch.cat([end_R.new_zeros(1), end_R]), rollouts.mask_SBT.flatten(0, 1).sum(1)
        spans = token_spans(flat_T, offsets, length_R, self.data.end_think)
        parts = [spans.last_prompt_tokens(STATE_TOKENS)]
        if self.method.n > 1:
            parts.append(spans.last_response_tokens(STATE_TOKENS))
        columns = [(hidden_TD[place_RN] * weight_RN.unsqueeze(2)).sum(1) for place_RN, weight_RN in parts]
        if self.method.n > 1:
            entropy_RT = -(log_p_SBTV.exp() * log_p_SBTV).sum(-1).flatten(0, 1)
            whole_RL = torch.zeros(mask_RL.shape, device=mask_RL.device)
            whole_RL[:, -entropy_RT.shape[1] - 1 : -1] = entropy_RT  # of a token at the place before it
            passed: tuple[Any, ...] = (whole_RL[mask_RL], whole_RL[mask_RL], flat_T, (self.data.end,), self.data.limit)
            columns.append(compute_signals(DEFAULT_SIGNALS, spans, *passed))
        return torch.cat(columns, dim=1).view(*ids_SBL.shape[:2], -1)
