"""Ridge regression fitted on the whole window: exact, and the paper's form.

Shapes: N rows, F features, K dimensions that are solved in.
"""

from typing import Any

import torch
from torch import Tensor

from probe import weights
from probe.estimators.linear import LinearEstimator
from probe.estimators.subspace import DEFAULT_PENALTIES
from probe.ridge_path import RidgeFit, ridge_path
from probe.settings import FeatureLayout, check_penalties
from probe.subspace import Subspace


class Ridge(LinearEstimator):
    """Exact ridge on all standardised features, through the smaller of the two Gram matrices.

    Args:
        layout: blocks of a row.
        penalties: grid to choose from by leave-one-prompt-out.
        per_block: also choose how much each block counts, from `BLOCK_GAINS`, one block after the other: what amounts
            to a penalty of its own per block.
        link, weighted: see `LinearEstimator`.
    """

    closed_form = True

    TENSORS = {**LinearEstimator.TENSORS, "scale_": ("F", torch.float32)}
    BLOCK_GAINS = (0.1, 0.316, 3.16, 10.0)

    def __init__(
        self,
        layout: FeatureLayout,
        penalties=DEFAULT_PENALTIES,
        per_block: bool = False,
        link: str = "auto",
        weighted: str = "fit",
    ):
        super().__init__(layout, link, weighted)
        check_penalties(penalties)
        self.penalties, self.per_block = tuple(penalties), per_block
        self.scale_: Any = None  # (F,) after fit

    def coordinates(self, x_NF: Tensor) -> Tensor:
        return (x_NF - self.mean_) * self.scale_

    def _fit(self, x_NF: Tensor, y_N: Tensor, group_N: Tensor, weight_N: Tensor | None) -> Tensor:
        link_weight_N, weight_N = weight_N, self._in_regression(weight_N)
        subspace = Subspace(self.layout, rank=1, exact_features=self.layout.num_features)
        z_NF = subspace.refresh(x_NF, torch.arange(len(x_NF), device=x_NF.device), weight_N)
        gain_F = torch.ones(self.layout.num_features, dtype=torch.float64, device=x_NF.device)
        best = ridge_path(z_NF, y_N, group_N, self.penalties, weight_N=weight_N)
        blocks = self.layout.slices.values() if self.per_block else ()
        for block in blocks:
            for gain in self.BLOCK_GAINS:
                trial_F = gain_F.clone()
                trial_F[block] *= gain
                trial = ridge_path(z_NF * trial_F, y_N, group_N, self.penalties, weight_N=weight_N)
                if _error(trial, y_N, weight_N) < _error(best, y_N, weight_N):
                    best, gain_F = trial, trial_F
        self.mean_ = subspace.mean_
        self.scale_ = subspace.scale_ * gain_F.float()  # type: ignore[operator]
        self.weight_ = subspace.unproject(best.coefficient_K * gain_F)
        mean_F = weights.mean(z_NF.double() * gain_F, weight_N)
        self.intercept_ = best.intercept - float(mean_F @ best.coefficient_K)
        self.penalty_, self.strength_ = best.penalty, best.strength
        return self._fit_link(best.left_out_N, y_N, link_weight_N)


def _error(solution: RidgeFit, y_N: Tensor, weight_N: Tensor | None) -> float:
    return weights.mean((solution.left_out_N - y_N).square(), weight_N).item()


class PCARidge(LinearEstimator):
    """The paper's form: PCA of each state, standardise, ridge with a fixed penalty (arXiv 2605.07579).

    Args:
        layout: blocks of a row; the scalars are not projected.
        weighted: see `LinearEstimator`.
        components: directions kept of each state, in the layout's order (paper: 32 and 64 for Qwen3-4B).
        alpha: penalty on the coefficients of standardised features (paper: 100), for rows that weigh one on average.
        seed: of the randomised range finder.
    """

    closed_form = True

    TENSORS = {**LinearEstimator.TENSORS, "map_": ("FK", torch.float32)}

    def __init__(
        self,
        layout: FeatureLayout,
        components: tuple[int, ...] = (32, 64),
        alpha: float = 100.0,
        seed: int = 0,
        weighted: str = "fit",
    ):
        super().__init__(layout, weighted=weighted)
        states = sum(size > 1 for size in layout.sizes)
        if len(components) < states:
            raise ValueError(f"PCARidge components={components}: want one number for each of {states} states")
        self.components, self.alpha, self.seed = components, alpha, seed
        self.map_: Any = None  # (F, K) after fit

    def coordinates(self, x_NF: Tensor) -> Tensor:
        return (x_NF - self.mean_) @ self.map_

    def _fit(self, x_NF: Tensor, y_N: Tensor, group_N: Tensor, weight_N: Tensor | None) -> Tensor:
        link_weight_N, weight_N = weight_N, self._in_regression(weight_N)
        mean_F = weights.mean(x_NF, weight_N)
        z_NF = x_NF - mean_F
        rooted_NF = z_NF if weight_N is None else z_NF * weight_N.sqrt().float().unsqueeze(1)
        columns, maps = [], []
        blocks = list(self.layout.slices.values())
        for index, block in enumerate(blocks):
            z_NB = z_NF[:, block]
            if z_NB.shape[1] == 1:
                map_BK = torch.ones(1, 1, device=z_NF.device)
            else:
                map_BK = principal_directions(rooted_NF[:, block], self.components[index], self.seed)
            a_NK = z_NB @ map_BK
            deviation_K = weights.mean(a_NK.square(), weight_N).sqrt()
            scale_K = torch.where(deviation_K > 1e-12, 1.0 / deviation_K.clamp(min=1e-12), 0.0)
            columns.append(a_NK * scale_K)
            maps.append(map_BK * scale_K)
        solution = ridge_path(torch.cat(columns, dim=1), y_N, group_N, (self.alpha,), unit=1.0, weight_N=weight_N)
        parts = solution.coefficient_K.split([m.shape[1] for m in maps])
        self.mean_ = mean_F
        self.weight_ = torch.cat([m.double() @ part for m, part in zip(maps, parts, strict=True)])
        self.map_ = torch.block_diag(*maps)
        self.intercept_, self.penalty_, self.strength_ = solution.intercept, self.alpha, solution.strength
        return self._fit_link(solution.left_out_N, y_N, link_weight_N)


def principal_directions(z_NB: Tensor, count: int, seed: int, iterations: int = 4) -> Tensor:
    """(B, count) leading right singular vectors of a centred matrix, by randomised subspace iteration."""
    count = min(count, *z_NB.shape)
    width = min(count + 10, *z_NB.shape)
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(z_NB.shape[1], width, generator=generator, device="cpu").to(z_NB)
    for _ in range(iterations):
        basis = torch.linalg.qr(z_NB.T @ (z_NB @ basis))[0]
    _, _, vh = torch.linalg.svd(z_NB @ basis, full_matrices=False)
    return basis @ vh[:count].T
