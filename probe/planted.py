"""Rows with a planted signal, of which the true value is known: for benchmarks, examples and tests.

Hidden states of a prompt and a response lie near a low-rank subspace with a falling spectrum, far from zero, under
noise in every feature; a logistic function of the latent directions is the expected reward.

Shapes: N rows (two consecutive ones per prompt), D features of a state, K latent directions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from probe.settings import FeatureLayout

SCALARS = 3


@dataclass(frozen=True)
class PlantedRows:
    """x_NF (prompt state, response state, scalars), target_N (0 or 1, drawn from value_N), group_N. The target is the
    reward that the row is to predict: its sibling's."""

    x_NF: Tensor
    target_N: Tensor
    value_N: Tensor
    group_N: Tensor

    @property
    def reward_N(self) -> Tensor:
        """Own rewards: each row's target is its sibling's."""
        return _of_sibling(self.target_N)


@dataclass(frozen=True)
class WeightedRows(PlantedRows):
    """Rows whose rewards count by an energy e. value_N is b* = E[e r | row] / E[e | row], of the target's r and e.

    target_weight_N (the target's energy), rate_N (E[r | row]), mean_weight_N (E[e | row])."""

    target_weight_N: Tensor
    rate_N: Tensor
    mean_weight_N: Tensor

    @property
    def weight_N(self) -> Tensor:
        """Energies of the rows' own rewards."""
        return _of_sibling(self.target_weight_N)


def _of_sibling(x_N: Tensor) -> Tensor:
    return x_N.view(-1, 2).flip(1).flatten()


