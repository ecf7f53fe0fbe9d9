"""A network with one hidden layer on the subspace of the ridge.

Shapes: N rows, K dimensions, H hidden units.
"""

from typing import Annotated, Any

import torch
from torch import Tensor

from probe import weights
from probe.checked import Range
from probe.estimators.base import Estimator
from probe.settings import FeatureLayout
from probe.subspace import Subspace


class MLP(Estimator):
    """tanh units on standardised projections, fitted by Adam; has no left-out predictions.

    How long to learn is decided on a fifth of the prompts; then all rows are learned for as long.

    Args:
        layout, rank, exact_features, seed: of the subspace; the seed also draws the first weights and the fifth.
        hidden: units.
        steps: at most so many; lr, weight_decay: of Adam.
    """

    TENSORS = {
        "mean_": ("F", torch.float32),
        "scale_": ("F", torch.float32),
        "basis_": ("PR", torch.float32),
        "spread_": ("K", torch.float32),
        "hidden_weight_": ("KH", torch.float32),
        "hidden_bias_": ("H", torch.float32),
        "output_weight_": ("H", torch.float32),
    }
    NUMBERS = {
        **Estimator.NUMBERS,
        "gain_": Annotated[float, Range(0)],
        "output_bias_": float,
        "steps_": Annotated[int, Range(0)],
    }

    def __init__(
        self,
        layout: FeatureLayout,
        rank: int = 96,
        exact_features: int = 512,
        hidden: int = 32,
        steps: int = 200,
        lr: float = 3e-3,
        weight_decay: float = 0.1,
        seed: int = 0,
    ):
        super().__init__(layout)
        self.hidden, self.steps, self.lr, self.weight_decay = hidden, steps, lr, weight_decay
        self.rank, self.exact_features, self.seed = rank, exact_features, seed
        self.subspace = Subspace(layout, rank, exact_features, seed)
        # tensors after fit
        self.spread_: Any = None
        self.hidden_weight_: Any = None
        self.hidden_bias_: Any = None
        self.output_weight_: Any = None
        self.output_bias_ = 0.0
        self.steps_ = 0  # learned for

    mean_ = property(lambda s: s.subspace.mean_, lambda s, v: setattr(s.subspace, "mean_", v))
    scale_ = property(lambda s: s.subspace.scale_, lambda s, v: setattr(s.subspace, "scale_", v))
    basis_ = property(lambda s: s.subspace.basis_, lambda s, v: setattr(s.subspace, "basis_", v))
    gain_ = property(lambda s: s.subspace.gain_, lambda s, v: setattr(s.subspace, "gain_", v))

    @property
    def fitted(self) -> bool:
        return self.output_weight_ is not None

    def _sizes(self) -> dict[str, int]:
        return super()._sizes() | {"H": self.hidden}

    def load_state(self, tensors, numbers, slots, rows) -> None:
        super().load_state(tensors, numbers, slots, rows)
        self.subspace.check_loaded()

    def _fit(self, x_NF: Tensor, y_N: Tensor, group_N: Tensor, weight_N: Tensor | None) -> None:
        self.subspace.basis_ = None
        a_NK = self.subspace.refresh(x_NF, torch.arange(len(x_NF), device=x_NF.device), weight_N)
        spread_K = a_NK.std(dim=0, correction=0)
        if weight_N is not None:
            spread_K = weights.mean((a_NK - weights.mean(a_NK, weight_N)).square(), weight_N).sqrt()
        # one scale for all: the leading directions keep their lead
        self.spread_ = spread_K.max().clamp(min=1e-12).expand(a_NK.shape[1]).clone()
        a_NK = a_NK / self.spread_
        prompts, place_N = torch.unique(group_N, return_inverse=True)
        dealt = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(self.seed), device="cpu")
        out_N = (dealt.to(place_N.device) % 5 == 0)[place_N]
        self.steps_ = self.steps
        if 0 < out_N.sum() < len(out_N):
            inside, outside = (
                (a_NK[part_N], y_N[part_N], None if weight_N is None else weight_N[part_N])
                for part_N in (~out_N, out_N)
            )
            errors = self._learn(*inside, self.steps, watch=outside)
            self.steps_ = min(range(len(errors)), key=errors.__getitem__)
        self._learn(a_NK, y_N, weight_N, self.steps_)

    @torch.enable_grad()
    def _learn(
        self,
        a_NK: Tensor,
        y_N: Tensor,
        weight_N: Tensor | None,
        steps: int,
        watch: tuple[Tensor, Tensor, Tensor | None] | None = None,
    ) -> list[float]:
        """Learn from the start; squared errors on `watch` before each step and after the last."""
        generator = torch.Generator().manual_seed(self.seed)
        start_KH = torch.randn(a_NK.shape[1], self.hidden, generator=generator, device="cpu") / a_NK.shape[1] ** 0.5
        weight_KH = start_KH.to(a_NK).requires_grad_()
        # nothing is said at first but the mean
        bias_H, output_H = (a_NK.new_zeros(self.hidden).requires_grad_() for _ in range(2))
        mean = weights.mean(y_N, weight_N)
        optimizer = torch.optim.AdamW([weight_KH, bias_H, output_H], lr=self.lr, weight_decay=self.weight_decay)

        def error(x_NK: Tensor, target_N: Tensor, counts_N: Tensor | None) -> Tensor:
            return weights.mean(((x_NK @ weight_KH + bias_H).tanh() @ output_H + mean - target_N).square(), counts_N)

        errors = []
        for _ in range(steps):
            if watch is not None:
                errors.append(error(*watch).item())
            optimizer.zero_grad()
            error(a_NK, y_N, weight_N).backward()
            optimizer.step()
        if watch is not None:
            errors.append(error(*watch).item())
        self.hidden_weight_, self.hidden_bias_ = weight_KH.detach(), bias_H.detach()
        self.output_weight_, self.output_bias_ = output_H.detach(), float(mean)
        return errors

    def _predict(self, x_NF: Tensor) -> Tensor:
        a_NK = self.subspace.project(x_NF) / self.spread_
        return (a_NK @ self.hidden_weight_ + self.hidden_bias_).tanh() @ self.output_weight_ + self.output_bias_
