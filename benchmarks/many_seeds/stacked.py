"""Many copies of one small Qwen3 side by side, each with weights of its own.

One seed of a model of half a million parameters leaves an accelerator idle; a hundred of them do not. Weights have a
leading dimension of copies, so a linear layer is a batched product. The numbers are those of transformers' model
(tests/benchmarks/test_many_seeds.py).

Shapes: S copies, B rows of each, L tokens (padded on the left), V vocabulary, D hidden size, H heads, G heads of keys
and values, E of a head.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen3ForCausalLM


class Stacked:
    """`copies` of `model`, a Qwen3 without biases; `parameters` are leaves that an optimiser may take."""

    def __init__(self, model: Qwen3ForCausalLM, copies: int, device: str):
        self.config, self.copies, self.device = model.config, copies, device
        self.weights = {
            name: weight.detach().to(device).unsqueeze(0).repeat(copies, *[1] * weight.dim()).requires_grad_()
            for name, weight in model.named_parameters()
        }
        place_L = torch.arange(model.config.max_position_embeddings, device=device, dtype=torch.float32)
        angle_LE = torch.outer(place_L, model.model.rotary_emb.inv_freq.to(device)).repeat(1, 2)
        self.cos_LE, self.sin_LE = angle_LE.cos(), angle_LE.sin()

    @property
    def parameters(self) -> list[Tensor]:
        return list(self.weights.values())

    def linear(self, x_SND: Tensor, name: str) -> Tensor:
        return torch.bmm(x_SND, self.weights[f"{name}.weight"].transpose(1, 2))

    def norm(self, x: Tensor, name: str) -> Tensor:
        """RMSNorm over the last dimension; the first one is copies."""
        weight = self.weights[f"{name}.weight"].view(self.copies, *[1] * (x.dim() - 2), -1)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config.rms_norm_eps) * weight

    def heads(self, x_SND: Tensor, layer: str, part: str, rows: int, place: Tensor) -> Tensor:
        """(S B, H or G, L, E) queries, keys or values of tokens at `place` (L,)."""
        count = self.config.num_attention_heads if part == "q" else self.config.num_key_value_heads
        x = self.linear(x_SND, f"{layer}.self_attn.{part}_proj")
        x = x.view(self.copies, x_SND.shape[1], count, self.config.head_dim)
        if part != "v":
            x = self.norm(x, f"{layer}.self_attn.{part}_norm")
        x = x.view(self.copies * rows, -1, count, self.config.head_dim).transpose(1, 2)
        if part == "v":
            return x
        left, right = x.chunk(2, dim=-1)
        return x * self.cos_LE[place] + torch.cat([-right, left], dim=-1) * self.sin_LE[place]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """(S, B L, H E); heads of queries that share keys stand side by side as further queries."""
        rows, count, new, size = query.shape
        shared = count // key.shape[1]
        if (
            new == 1
        ):  # keys are read once for all heads that share them; kernels for many queries take ten times as long
            query = query.view(rows, key.shape[1], shared, size) * size**-0.5
            out = ((query @ key.transpose(-1, -2)) + bias).softmax(-1) @ value
        else:
            key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        out = out.reshape(rows, count, new, size).transpose(1, 2)
        return out.reshape(self.copies, -1, count * size)

    def feed(self, x_SND: Tensor, layer: str) -> Tensor:
        """A block's second half."""
        read = self.norm(x_SND, f"{layer}.post_attention_layernorm")
        gate, up = (self.linear(read, f"{layer}.mlp.{part}_proj") for part in ("gate", "up"))
        return x_SND + self.linear(F.silu(gate) * up, f"{layer}.mlp.down_proj")

    def embed(self, ids_SN: Tensor) -> Tensor:
        """(S, N, D)."""
        return self.weights["model.embed_tokens.weight"][
            torch.arange(self.copies, device=ids_SN.device).unsqueeze(1), ids_SN
        ]

    @property
    def layers(self) -> list[str]:
        return [f"model.layers.{number}" for number in range(self.config.num_hidden_layers)]

    def states(
        self, ids_SBL: Tensor, mask_SBL: Tensor, block: int | None = None, keep: list | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """What the output embedding reads (S, B, L, D), and the output of the block of this number.

        Args:
            mask_SBL: bool; False: padding. keep: takes each layer's keys and values.
        """
        copies, rows, length = ids_SBL.shape
        place = torch.arange(length, device=ids_SBL.device)
        causal = place.unsqueeze(1) >= place
        own = place.unsqueeze(1) == place  # padding looks at itself, else at nothing: NaN
        seen = (mask_SBL.reshape(copies * rows, 1, 1, length) & causal) | own
        bias = torch.zeros(seen.shape, device=place.device).masked_fill_(~seen, float("-inf"))
        x, kept = self.embed(ids_SBL.reshape(copies, -1)), None
        for number, layer in enumerate(self.layers):
            read = self.norm(x, f"{layer}.input_layernorm")
            query, key, value = (self.heads(read, layer, part, rows, place) for part in "qkv")
            if keep is not None:
                keep.append((key, value))
            x = x + self.linear(self.attend(query, key, value, bias), f"{layer}.self_attn.o_proj")
            x = self.feed(x, layer)
            if number == block:
                kept = x.view(copies, rows, length, -1)
        return self.norm(x, "model.norm").view(copies, rows, length, -1), kept

    def logits(self, state_SBLD: Tensor) -> Tensor:
        """(S, B, L, V) from what the output embedding reads."""
        copies, rows, tokens, size = state_SBLD.shape
        name = "model.embed_tokens" if self.config.tie_word_embeddings else "lm_head"
        return self.linear(state_SBLD.reshape(copies, rows * tokens, size), name).view(copies, rows, tokens, -1)
