"""Ridge regression for pass rates: penalty by leave-one-prompt-out, exact where small, else in a tracked subspace.

Rows of one prompt carry each other's targets, so leaving out a row would leave its answer in; a whole prompt is left
out instead, in closed form: with H the hat matrix, the left-out residuals of group g are (I - H_gg)^-1 (y_g - f_g).

Shapes: N rows, F features, P of them states, S scalars, K dimensions that are solved in, G groups of up to M rows,
L penalties.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from probe.settings import FeatureLayout, ProbeSettings


def group_residuals(u_NK: Tensor, shrink_K: Tensor, residual_N: Tensor, group_N: Tensor) -> Tensor:
    """Leave-one-group-out residuals (N,) of a linear smoother H = 1/N + U diag(shrink) U^T.

    Args:
        u_NK: orthonormal columns, orthogonal to the constant.
        shrink_K: in [0, 1).
        residual_N: y - H y.
        group_N: group ids in 0..G-1.
    """
    order = group_N.argsort(stable=True)
    count_G = torch.bincount(group_N)
    start_G = count_G.cumsum(0) - count_G
    slot_N = torch.arange(len(order), device=order.device) - start_G[group_N[order]]
    size = int(count_G.max())
    padded_GMK = u_NK.new_zeros(len(count_G), size, u_NK.shape[1])
    padded_GMK[group_N[order], slot_N] = u_NK[order]
    residual_GM = residual_N.new_zeros(len(count_G), size)
    residual_GM[group_N[order], slot_N] = residual_N[order]
    hat_GMM = torch.einsum("gmk,k,gnk->gmn", padded_GMK, shrink_K, padded_GMK) + 1.0 / len(u_NK)
    # an empty slot must stay alone: no coupling to real rows through the constant
    real_GM = torch.arange(size, device=order.device) < count_G.unsqueeze(1)
    hat_GMM = hat_GMM * (real_GM.unsqueeze(2) & real_GM.unsqueeze(1))
    eye_MM = torch.eye(size, dtype=u_NK.dtype, device=u_NK.device)
    left_out_GM = torch.linalg.solve(eye_MM - hat_GMM, residual_GM)
    result_N = torch.empty_like(residual_N)
    result_N[order] = left_out_GM[group_N[order], slot_N]
    return result_N


@dataclass
class Ridge:
    """Attributes after `fit`: mean_F (float32), basis_PK (float32, None where exact), scalar_gain, weight_F (float64,
    on centred raw features), intercept, penalty (as in the grid)."""

    settings: ProbeSettings
    layout: FeatureLayout
    seed: int = 0
    mean_F: Tensor | None = None
    basis_PK: Tensor | None = None
    weight_F: Tensor | None = None
    scalar_gain: float = 1.0
    intercept: float = 0.0
    penalty: float = float("nan")

    @property
    def fitted(self) -> bool:
        return self.weight_F is not None

    def predict(self, x_NF: Tensor) -> Tensor:
        """(N,) float32, not clipped. Raises RuntimeError before `fit`."""
        if self.weight_F is None or self.mean_F is None:
            raise RuntimeError("the ridge has not been fitted")
        return (x_NF.float() - self.mean_F) @ self.weight_F.float() + self.intercept

    def _project(self, z_NF: Tensor) -> Tensor:
        """(N, K) features that are solved in: the states' subspace, then the scalars as they are."""
        states = self.layout.num_state_features
        if self.layout.num_features <= self.settings.exact_features or states == 0:
            self.basis_PK = None
            return z_NF
        z_NP = z_NF[:, :states]
        rank = min(self.settings.rank, states, len(z_NF))
        basis_PK, iterations = self.basis_PK, 1
        if basis_PK is None or basis_PK.shape != (states, rank):
            generator = torch.Generator().manual_seed(self.seed)
            basis_PK = torch.randn(states, rank, generator=generator).to(z_NF)
            iterations = self.settings.power_iterations
        for _ in range(iterations):
            basis_PK, _ = torch.linalg.qr(z_NP.T @ (z_NP @ basis_PK))
        # one memory order, so that a state read from disk goes on bit by bit
        self.basis_PK = basis_PK.contiguous()
        projected_NK = z_NP @ self.basis_PK
        # a scalar is one of few and stands for itself: it gets the weight of a leading direction of the states, else
        # the common penalty would shrink it away
        self.scalar_gain = float(projected_NK.square().mean(dim=0).max().sqrt())
        return torch.cat([projected_NK, z_NF[:, states:] * self.scalar_gain], dim=1)

    def fit(self, x_NF: Tensor, y_N: Tensor, group_N: Tensor) -> Tensor:
        """Fit on finite rows; `group_N` holds the prompt of each row. A constant feature gets no weight.

        Returns:
            (N,) float64: the prediction for each row by a ridge that has not seen its prompt.
        """
        self.mean_F = x_NF.mean(dim=0)
        z_NF = x_NF - self.mean_F
        deviation_F = z_NF.square().mean(dim=0).sqrt()
        # rounding of a constant column is no signal
        varies_F = deviation_F > 1e-6 * self.mean_F.abs().clamp(min=1e-30)
        scale_F = torch.where(varies_F, 1.0 / deviation_F.clamp(min=1e-30), torch.zeros_like(deviation_F))
        z_NF = z_NF * scale_F
        a_NK = self._project(z_NF).double()
        a_NK = a_NK - a_NK.mean(dim=0)
        y_N = y_N.double()
        centred_N = y_N - y_N.mean()

        # A = U diag(s) W^T through the smaller Gram matrix
        primal = a_NK.shape[1] <= a_NK.shape[0]
        square, vectors = torch.linalg.eigh(a_NK.T @ a_NK if primal else a_NK @ a_NK.T)
        keep = square > square.max().clamp(min=1e-30) * 1e-10
        square_K, vectors = square[keep], vectors[:, keep]
        u_NK = a_NK @ vectors / square_K.sqrt() if primal else vectors
        uty_K = u_NK.T @ centred_N
        unit = float(square.sum() / max(1, len(square_K)))

        _, place_N = torch.unique(group_N, return_inverse=True)
        best = (float("inf"), float("nan"), centred_N, torch.zeros_like(square_K))
        for penalty in self.settings.penalties:
            shrink_K = square_K / (square_K + penalty * unit) if unit > 0 else torch.zeros_like(square_K)
            left_out_N = group_residuals(u_NK, shrink_K, centred_N - u_NK @ (shrink_K * uty_K), place_N)
            error = left_out_N.square().mean().item()
            if error < best[0]:
                best = (error, penalty, left_out_N, shrink_K)
        _, self.penalty, left_out_N, shrink_K = best

        # coefficients in the solved space, then back to raw features
        coefficient_K = shrink_K * uty_K / square_K.sqrt()
        solved_K = vectors @ coefficient_K if primal else a_NK.T @ (vectors @ (coefficient_K / square_K.sqrt()))
        if self.basis_PK is not None:
            rank = self.basis_PK.shape[1]
            solved_K = torch.cat([self.basis_PK.double() @ solved_K[:rank], solved_K[rank:] * self.scalar_gain])
        self.weight_F = solved_K * scale_F.double()
        self.intercept = y_N.mean().item()
        return y_N - left_out_N
