"""Responses of all copies at once. On a GPU a token is one recorded graph of kernels: launched one by one, they would
take five times as long as they run.

Shapes: S copies, B rows of each, L prompt tokens (padded on the left), T response tokens, X = L + T, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.many_seeds.stacked import Stacked

CHECK_EVERY = 16  # tokens between two looks whether all rows have ended: each look waits for the device


@dataclass(frozen=True)
class Rollouts:
    """token_SBT: padded behind the end; log_prob_SBT: of the chosen tokens; mask_SBT: bool, the response's own, its end
    included."""

    token_SBT: Tensor
    log_prob_SBT: Tensor
    mask_SBT: Tensor


class Sampler:
    """Samples at temperature 1 from a `Stacked` as its weights are at the time.

    Args:
        rows: B. prompt_length: L. limit: T. end, pad: token ids.
    """

    @torch.no_grad()
    def __init__(self, model: Stacked, rows: int, prompt_length: int, limit: int, end: int, pad: int):
        self.model, self.rows, self.length, self.limit, self.end, self.pad = model, rows, prompt_length, limit, end, pad
        device, copies, config = model.device, model.copies, model.config
        shape = (copies * rows, config.num_key_value_heads, prompt_length + limit, config.head_dim)
        self.cache = [(torch.zeros(shape, device=device), torch.zeros(shape, device=device)) for _ in model.layers]
        self.bias = torch.zeros(copies * rows, 1, 1, prompt_length + limit, device=device)
        self.token = torch.zeros(copies, rows, dtype=torch.long, device=device)
        self.alive = torch.zeros(copies, rows, dtype=torch.bool, device=device)
        self.place = torch.zeros(1, dtype=torch.long, device=device)  # of the token that is fed, in X
        self.log_p = torch.zeros(copies, rows, config.vocab_size, device=device)
        self.noise = torch.ones_like(self.log_p)
        self.token_SBT = torch.zeros(copies, rows, limit, dtype=torch.long, device=device)
        self.log_prob_SBT = torch.zeros(copies, rows, limit, device=device)
        self.alive_SBT = torch.zeros(copies, rows, limit, dtype=torch.bool, device=device)
        self.graph = None
        if device == "cuda":
            self._record()

    def _record(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # kernels are chosen and workspaces made before recording
                self.place.fill_(self.length)
                self._advance()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        self.place.fill_(self.length)
        with torch.cuda.graph(self.graph):
            self._advance()

    def _choose(self) -> None:
        """The next token from `log_p` and `noise`, into the columns of its place."""
        token = (self.log_p - self.noise.log()).argmax(-1)
        column = self.place - self.length + 1
        chosen = self.log_p.gather(-1, token.unsqueeze(-1)).squeeze(-1)
        self.token.copy_(torch.where(self.alive, token, self.pad))
        self.token_SBT.index_copy_(2, column, self.token.unsqueeze(2))
        self.log_prob_SBT.index_copy_(2, column, torch.where(self.alive, chosen, 0.0).unsqueeze(2))
        self.alive_SBT.index_copy_(2, column, self.alive.unsqueeze(2))
        self.alive.logical_and_(token != self.end)

    def _advance(self) -> None:
        """Feed the token at `place`, and choose the one behind it."""
        model, copies, rows = self.model, self.model.copies, self.rows
        self.bias.index_fill_(3, self.place, 0.0)
        x = model.embed(self.token)
        for (keys, values), layer in zip(self.cache, model.layers, strict=True):
            read = model.norm(x, f"{layer}.input_layernorm")
            query, key, value = (model.heads(read, layer, part, rows, self.place) for part in "qkv")
            keys.index_copy_(2, self.place, key)
            values.index_copy_(2, self.place, value)
            x = x + model.linear(model.attend(query, keys, values, self.bias), f"{layer}.self_attn.o_proj")
            x = model.feed(x, layer)
        state = model.norm(x, "model.norm").view(copies, rows, 1, -1)
        self.log_p.copy_(model.logits(state).squeeze(2).log_softmax(-1))
        self._choose()
        self.place.add_(1)

    @torch.no_grad()
    def __call__(self, prompt_SBL: Tensor, mask_SBL: Tensor, generator: torch.Generator) -> Rollouts:
        """Responses to these prompts; what is returned is overwritten by the next call."""
        copies, rows, length = prompt_SBL.shape
        self.bias.fill_(float("-inf"))
        self.bias[..., :length].masked_fill_(mask_SBL.reshape(copies * rows, 1, 1, length), 0.0)
        kept: list[tuple[Tensor, Tensor]] = []
        state, _ = self.model.states(prompt_SBL, mask_SBL, keep=kept)
        for (keys, values), (key, value) in zip(self.cache, kept, strict=True):
            keys[:, :, :length], values[:, :, :length] = key, value
        self.token_SBT.fill_(self.pad)
        self.log_prob_SBT.zero_()
        self.alive_SBT.zero_()
        self.alive.fill_(True)
        self.place.fill_(length - 1)
        self.log_p.copy_(self.model.logits(state[:, :, -1:]).squeeze(2).log_softmax(-1))
        self.noise.exponential_(generator=generator)
        self._choose()
        self.place.add_(1)
        for place in range(1, self.limit):
            if place % CHECK_EVERY == 0 and not self.alive.any():
                break
            self.noise.exponential_(generator=generator)
            if self.graph is None:
                self._advance()
            else:
                self.graph.replay()
        return Rollouts(self.token_SBT, self.log_prob_SBT, self.alive_SBT)
