"""Feature dumps: with ``poise.dump_features.folder`` set, a run leaves what `python -m probe.study` compares.

Every rank writes the rows it computed; no state crosses a process. A step's files replace those of an earlier attempt
at it, so a resumed run dumps nothing twice.

Shapes: R rows, T tokens of the packed sequence, D hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor, nn

from probe import FeatureLayout
from probe.checked import DISTINCT, Range, settle
from probe.settings import Count, Text
from probe.study.dump import state_name
from recipe.poise.capture.hook import HiddenStateCapture, TokenSpans, resolve_block
from recipe.poise.capture.signals import REWARD, SIGNALS

Block = Annotated[int, Range(0)] | Annotated[float, Range(0, below=1)]
Tokens = Annotated[int, Range(1, 100_000)]
DUMP_FLAG = "poise_dump"  # set by the trainer in the steps that are dumped


@dataclass(frozen=True)
class DumpSettings:
    """Settings under ``poise.dump_features``.

    Attributes:
        folder: where the files go, on a disk that every node sees; None: nothing is dumped. A row takes
            8 x hidden size bytes per block and pooling.
        blocks: decoder blocks to dump, as `poise.block`; empty: that one alone.
        num_tokens: poolings to dump, as `poise.num_tokens`; empty: that one alone.
        every: steps between dumps.
    """

    folder: Text | None = None
    blocks: Annotated[tuple[Block, ...], DISTINCT] = ()
    num_tokens: Annotated[tuple[Tokens, ...], DISTINCT] = ()
    every: Count = 1

    def __post_init__(self):
        settle(self)

    def check_folder(self) -> None:
        """Raises ValueError where the folder cannot be written to."""
        if self.folder is None:
            return
        probe_file = Path(self.folder) / ".writable"
        try:
            probe_file.parent.mkdir(parents=True, exist_ok=True)
            probe_file.touch()
            probe_file.unlink()
        except OSError as error:
            raise ValueError(f"poise.dump_features.folder={self.folder} cannot be written to: {error}") from error

    def places(self, block: int | float, num_tokens: int, num_layers: int) -> tuple[tuple[int, int], ...]:
        """Pairs of block index and tokens to pool. Raises ValueError for a block that the model lacks."""
        blocks = sorted({resolve_block(b, num_layers) for b in self.blocks or (block,)})
        return tuple((b, tokens) for b in blocks for tokens in sorted(set(self.num_tokens or (num_tokens,))))


def dump_layout(places: tuple[tuple[int, int], ...], hidden_size: int) -> FeatureLayout:
    """Both states of every place, then all signals and the rollout's own reward."""
    states = [state_name(kind, *place) for place in places for kind in ("prompt", "response")]
    scalars = [*SIGNALS, REWARD]
    return FeatureLayout((*states, *scalars), (hidden_size,) * len(states) + (1,) * len(scalars))


class DumpCapture:
    """Hooks on all blocks to dump, armed and read together.

    Args:
        blocks: the model's decoder blocks.
        capture: makes the hook of a block and a number of tokens.
    """

    def __init__(
        self,
        blocks: nn.ModuleList,
        places: tuple[tuple[int, int], ...],
        capture: Callable[[nn.Module, int], HiddenStateCapture],
    ):
        self.places = places
        self._captures = [capture(blocks[block], tokens) for block, tokens in places]

    def arm(self, spans: TokenSpans, padded_length: int | None) -> None:
        for capture in self._captures:
            capture.arm(spans, padded_length)

    def take(self) -> Tensor:
        """(R, 2D x places) float32, columns as in `dump_layout`."""
        return torch.cat([state for capture in self._captures for state in capture.take()], dim=1)

    def disarm(self) -> None:
        for capture in self._captures:
            capture.disarm()


def prompt_hash(input_ids_T: Tensor, spans: TokenSpans) -> Tensor:
    """(R,) int64: equal for equal prompts, in every step and run; computed on the device from the token ids."""
    length_R = spans.prompt_end - spans.row_start
    row_P = torch.repeat_interleave(torch.arange(len(length_R), device=length_R.device), length_R)
    place_P = torch.arange(len(row_P), device=row_P.device) - (length_R.cumsum(0) - length_R)[row_P]
    token_P = input_ids_T[place_P + spans.row_start[row_P]].long()
    # a sum of well mixed 64-bit numbers, one per token and place; int64 arithmetic wraps around
    mixed_P = _mix(_mix(token_P + 1) + place_P)
    return torch.zeros_like(length_R).index_add_(0, row_P, mixed_P)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014) on int64: every input bit reaches every output bit."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x ^ ((x >> 31) & ((1 << 33) - 1))
