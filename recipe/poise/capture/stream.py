"""The hand-over between the actor's engine and the probe worker, which live in one process.

The engine appends the pooled features of each micro-batch; the probe worker looks them up by row id and clears the
stream. Nothing here crosses a process: hidden states stay on the worker that computed them.

Shapes: R rows of a micro-batch, N rows on this rank, F features.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from recipe.poise.capture.dump import DumpSettings
from recipe.poise.capture.energy import DEFAULT_FORM, EnergyForm


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
    loss_agg_mode: str = "token-mean"
    energy: EnergyForm = DEFAULT_FORM
    dump: DumpSettings = DumpSettings()


@dataclass
class FeatureStream:
    """Rows captured on this rank since the last `clear`, with what the engine tells about itself.

    Attributes:
        settings: None until the probe worker has set them; the engine then captures nothing.
        hidden_size: features of one state (D); None until an engine with capture was built.
        dp_rank, collects: the engine's place in verl's dispatch; only ranks that collect contribute rows.
        dump_places: block and pooling of each pair of states in the dump.
    """

    settings: CaptureSettings | None = None
    hidden_size: int | None = None
    device: torch.device | str | None = None
    dp_rank: int = 0
    collects: bool = True
    dump_places: tuple[tuple[int, int], ...] = ()
    seconds: float = 0.0
    _ids: list[Tensor] = field(default_factory=list)
    _features: list[Tensor] = field(default_factory=list)
    _weights: list[Tensor] = field(default_factory=list)
    _dumped: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _prompts: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def append(self, id_R: Tensor, feature_RF: Tensor, weight_R2: Tensor, seconds: float) -> None:
        """Rows of a micro-batch: ids, features, energy and length (see `capture.energy`)."""
        self._ids.append(id_R)
        self._features.append(feature_RF)
        self._weights.append(weight_R2)
        self.seconds += seconds

    def append_prompts(self, id_R: Tensor, state_RD: Tensor) -> None:
        """Prompts of a micro-batch of the prompt pass: ids and states."""
        self._prompts.append((id_R, state_RD))

    def take_prompts(self) -> tuple[Tensor, Tensor]:
        """Ids (N,) and states (N, D) of the last prompt pass on this rank, which are then forgotten.

        Raises:
            RuntimeError: there was no such pass.
        """
        if not self._prompts:
            raise RuntimeError("no prompt pass ran in this process: the actor's engine is not POISE's")
        ids, states = zip(*self._prompts, strict=True)
        self._prompts.clear()
        return torch.cat(ids), torch.cat(states)

    def append_dump(self, feature_RF: Tensor, prompt_R: Tensor) -> None:
        """Features for the dump and prompts of the rows that `append` was called with last."""
        self._dumped.append((feature_RF, prompt_R))

    def lookup_dump(self, id_N: Tensor) -> tuple[Tensor, Tensor] | None:
        """Features for the dump (N, F) and prompts (N,) of the rows `id_N`; None in a step that is not dumped."""
        if not self._dumped:
            return None
        index = self._places(id_N)
        features, prompts = zip(*self._dumped, strict=True)
        return torch.cat(features)[index], torch.cat(prompts)[index]

    def lookup(self, id_N: Tensor) -> Tensor:
        """Features (N, F) float32 of the rows `id_N`, in their order.

        Raises:
            RuntimeError: rows were not captured, which means that the log-prob pass ran without the capture flag, or
                on another rank than this one.
        """
        index = self._places(id_N)
        return torch.cat(self._features)[index]

    def lookup_weights(self, id_N: Tensor) -> Tensor:
        """Energy and length (N, 2) float32 of the same rows."""
        index = self._places(id_N)
        return torch.cat(self._weights)[index]

    def _places(self, id_N: Tensor) -> Tensor:
        if not self._ids:
            raise RuntimeError(
                "no hidden state was captured in the log-prob pass: the actor's engine is not POISE's. Is "
                "actor_rollout_ref.model.external_lib=recipe.poise.capture.engine set?"
            )
        known = torch.cat(self._ids)
        order = known.argsort()
        wanted = id_N.to(known.device).contiguous()
        place = torch.searchsorted(known[order], wanted).clamp(max=len(known) - 1)
        index = order[place]
        missing = known[index] != wanted
        if missing.any():
            raise RuntimeError(f"rows {wanted[missing].tolist()[:8]} were not captured on this rank")
        return index

    def clear(self) -> None:
        self._ids.clear()
        self._features.clear()
        self._weights.clear()
        self._dumped.clear()
        self.seconds = 0.0


STREAM = FeatureStream()
