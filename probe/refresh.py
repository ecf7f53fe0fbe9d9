"""A refresh of the subspace in parts, a little in each step, while the window goes on changing.

First half: the image Z^T W Z B of the present basis B, and the features' moments, are summed over the window's rows.
Then the directions of the image are the coming basis. Second half: the rows are projected on it. Both halves go from
the newest rows to the oldest and take in what arrives meanwhile, so they end with the window as it then is: what leaves
a window is what they have not come to yet.

Z is standardised as the present basis was. The coming standardisation Z' = (Z - mean) D turns the image into
D (image - mean) = Z'^T W Z' (D^-1 B): an iteration of the coming matrix, from the same directions of raw features.

Shapes: C slots, N rows of the window, F features, P of them states, R directions, K dimensions.
"""

from math import ceil, isfinite
from typing import Annotated, Any

import torch
from torch import Tensor

from probe.checked import Range, checked, shown
from probe.state import Declared, check_tensors
from probe.subspace import CHUNK, Subspace
from probe.window import SlidingWindow

FIRST, SECOND = {"image", "moments"}, {"basis", "mean", "scale", "projected"}  # tensors of each half


class Refresh:
    """Of one subspace; idle until `advance` is called, and again when it says that it is done.

    Attributes: coming (the subspace as it will be), projected ((C, K), what of the rows is projected on it).
    """

    TENSORS: Declared = {
        "image": ("PR", torch.float32),
        "moments": ("MF", torch.float64),
        "basis": ("PR", torch.float32),
        "mean": ("F", torch.float32),
        "scale": ("F", torch.float32),
        "projected": ("NK", torch.float32),
    }
    NUMBERS: dict[str, Any] = {
        "reached": Annotated[int, Range(0)],  # rows of this and later serial numbers are done
        "done": Annotated[int, Range(0)],  # rows of this half
        "total": Annotated[float, Range(0)],  # their weight
        "unit": Annotated[float, Range(0)],  # weights are divided by it
    }

    def __init__(self, subspace: Subspace, alike: bool = False):
        self.subspace, self.alike = subspace, alike
        self.stop()

    def stop(self) -> None:
        """Forget what is under way."""
        self.image: Any = None  # tensors while they are made
        self.moments: Any = None
        self.projected: Any = None
        self.coming = Subspace(self.subspace.layout, self.subspace.rank, self.subspace.exact_features)
        self.reached, self.done, self.total, self.unit = 0, 0, 0.0, 0.0

    def advance(self, window: SlidingWindow, a_CK: Tensor, new: Tensor, progress: float) -> bool:
        """Go on until the share `progress` of the work is done; whether there is nothing more to do: all of it is done
        (then `projected` is there), or the numbers are such that parts cannot do it.

        Args:
            a_CK: the present projection of the window's rows, by slot.
            new: slots of the rows that have arrived since the last call.
        """
        if self.projected is not None:
            self._project(window, new)
        else:
            if self.image is None:
                self._start(window)
                new = new[:0]  # they are among the rows to come
            self._sum(window, torch.cat([new, self._next(window, 2.0 * progress)]), a_CK)
            if progress < 0.5:
                return False
            if not self._turn(window, a_CK):
                self.stop()
                return True
        self._project(window, self._next(window, 2.0 * progress - 1.0))
        return progress >= 1.0

    def _next(self, window: SlidingWindow, share: float) -> Tensor:
        """The slots to do now so that the share is done; they count as done."""
        order = window.order
        left = order[window.serial[order] < self.reached]
        count = min(len(left), ceil(min(share, 1.0) * (self.done + len(left))) - self.done)
        slots = left[len(left) - max(count, 0) :]
        if len(slots):
            self.reached = int(window.serial[slots[0]])
        self.done += len(slots)
        return slots

    def _present(self) -> tuple[Any, Any, Any]:
        """Mean, scale (F,) and basis (P, R) that the window's rows are projected with."""
        return self.subspace.mean_, self.subspace.scale_, self.subspace.basis_

    def _start(self, window: SlidingWindow) -> None:
        mean, _, basis = self._present()
        self.image, self.moments = torch.zeros_like(basis), mean.new_zeros(2, len(mean), dtype=torch.float64)
        self.reached, self.done, self.total = window.next_serial, 0, 0.0
        self.unit = 1.0 if self.alike else float(window.target_weight[window.order].double().mean())

    def _sum(self, window: SlidingWindow, slots: Tensor, a_CK: Tensor) -> None:
        mean_F, scale_F, basis = self._present()
        states, rank = basis.shape
        for chunk in slots.split(CHUNK):
            weight_C = torch.ones_like(window.target_weight[chunk]) if self.alike else window.target_weight[chunk]
            weight_C = (weight_C.double() / self.unit).float()
            z_CF = window.feature[chunk] - mean_F
            self.moments[0] += weight_C @ z_CF
            self.moments[1] += weight_C @ z_CF.square()
            self.total += float(weight_C.double().sum())
            z_CP = z_CF.mul_(scale_F)[:, :states]
            self.image.addmm_(z_CP.T, a_CK[chunk, :rank] * weight_C.unsqueeze(1))

    def _turn(self, window: SlidingWindow, a_CK: Tensor) -> bool:
        """Make the coming subspace of what was summed; False where that has lost its digits."""
        (mean_F, scale_F, basis), coming = self._present(), self.coming
        first_F, second_F = self.moments / self.total
        coming.mean_ = (mean_F.double() + first_F).float()
        deviation_F = (second_F - first_F.square()).clamp(min=0.0).sqrt().float()
        coming_F = coming.set_scale(deviation_F)
        # a mean that went so far from the one that was subtracted has eaten the spread's digits
        jump_F = first_F.abs().float()
        if ((jump_F > 1e4 * deviation_F) & (jump_F > 1e-3 * coming.mean_.abs())).any():
            return False
        scale_P = scale_F[: len(self.image)]
        mean_P = first_F[: len(scale_P)].float() * scale_P
        self.image.addr_(mean_P, mean_P @ basis, alpha=-self.total)
        # a feature that was constant so far has no image: it takes part from the next refresh on
        ratio_P = torch.where(scale_P > 0, coming_F[: len(scale_P)] / scale_P, 0.0)
        coming.basis_ = torch.linalg.qr(self.image * ratio_P.unsqueeze(1))[0].contiguous()
        self.image = self.moments = None
        self.projected = torch.zeros_like(a_CK)
        self.reached, self.done = window.next_serial, 0
        return bool(coming.basis_.isfinite().all())

    def _project(self, window: SlidingWindow, slots: Tensor) -> None:
        for chunk in slots.split(CHUNK):
            self.projected[chunk] = self.coming.project(window.feature[chunk])

    def state(self, slots: Tensor) -> tuple[dict[str, Tensor], dict[str, float | int]]:
        """Tensors of the half that is under way, by slot those of the rows in `slots`, and numbers."""
        tensors = {"image": self.image, "moments": self.moments, "projected": self.projected}
        tensors |= {name: getattr(self.coming, f"{name}_") for name in ("basis", "mean", "scale")}
        known = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        if self.projected is not None:
            known["projected"] = self.projected[slots]
        return known, {name: getattr(self, name) for name in self.NUMBERS}

    def load_state(self, tensors: dict[str, Tensor], numbers: Any, slots: int, rows: int) -> None:
        """Set what `state` gave. Raises ValueError for what it cannot have given."""
        self.stop()
        layout, basis = self.subspace.layout, self.subspace.basis_
        sizes = {"F": layout.num_features, "P": layout.num_state_features, "N": rows, "M": 2}
        sizes |= {"K": self.subspace.dimensions} | ({} if basis is None else {"R": basis.shape[1]})
        check_tensors("estimator.refresh", tensors, self.TENSORS, sizes)
        complete = set(tensors) in ((set(), FIRST, SECOND) if basis is not None else (set(),))
        if set(numbers) != set(self.NUMBERS) or not complete:
            raise ValueError(f"estimator.refresh: {shown(numbers)} and {', '.join(tensors) or 'nothing'} do not fit")
        for name, kind in self.NUMBERS.items():
            setattr(self, name, checked(numbers[name], kind, f"estimator.refresh.{name}"))
        self.image, self.moments = tensors.get("image"), tensors.get("moments")
        if self.image is not None and not (isfinite(self.unit) and self.unit > 0):
            raise ValueError(f"estimator.refresh.unit: {self.unit}")
        if "projected" in tensors:
            self.projected = tensors["projected"].new_zeros(slots, self.subspace.dimensions)
            self.projected[:rows] = tensors["projected"]
            for name in ("basis", "mean", "scale"):
                setattr(self.coming, f"{name}_", tensors[name])
