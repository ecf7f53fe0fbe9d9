"""Ridge along a grid of penalties, chosen by leave-one-prompt-out in closed form.

Rows of one prompt carry each other's targets, so leaving out a row would leave its answer in. A whole prompt is left
out instead: with H the hat matrix, the left-out residuals of group g are (I - H_gg)^-1 (y_g - f_g).

Shapes: N rows, K features, P penalties, G groups of at most M rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from probe import weights

CHUNK_NUMBERS = 4_000_000  # of a float64 workspace: bounds it to 32 MB
LARGEST_ON_HOST = 128  # rows of a matrix that the host decomposes


@dataclass(frozen=True)
class RidgeFit:
    """coefficient_K (float64), intercept, penalty (as in the grid), left_out_N (predictions by the ridge that has not
    seen the row's prompt, float64), strength (the penalty on squared coefficients, for rows that weigh one on average).
    """

    coefficient_K: Tensor
    intercept: float
    penalty: float
    left_out_N: Tensor
    strength: float


class Groups:
    """Rows of each group side by side, padded to the largest group. number_N: each row's group, counted from 0."""

    def __init__(self, group_N: Tensor):
        _, place_N = torch.unique(group_N, return_inverse=True)
        self.number_N = place_N
        self.order_N = place_N.argsort(stable=True)
        count_G = torch.bincount(place_N)
        start_G = count_G.cumsum(0) - count_G
        self.place_N = place_N[self.order_N]
        self.slot_N = torch.arange(len(place_N), device=group_N.device) - start_G[self.place_N]
        self.shape = (len(count_G), int(count_G.max()))
        self.real_GM = torch.arange(self.shape[1], device=group_N.device) < count_G.unsqueeze(1)

    def pad(self, x: Tensor) -> Tensor:
        """(G, M, ...) from (N, ...); empty slots are zero."""
        padded = x.new_zeros(*self.shape, *x.shape[1:])
        padded[self.place_N, self.slot_N] = x[self.order_N]
        return padded

    def unpad(self, x_GM: Tensor) -> Tensor:
        """(N, ...) from (G, M, ...)."""
        result = x_GM.new_empty(len(self.order_N), *x_GM.shape[2:])
        result[self.order_N] = x_GM[self.place_N, self.slot_N]
        return result


def eigen(gram_KK: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (K,) and vectors (K, K) of a symmetric matrix; a small one goes by way of the host, which is faster
    than the thousands of small kernels of a GPU's decomposition (benchmarks/gpu, section probe)."""
    if gram_KK.device.type == "cpu" or len(gram_KK) > LARGEST_ON_HOST:
        return torch.linalg.eigh(gram_KK)
    value_K, vector_KK = torch.linalg.eigh(gram_KK.cpu())
    return value_K.to(gram_KK.device), vector_KK.to(gram_KK.device)


def solve_small(a_BMM: Tensor, b_BM: Tensor) -> Tensor:
    """(B, M) solutions of many small systems; for two rollouts per prompt, the usual case, by Cramer's rule."""
    if a_BMM.shape[-1] != 2:
        return torch.linalg.solve(a_BMM, b_BM)
    (a, b), (c, d) = (row.unbind(-1) for row in a_BMM.unbind(-2))
    r, s = b_BM.unbind(-1)
    return torch.stack([d * r - b * s, a * s - c * r], dim=-1) / (a * d - b * c).unsqueeze(-1)


def left_out_residuals(
    u_NK: Tensor, shrink_KP: Tensor, residual_NP: Tensor, groups: Groups, weight_N: Tensor | None = None
) -> Tensor:
    """Leave-one-group-out residuals (N, P) of the smoothers H_p = s s^T + U diag(shrink_p) U^T, s_i = 1 / sqrt(N).

    With weights all rows have been multiplied by the roots of theirs, residuals too, and s_i = sqrt(w_i / sum w).

    Args:
        u_NK: orthonormal columns, orthogonal to s.
        shrink_KP: in [0, 1).
        residual_NP: y - H_p y.
    """
    rows, columns = u_NK.shape
    u_GMK, residual_GMP = groups.pad(u_NK), groups.pad(residual_NP)
    share_GM = None if weight_N is None else groups.pad((weight_N / weight_N.sum()).sqrt())
    _, largest = groups.shape
    eye_MM = torch.eye(largest, dtype=u_NK.dtype, device=u_NK.device)
    step = max(1, CHUNK_NUMBERS // (largest * largest * max(columns, shrink_KP.shape[1])))
    parts = []
    for start in range(0, groups.shape[0], step):
        chunk = slice(start, start + step)
        u, residual, real = u_GMK[chunk], residual_GMP[chunk], groups.real_GM[chunk]
        constant: Tensor | float = 1.0 / rows
        if share_GM is not None:
            constant = (share_GM[chunk].unsqueeze(2) * share_GM[chunk].unsqueeze(1)).unsqueeze(3)
        # the hat matrices of all penalties at once: products of pairs of rows, weighed by the shrinkage
        hat = (u.unsqueeze(2) * u.unsqueeze(1)) @ shrink_KP + constant  # (g, M, M, P)
        # an empty slot stays alone: the constant must not couple it to real rows
        hat = hat * (real.unsqueeze(2) & real.unsqueeze(1)).unsqueeze(3)
        solved = solve_small(eye_MM - hat.permute(0, 3, 1, 2), residual.transpose(1, 2))
        parts.append(solved.transpose(1, 2))
    return groups.unpad(torch.cat(parts))


def ridge_path(
    a_NK: Tensor,
    y_N: Tensor,
    group_N: Tensor,
    penalties,
    unit: float | None = None,
    weight_N: Tensor | None = None,
) -> RidgeFit:
    """The ridge of `y` on `a` (with an intercept) whose penalty has the smallest leave-one-prompt-out error.

    Solves in the smaller of the two Gram matrices. A penalty p stands for p x `unit`; by default the mean squared
    singular value, which makes the grid independent of rows and scale.

    Args:
        weight_N: positive float64; squared errors count so much, in the fit and in what chooses the penalty.
    """
    a_NK, y_N = a_NK.double(), y_N.double()
    a_NK = a_NK - weights.mean(a_NK, weight_N)
    mean = weights.mean(y_N, weight_N)
    centred_N = y_N - mean
    if weight_N is not None:  # from here on rows are multiplied by the roots of their weights
        root_N = weight_N.sqrt()
        a_NK, centred_N = a_NK * root_N.unsqueeze(1), centred_N * root_N
    primal = a_NK.shape[1] <= a_NK.shape[0]
    square, vectors = eigen(a_NK.T @ a_NK if primal else a_NK @ a_NK.T)
    keep = square > square.max().clamp(min=1e-30) * 1e-10  # directions of rounding only
    square_K, vectors = square[keep], vectors[:, keep]
    u_NK = a_NK @ (vectors / square_K.sqrt()) if primal else vectors
    uty_K = u_NK.T @ centred_N
    if unit is None:
        unit = square_K.mean().item() if len(square_K) else 1.0

    penalty_P = torch.tensor(penalties, dtype=torch.float64, device=a_NK.device)
    shrink_KP = square_K.unsqueeze(1) / (square_K.unsqueeze(1) + penalty_P * unit)
    residual_NP = centred_N.unsqueeze(1) - u_NK @ (shrink_KP * uty_K.unsqueeze(1))
    groups = Groups(group_N)
    if groups.shape[0] > 1:
        left_out_NP = left_out_residuals(u_NK, shrink_KP, residual_NP, groups, weight_N)
        best = int(left_out_NP.square().mean(dim=0).argmin())
    else:  # without the only prompt there is nothing left to learn from: trust it least
        left_out_NP = torch.full_like(residual_NP, float("nan"))
        best = int(penalty_P.argmax())
    in_u_K = shrink_KP[:, best] * uty_K / square_K.sqrt()
    coefficient_K = vectors @ in_u_K if primal else a_NK.T @ (vectors @ (in_u_K / square_K.sqrt()))
    left_out_N = left_out_NP[:, best]
    if weight_N is not None:
        left_out_N = left_out_N / root_N
    penalty = float(penalties[best])
    return RidgeFit(coefficient_K, mean.item(), penalty, y_N - left_out_N, penalty * unit)
