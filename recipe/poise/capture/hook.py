"""Pooled hidden states of one decoder block, read by a forward hook during verl's log-prob pass.

Shapes: R rows of a micro-batch, T tokens of the packed (unpadded) sequence, S tokens of this rank's slice, N tokens a
state is the mean of, L padded length, D hidden size.
"""

import time
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

BLOCK_LISTS = ("layers", "h", "blocks", "block")  # Llama, Qwen, OLMo, Mistral, GPT-NeoX; GPT-2; MPT; T5-likes


def find_blocks(module: nn.Module, num_layers: int) -> nn.ModuleList:
    """The decoder blocks, also under FSDP1, FSDP2 and PEFT wrapping.

    Raises:
        ValueError: no list of `num_layers` blocks, or several.
    """
    found = [
        (name, child)
        for name, child in module.named_modules()
        if isinstance(child, nn.ModuleList) and len(child) == num_layers and name.rsplit(".", 1)[-1] in BLOCK_LISTS
    ]
    if len(found) != 1:
        names = [name for name, _ in found] or "none"
        raise ValueError(
            f"looked for one list of {num_layers} decoder blocks named {', '.join(BLOCK_LISTS)} in "
            f"{type(module).__name__} and found {names}: POISE cannot capture hidden states of this architecture"
        )
    return found[0][1]


def resolve_block(block: int | float, num_layers: int) -> int:
    """Index of a block given as an index (int, from 0) or as a fraction of depth (float in [0, 1)).

    Raises:
        ValueError: out of range.
    """
    if isinstance(block, float):
        if not 0 <= block < 1:
            raise ValueError(f"block {block}: a fraction of depth lies in [0, 1); an index is a whole number")
        return min(num_layers - 1, round(block * num_layers))
    if not 0 <= block < num_layers:
        raise ValueError(f"block {block} does not exist: the model has {num_layers} blocks, 0 to {num_layers - 1}")
    return block


@dataclass(frozen=True)
class TokenSpans:
    """Where each row's parts lie in the packed sequence; all (R,) int64, ends exclusive.

    Attributes:
        row_start: first prompt token. prompt_end: first response token. response_end: one past the last response token.
        state_end: one past the last token that the response state may use: the last ``</think>`` where there is one,
            else `response_end`.
        has_think: bool; whether the response holds a ``</think>``.
        own_T: (T,) int64; how many of the packed tokens up to and including this one the policy has written itself in a
            response. What a tool or a user says between two turns is the response's, but not the policy's own.
    """

    row_start: Tensor
    prompt_end: Tensor
    response_end: Tensor
    state_end: Tensor
    has_think: Tensor
    own_T: Tensor

    @property
    def reasoning_end(self) -> Tensor:
        """One past the reasoning part: the whole response where there is no ``</think>``."""
        return self.state_end

    def last_prompt_tokens(self, count: int) -> tuple[Tensor, Tensor]:
        """Positions (R, N) and weights (R, N) whose weighted sum is the mean over the last prompt tokens."""
        return _last(self.row_start, self.prompt_end, count)

    def last_response_tokens(self, count: int) -> tuple[Tensor, Tensor]:
        """The same for the last of the policy's own response tokens up to `state_end`."""
        last_R, before_R = self.own_before(self.state_end), self.own_before(self.prompt_end)
        number_RN = last_R.unsqueeze(1) - torch.arange(count, device=last_R.device)
        inside_RN = number_RN > before_R.unsqueeze(1)
        weight_RN = inside_RN.float() / inside_RN.sum(dim=1, keepdim=True).clamp(min=1)
        return self.own_place(number_RN), weight_RN

    def own_before(self, end_R: Tensor) -> Tensor:
        """Own tokens before these positions, counted from the first row's start."""
        return torch.where(end_R > 0, self.own_T[(end_R - 1).clamp(min=0)], 0)

    def own_place(self, number: Tensor) -> Tensor:
        """Where the own tokens of these numbers stand, counted from 1; any position for a number that there is not."""
        return torch.searchsorted(self.own_T, number.clamp(min=1)).clamp(max=len(self.own_T) - 1)

    @property
    def own_length(self) -> Tensor:
        """(R,) the policy's own tokens of each response."""
        return self.own_before(self.response_end) - self.own_before(self.prompt_end)


def _last(start_R: Tensor, end_R: Tensor, count: int) -> tuple[Tensor, Tensor]:
    position_RN = end_R.unsqueeze(1) - 1 - torch.arange(count, device=end_R.device)
    inside_RN = position_RN >= start_R.unsqueeze(1)
    weight_RN = inside_RN.float() / inside_RN.sum(dim=1, keepdim=True).clamp(min=1)
    return position_RN.clamp(min=0), weight_RN


