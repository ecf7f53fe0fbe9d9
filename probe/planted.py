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
        return self.target_N.view(-1, 2).flip(1).flatten()


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
        value_N = (1.5 * signal_N).sigmoid()
        target_N = (torch.rand(rows, generator=self.generator) < value_N).float()
        return PlantedRows(torch.cat([*states, scalar_NS], dim=1), target_N, value_N, torch.arange(rows) // 2)

    def advance(self) -> None:
        """Turn the signal: weights and directions keep their size and change by `turn`."""
        keep = (1.0 - self.turn**2) ** 0.5
        scale = torch.tensor([[1.0], [0.5]])
        self.weight_2K = keep * self.weight_2K + self.turn * scale * self._normal(2, self.rank)
        self.basis_2KD = keep * self.basis_2KD + self.turn * 20 / self.state_size**0.5 * self._normal(
            2, self.rank, self.state_size
        )
