"""The hand-over between the actor's engine and the probe worker, which live in one process.

The engine appends the pooled features of each micro-batch; the probe worker looks them up by row id and clears the
stream. Nothing here crosses a process: hidden states stay on the worker that computed them.

Shapes: R rows of a micro-batch, N rows on this rank, F features.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class CaptureSettings:
    """What the engine is to capture; plain values, so that they travel to the workers inside a class attribute."""

    block: int | float
    num_tokens: int
    states: tuple[str, ...]
    signals: tuple[str, ...]
    end_think_id: int | None
    eos_token_ids: tuple[int, ...]
    max_response_length: int


@dataclass
class FeatureStream:
    """Rows captured on this rank since the last `clear`, with what the engine tells about itself.

    Attributes:
        settings: None until the probe worker has set them; the engine then captures nothing.
        hidden_size: features of one state (D); None until an engine with capture was built.
        dp_rank, collects: the engine's place in verl's dispatch; only ranks that collect contribute rows.
    """

    settings: CaptureSettings | None = None
    hidden_size: int | None = None
    device: torch.device | str | None = None
    dp_rank: int = 0
    collects: bool = True
    seconds: float = 0.0
    _ids: list[Tensor] = field(default_factory=list)
    _features: list[Tensor] = field(default_factory=list)

    def append(self, id_R: Tensor, feature_RF: Tensor, seconds: float) -> None:
        self._ids.append(id_R)
        self._features.append(feature_RF)
        self.seconds += seconds

    def lookup(self, id_N: Tensor) -> Tensor:
        """Features (N, F) float32 of the rows `id_N`, in their order.

        Raises:
            RuntimeError: rows were not captured, which means that the log-prob pass ran without the capture flag, or
                on another rank than this one.
        """
        if not self._ids:
            raise RuntimeError(
                "no hidden state was captured in the log-prob pass: the actor's engine is not POISE's. Is "
                "actor_rollout_ref.model.external_lib=recipe.poise.engine set?"
            )
        known = torch.cat(self._ids)
        order = known.argsort()
        wanted = id_N.to(known.device).contiguous()
        place = torch.searchsorted(known[order], wanted).clamp(max=len(known) - 1)
        index = order[place]
        missing = known[index] != wanted
        if missing.any():
            raise RuntimeError(f"rows {wanted[missing].tolist()[:8]} were not captured on this rank")
        return torch.cat(self._features)[index]

    def clear(self) -> None:
        self._ids.clear()
        self._features.clear()
        self.seconds = 0.0


STREAM = FeatureStream()
