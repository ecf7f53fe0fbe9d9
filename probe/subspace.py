"""Standardisation and the tracked low-dimensional subspace of the states.

Shapes: N rows, F features, P of them states, K dimensions of the subspace and the scalars beside it.
"""

import math

import torch
from torch import Tensor

from probe import weights
from probe.settings import FeatureLayout

CHUNK = 256  # rows standardised at a time: bounds the workspace to few x CHUNK x F floats, and stays in the cache
FIRST_ITERATIONS, TRACKING_ITERATIONS = 3, 1


class Subspace:
    """Maps raw features (N, F) to (N, K): standardise, project the states, keep the scalars.

    A scalar is one of few and stands for itself: it is scaled to the spread of the states' leading direction, else a
    common penalty would shrink it away. A constant feature maps to 0. Few features are not projected.

    Args:
        layout: blocks of a row.
        rank: dimensions of the subspace.
        exact_features: up to so many features are used as they are.
        seed: of the random start.

    Attributes after `refresh`: mean_ (F,), scale_ (F,) (0 for a constant feature), basis_ (P, rank) or None, gain_.
    """

    def __init__(self, layout: FeatureLayout, rank: int, exact_features: int, seed: int = 0):
        self.layout, self.rank, self.exact_features, self.seed = layout, rank, exact_features, seed
        self.mean_: Tensor | None = None
        self.scale_: Tensor | None = None
        self.basis_: Tensor | None = None
        self.gain_ = 1.0

    def _standardise(self, x_NF: Tensor) -> Tensor:
        if self.mean_ is None or self.scale_ is None:
            raise RuntimeError("the subspace has not been fitted")
        return (x_NF - self.mean_).mul_(self.scale_)

    def project(self, x_NF: Tensor) -> Tensor:
        """(N, K) float32."""
        return self._project(x_NF, None)

    def project_measured(self, x_NF: Tensor) -> tuple[Tensor, float]:
        """(N, K) float32, and the share of the states' standardised variance that lies in the subspace."""
        squares: list[float] = []
        a_NK = self._project(x_NF, squares)
        if self.basis_ is None:
            return a_NK, 1.0
        inside, whole = float(a_NK[:, : self.basis_.shape[1]].square().sum()), sum(squares)
        # numbers so large that squares overflow: nothing is known
        return a_NK, inside / max(whole, 1e-30) if math.isfinite(inside) and math.isfinite(whole) else 0.0

    def _project(self, x_NF: Tensor, squares: list[float] | None) -> Tensor:
        """The projection; the states' sums of squares go to `squares`."""
        states = self.layout.num_state_features
        parts = []
        for chunk_CF in x_NF.split(CHUNK):
            z_CF = self._standardise(chunk_CF)
            if self.basis_ is not None:
                if squares is not None:
                    squares.append(float(z_CF[:, :states].square().sum()))
                z_CF = torch.cat([z_CF[:, :states] @ self.basis_, z_CF[:, states:] * self.gain_], dim=1)
            parts.append(z_CF)
        return torch.cat(parts) if parts else x_NF.new_empty(0, self.dimensions)

    @property
    def dimensions(self) -> int:
        """K."""
        if self.basis_ is None:
            return self.layout.num_features
        return self.basis_.shape[1] + self.layout.num_features - self.layout.num_state_features

    def check_loaded(self) -> None:
        """Raises ValueError for a basis, read from a disk, of more directions than there can be."""
        limit = min(self.rank, self.layout.num_state_features)
        if self.basis_ is not None and self.basis_.shape[1] > limit:
            raise ValueError(f"a basis of {self.basis_.shape[1]} directions, there can be {limit}")

    def refresh(self, x_NF: Tensor, rows: Tensor, weight_N: Tensor | None = None) -> Tensor:
        """Fit to the rows `rows` of `x`, starting from the present basis; their projection (N, K).

        Args:
            weight_N: of those rows, float64 with a mean of one.
        """
        count = len(rows)
        chunks = rows.split(CHUNK)
        shares = [None] * len(chunks) if weight_N is None else weight_N.split(CHUNK)

        def total(x_CF: Tensor, weight_C: Tensor | None) -> Tensor:
            return x_CF.sum(dim=0, dtype=torch.float64) if weight_C is None else weight_C @ x_CF.double()

        pairs = list(zip(chunks, shares, strict=True))
        # two passes for the variance: a mean that is large against the spread must not eat its digits
        sum_F = torch.stack([total(x_NF[c], w) for c, w in pairs]).sum(dim=0)
        self.mean_ = (sum_F / count).float()
        squares = [total((x_NF[c] - self.mean_).square(), w) for c, w in pairs]
        self.set_scale((torch.stack(squares).sum(dim=0) / count).sqrt().float())
        states = self.layout.num_state_features
        rank = min(self.rank, states, count)
        if self.layout.num_features <= self.exact_features or states == 0:
            self.basis_, self.gain_ = None, 1.0
            return self.project(x_NF[rows])
        basis, iterations = self.basis_, TRACKING_ITERATIONS
        if basis is None or basis.shape != (states, rank):
            generator = torch.Generator().manual_seed(self.seed)
            basis = torch.randn(states, rank, generator=generator, device="cpu").to(x_NF)
            iterations = FIRST_ITERATIONS
        for _ in range(iterations):
            image = torch.zeros_like(basis)
            for chunk, weight_C in pairs:
                z_CP = self._standardise(x_NF[chunk])[:, :states]
                a_CR = z_CP @ basis
                image.addmm_(z_CP.T, a_CR if weight_C is None else a_CR * weight_C.float().unsqueeze(1))
            basis = torch.linalg.qr(image)[0]
        # one memory order, so that a state read from disk goes on bit by bit
        self.basis_, self.gain_ = basis.contiguous(), 1.0
        a_NK = torch.cat([self.project(x_NF[chunk]) for chunk in chunks])
        self.set_gain(a_NK, weight_N)
        return a_NK

    def set_scale(self, deviation_F: Tensor) -> Tensor:
        """Scale features of the present mean by their standard deviations; what they are multiplied by (F,)."""
        if self.mean_ is None:
            raise RuntimeError("the subspace has no mean yet")
        varies_F = deviation_F > 1e-6 * self.mean_.abs().clamp(min=1e-30)  # rounding of a constant is no signal
        self.scale_ = torch.where(varies_F, 1.0 / deviation_F.clamp(min=1e-30), torch.zeros_like(deviation_F))
        return self.scale_

    def set_gain(self, a_NK: Tensor, weight_N: Tensor | None) -> None:
        """Give scalars the spread of the leading direction, also in `a`: the projection of all rows at a gain of 1."""
        rank = a_NK.shape[1] - (self.layout.num_features - self.layout.num_state_features)
        self.gain_ = float(weights.mean(a_NK[:, :rank].square(), weight_N).max().sqrt())
        a_NK[:, rank:] *= self.gain_

    def unproject(self, coefficient_K: Tensor) -> Tensor:
        """(F,) float64: weights on raw, mean-centred features that equal `coefficient` on projected ones."""
        if self.scale_ is None:
            raise RuntimeError("the subspace has not been fitted")
        if self.basis_ is not None:
            rank = self.basis_.shape[1]
            states_P = self.basis_.double() @ coefficient_K[:rank]
            coefficient_K = torch.cat([states_P, coefficient_K[rank:] * self.gain_])
        return coefficient_K * self.scale_.double()