class PlantedWorld:
    """Draws rows of one signal, which may turn from step to step.

    Args:
        state_size: D.
        seed: of the signal and of the rows.
        rank: K.
        noise: standard deviation in every feature; the leading direction has about 20 / sqrt(D).
        turn: how far the signal's weights and directions move in a step of `advance`, relative to their size.
    """

    def __init__(self, state_size: int, seed: int = 0, rank: int = 48, noise: float = 0.25, turn: float = 0.0):
        self.state_size, self.rank, self.noise, self.turn = state_size, rank, noise, turn
        self.generator = torch.Generator().manual_seed(seed)
        self.spectrum_K = torch.arange(1, rank + 1).float() ** -0.7
        self.basis_2KD = self._normal(2, rank, state_size) * 20 / state_size**0.5
        self.mean_2D = self._normal(2, state_size)
        self.weight_2K = self._normal(2, rank) * torch.tensor([[1.0], [0.5]])
        # of the signal over rows, so that values spread over 0..1
        reference = self._signal(*self._latent(4096))
        self.centre, self.spread = float(reference.mean()), float(reference.std())

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def layout(self) -> FeatureLayout:
        scalars = tuple(f"scalar_{index}" for index in range(SCALARS))
        return FeatureLayout(("prompt", "response", *scalars), (self.state_size,) * 2 + (1,) * SCALARS)

    def _latent(self, rows: int) -> tuple[Tensor, Tensor]:
        prompt_NK = self._normal(rows // 2, self.rank).repeat_interleave(2, 0)
        response_NK = 0.7 * prompt_NK + 0.7 * self._normal(rows, self.rank)
        return prompt_NK * self.spectrum_K, response_NK * self.spectrum_K

    def _signal(self, prompt_NK: Tensor, response_NK: Tensor) -> Tensor:
        return prompt_NK @ self.weight_2K[0] + response_NK @ self.weight_2K[1]

    def draw(self, rows: int) -> PlantedRows:
        """Fresh rows of the present signal. Raises ValueError for an odd number."""
        if rows % 2:
            raise ValueError(f"rows={rows}: rows come in pairs")
        latents = self._latent(rows)
        signal_N = (self._signal(*latents) - self.centre) / self.spread
        noises = (self._normal(rows // 2, self.state_size).repeat_interleave(2, 0), self._normal(rows, self.state_size))
        states = [
            latent_NK @ basis_KD + mean_D + self.noise * noise_ND
            for latent_NK, basis_KD, mean_D, noise_ND in zip(latents, self.basis_2KD, self.mean_2D, noises, strict=True)
        ]
        scalar_NS = (0.5 - 0.1 * signal_N.unsqueeze(1) + 0.2 * self._normal(rows, SCALARS)).abs()
        return self._rewarded(torch.cat([*states, scalar_NS], dim=1), signal_N, latents)

    def _rewarded(self, x_NF: Tensor, signal_N: Tensor, latents: tuple[Tensor, Tensor]) -> PlantedRows:
        value_N = (1.5 * signal_N).sigmoid()
        target_N = (torch.rand(len(x_NF), generator=self.generator) < value_N).float()
        return PlantedRows(x_NF, target_N, value_N, torch.arange(len(x_NF)) // 2)

    def advance(self) -> None:
        """Turn the signal: weights and directions keep their size and change by `turn`."""
        keep = (1.0 - self.turn**2) ** 0.5
        scale = torch.tensor([[1.0], [0.5]])
        self.weight_2K = keep * self.weight_2K + self.turn * scale * self._normal(2, self.rank)
        self.basis_2KD = keep * self.basis_2KD + self.turn * 20 / self.state_size**0.5 * self._normal(
            2, self.rank, self.state_size
        )


class WeightedWorld(PlantedWorld):
    """A planted world in which a reward counts by an energy that depends on it, with heavy tails.

    The target is 1 with probability p = sigmoid(1.5 signal + ease). Its energy is scale x tail for a solved row and k
    times as much for a failed one: k between 10 and 40, which the prompt's state tells, scale spreads by a factor of
    exp(0.5), and tail is lognormal with a mean of 1. So E[e | row] = scale (p + (1 - p) k), and what a baseline should
    be is b* = p / (p + (1 - p) k): small where the pass rate is not, as in training.

    Args:
        state_size, seed, and further ones of PlantedWorld.
        ease: logit of the pass rate of a middling row; the default solves seven rows of ten.
        tail: standard deviation of the energy's logarithm; at 1 the heaviest hundredth has a tenth of the energy.
    """

    def __init__(self, state_size: int, seed: int = 0, ease: float = 1.5, tail: float = 1.0, **world):
        super().__init__(state_size, seed, **world)
        self.ease, self.tail = ease, tail
        direction_2K = self._normal(2, self.rank)
        spread_2 = (direction_2K * self.spectrum_K).square().sum(dim=1, keepdim=True).sqrt()
        self.energy_2K = direction_2K / spread_2  # of k and of the scale, on the prompt's latent directions

    def draw(self, rows: int) -> WeightedRows:
        """Fresh rows of the present signal. Raises ValueError for an odd number."""
        found = super().draw(rows)
        assert isinstance(found, WeightedRows)
        return found

    def _rewarded(self, x_NF: Tensor, signal_N: Tensor, latents: tuple[Tensor, Tensor]) -> WeightedRows:
        rate_N = (1.5 * signal_N + self.ease).sigmoid()
        failed_N = 10.0 * 4.0 ** (3.0 * latents[0] @ self.energy_2K[0]).sigmoid()
        scale_N = (0.5 * latents[0] @ self.energy_2K[1]).exp()
        target_N = (torch.rand(len(x_NF), generator=self.generator) < rate_N).float()
        tail_N = (self.tail * self._normal(len(x_NF)) - self.tail**2 / 2).exp()
        share_N = rate_N + (1.0 - rate_N) * failed_N
        return WeightedRows(
            x_NF=x_NF,
            target_N=target_N,
            value_N=rate_N / share_N,
            group_N=torch.arange(len(x_NF)) // 2,
            target_weight_N=scale_N * torch.where(target_N > 0, 1.0, failed_N) * tail_N,
            rate_N=rate_N,
            mean_weight_N=scale_N * share_N,
        )
