"""Logistic regression on soft targets, in the subspace of the ridge.

Shapes: N rows, F features, K dimensions and a constant beside them (K + 1).
"""

import torch
from torch import Tensor

from probe import weights
from probe.estimators.subspace import SubspaceEstimator
from probe.ridge_path import Groups, solve_small

NEWTON_STEPS, TOLERANCE = 25, 1e-8


class Logistic(SubspaceEstimator):
    """Cross-entropy with targets in [0, 1] (other ranges are mapped to it), fitted by Newton's method.

    The penalty is chosen by leave-one-prompt-out in the weighted least squares of the last Newton step, which is one
    step away from refitting without the prompt. Arguments as in `SubspaceEstimator`; the link is the sigmoid. With
    ``weighted="link"`` it is a regression of rows that count alike, and its slope and offset are fitted by weight.
    """

    def _solve(
        self, a_NK: Tensor, y_N: Tensor, group_N: Tensor, weight_N: Tensor | None
    ) -> tuple[Tensor, float, Tensor]:
        link_weight_N, weight_N = weight_N, self._in_regression(weight_N)
        a_NK = torch.cat([a_NK.double(), torch.ones_like(a_NK[:, :1], dtype=torch.float64)], dim=1)
        p_N = ((y_N.double() - self.low_) / (self.high_ - self.low_)).clamp(1e-3, 1 - 1e-3)
        square_N = a_NK[:, :-1].square()
        total = float((square_N if weight_N is None else square_N * weight_N.unsqueeze(1)).sum())
        unit = total / max(1, a_NK.shape[1] - 1) / 4  # of the weighted Gram matrix
        groups, weights_K = Groups(group_N), a_NK.new_zeros(a_NK.shape[1])
        best = (float("inf"), 0.0, weights_K, p_N)
        for penalty in sorted(self.penalties, reverse=True):  # from stiff to free: each starts where the last ended
            weights_K, left_out_N = _newton(a_NK, p_N, penalty * max(unit, 1e-30), weights_K, groups, weight_N)
            error = float(weights.mean((left_out_N - p_N).square(), weight_N))
            if error < best[0]:
                best = (error, penalty, weights_K, left_out_N)
        _, self.penalty_, weights_K, left_out_N = best
        self.slope_, self.offset_ = 1.0, 0.0
        value_N = self.low_ + (self.high_ - self.low_) * left_out_N
        if self.alike and link_weight_N is not None:
            value_N = self._fit_weighted_link(left_out_N.logit(eps=1e-6), y_N, link_weight_N)
        return weights_K[:-1], float(weights_K[-1]), value_N


def _newton(
    a_NK: Tensor, p_N: Tensor, penalty: float, weights_K: Tensor, groups: Groups, weight_N: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Weights (K + 1,) and left-out probabilities (N,) at one penalty; the constant is not penalised."""

    def counted(x_N: Tensor) -> Tensor:
        return x_N if weight_N is None else x_N * weight_N

    penalty_K = torch.full_like(weights_K, penalty)
    penalty_K[-1] = 1e-9
    for _ in range(NEWTON_STEPS):
        q_N = (a_NK @ weights_K).sigmoid()
        spread_N = counted((q_N * (1 - q_N)).clamp(min=1e-6))
        hessian_KK = (a_NK * spread_N.unsqueeze(1)).T @ a_NK + torch.diag(penalty_K)
        step_K = torch.linalg.solve(hessian_KK, a_NK.T @ counted(p_N - q_N) - penalty_K * weights_K)
        weights_K = weights_K + step_K * min(1.0, 5.0 / float(step_K.abs().max().clamp(min=1e-30)))
        if float(step_K.abs().max()) < TOLERANCE:
            break
    logit_N = a_NK @ weights_K
    q_N = logit_N.sigmoid()
    spread_N, error_N = counted((q_N * (1 - q_N)).clamp(min=1e-6)), counted(p_N - q_N)
    root_N = spread_N.sqrt()
    factor = torch.linalg.cholesky((a_NK * spread_N.unsqueeze(1)).T @ a_NK + torch.diag(penalty_K))
    u_GMK = groups.pad(torch.linalg.solve_triangular(factor, (a_NK * root_N.unsqueeze(1)).T, upper=False).T)
    eye_MM = torch.eye(u_GMK.shape[1], dtype=u_GMK.dtype, device=u_GMK.device)
    residual_GM = groups.pad(error_N / root_N)
    left_out_N = groups.unpad(solve_small(eye_MM - u_GMK @ u_GMK.mT, residual_GM))
    working_N = logit_N + error_N / spread_N
    return weights_K, (working_N - left_out_N / root_N).sigmoid()