def token_spans(
    input_ids_T: Tensor,
    offsets: Tensor,
    response_lengths_R: Tensor,
    end_think_id: int | None,
    response_mask_Y: Tensor | None = None,
) -> TokenSpans:
    """Spans from the packed token ids; nothing is decoded and no number leaves the device.

    Args:
        offsets: (R + 1,) row starts, as of a jagged nested tensor.
        end_think_id: id of ``</think>``; None where the tokenizer has no such token. Only those that the policy wrote
            itself count.
        response_mask_Y: of all rows' response tokens, one row after the other; above 0 where the token is the policy's
            own. None: all are.
    """
    start_R, end_R = offsets[:-1].long(), offsets[1:].long()
    length_R = response_lengths_R.long()
    prompt_end_R = end_R - length_R
    place_T = torch.arange(len(input_ids_T), device=input_ids_T.device)
    row_T = torch.searchsorted(end_R, place_T, right=True)
    is_own_T = place_T >= prompt_end_R[row_T]
    if response_mask_Y is not None and len(response_mask_Y):
        # place of a response's token among those of all responses; of a prompt's token, any
        among_T = (length_R.cumsum(0)[row_T] - (end_R[row_T] - place_T)).clamp(min=0)
        is_own_T &= response_mask_Y.to(place_T.device)[among_T] > 0
    state_end_R, has_think_R = end_R, torch.zeros_like(end_R, dtype=torch.bool)
    if end_think_id is not None:
        # running maximum of the places of </think>: at a row's end, the last one so far
        last_T = torch.where((input_ids_T == end_think_id) & is_own_T, place_T, -1).cummax(0).values
        last_R = last_T[(end_R - 1).clamp(min=0)]
        has_think_R = last_R >= prompt_end_R
        state_end_R = torch.where(has_think_R, last_R + 1, end_R)
    return TokenSpans(start_R, prompt_end_R, end_R, state_end_R, has_think_R, is_own_T.long().cumsum(0))


def prompt_spans(input_ids_T: Tensor, offsets: Tensor) -> TokenSpans:
    """Spans of prompts alone, with empty responses; arguments as in `token_spans`."""
    start_R, end_R = offsets[:-1].long(), offsets[1:].long()
    nothing = torch.zeros_like(end_R, dtype=torch.bool)
    return TokenSpans(start_R, end_R, end_R, end_R, nothing, torch.zeros_like(input_ids_T, dtype=torch.int64))


class HiddenStateCapture:
    """Forward hook on `block` that sums the wanted token positions while armed.

    The block's output is read in place: only rows x D numbers are kept, whatever the sequence length. With sequence
    parallelism each rank sums its own slice, and one all-reduce of rows x 2D numbers completes the sums.

    Args:
        block: module whose output (or first output) is (1, S, D) packed, or (R, L, D) padded.
        num_tokens: tokens a state is the mean of.
        sp_rank, sp_size, sp_group: this rank's place among the slices of one packed sequence.
    """

    def __init__(self, block: nn.Module, num_tokens: int, sp_rank: int = 0, sp_size: int = 1, sp_group=None):
        self.num_tokens, self.sp_rank, self.sp_size, self.sp_group = num_tokens, sp_rank, sp_size, sp_group
        self.seconds = 0.0  # host time spent in the hook so far
        self._positions: tuple[Tensor, Tensor] | None = None
        self._sums_2RD: Tensor | None = None
        self._handle = block.register_forward_hook(self._hook)

    def arm(self, spans: TokenSpans, padded_length: int | None) -> None:
        """Capture the next forward pass; `padded_length` is L of a padded pass, None for a packed one."""
        parts = (spans.last_prompt_tokens(self.num_tokens), spans.last_response_tokens(self.num_tokens))
        position_2RN = torch.stack([position for position, _ in parts])
        weight_2RN = torch.stack([weight for _, weight in parts])
        if padded_length is not None:
            row_R = torch.arange(len(spans.row_start), device=position_2RN.device)
            # what lies before the row has weight 0; clamp keeps it inside
            shift_R = row_R * padded_length - spans.row_start
            position_2RN = (position_2RN + shift_R.unsqueeze(1)).clamp(min=0)
        self._positions = (position_2RN, weight_2RN)
        self._sums_2RD = None

    @torch.no_grad()
    def _hook(self, module, args, output):
        if self._positions is None:
            return
        start = time.perf_counter()
        if self._sums_2RD is not None:
            raise RuntimeError("the captured block ran twice in one pass: its states cannot be told apart")
        hidden = output[0] if isinstance(output, tuple) else output
        hidden_SD = hidden.detach().reshape(-1, hidden.shape[-1])
        position_2RN, weight_2RN = self._positions
        if self.sp_size > 1:
            position_2RN = position_2RN - self.sp_rank * len(hidden_SD)
            inside = (position_2RN >= 0) & (position_2RN < len(hidden_SD))
            position_2RN, weight_2RN = position_2RN.clamp(0, len(hidden_SD) - 1), weight_2RN * inside
        sums_2RD = hidden_SD.new_zeros(*position_2RN.shape[:2], hidden_SD.shape[1], dtype=torch.float32)
        for n in range(self.num_tokens):  # over the constant N, so that memory stays at rows x D
            sums_2RD.addcmul_(hidden_SD[position_2RN[..., n]].float(), weight_2RN[..., n, None])
        self._sums_2RD = sums_2RD
        self.seconds += time.perf_counter() - start

    def take(self) -> tuple[Tensor, Tensor]:
        """Prompt and response states, both (R, D) float32; disarms.

        Raises:
            RuntimeError: the block did not run since `arm`.
        """
        if self._positions is None or self._sums_2RD is None:
            raise RuntimeError(
                "the captured block did not run in this pass: was capture armed, and is it in the model?"
            )
        sums_2RD = self._sums_2RD
        self.disarm()
        if self.sp_size > 1:
            dist.all_reduce(sums_2RD, group=self.sp_group)
        return sums_2RD[0], sums_2RD[1]

    def disarm(self) -> None:
        self._positions, self._sums_2RD = None, None

    def remove(self) -> None:
        """Take the hook off the block."""
        self._handle.remove()
