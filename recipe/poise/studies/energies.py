"""What may stand for the squared norm of a rollout's score, from the numbers of one forward pass.

The score is the sum over response tokens of grad log pi. What the pass knows of a token is d = onehot - pi, the
gradient in the logits, and the states h that it went through. Sums of the tokens' own norms miss that tokens of one
rollout pull the same way; norms of sums see it. A row whose tokens the loss divides by their count has each number here
divided by the count squared.

Shapes: R rows, T response tokens (padded), V vocabulary, D hidden size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from recipe.poise.capture.energy import DEFAULT_FORM, EnergyForm
from recipe.poise.studies.rollout_pool import Policy

DEFAULT = f"sum ((1-pi) log pi)^2, coherent {DEFAULT_FORM.coherence}"  # recipe.poise.capture.energy
SKETCH = 16  # directions of a sketch, of the logits and of the states


@dataclass(frozen=True)
class Pass:
    """What one forward pass knows of response tokens; rows are padded with zeros, also `last_RTD` and `block_RTD`.

    Attributes:
        log_prob_RT, token_RT: of the chosen tokens. mask_RT: bool, where there is one. d_RTV: onehot - pi.
        last_RTD: what the output embedding reads. block_RTD: output of the block that the probe reads.
        head_VD: the output embedding.
    """

    log_prob_RT: Tensor
    token_RT: Tensor
    mask_RT: Tensor
    d_RTV: Tensor
    last_RTD: Tensor
    block_RTD: Tensor
    head_VD: Tensor


def _gram(x_RTD: Tensor) -> Tensor:
    return x_RTD @ x_RTD.transpose(1, 2)


def measures(seen: Pass, seed: int = 0) -> dict[str, Tensor]:
    """(R,) float64 each, by name."""
    mask_RT = seen.mask_RT.double()
    length_R = mask_RT.sum(1)
    log_prob_RT = torch.where(seen.mask_RT, seen.log_prob_RT.double(), 0.0)
    miss_RT = -torch.expm1(log_prob_RT) * mask_RT  # 1 - pi
    surprising_RT = DEFAULT_FORM.of_tokens(log_prob_RT)
    norm_RT = seen.d_RTV.double().square().sum(2)
    root_RT = norm_RT.sqrt()
    chosen, logit = miss_RT.square().sum(1), norm_RT.sum(1)
    # Gram matrices of the tokens: sums of outer products have the norm sum_tt' (d_t . d_t') (h_t . h_t')
    d_RTT, last_RTT, block_RTT = _gram(seen.d_RTV), _gram(seen.last_RTD), _gram(seen.block_RTD)
    back_RTD = seen.d_RTV @ seen.head_VD
    back_RTT = _gram(back_RTD)
    generator = torch.Generator().manual_seed(seed)
    vocabulary, hidden = seen.head_VD.shape
    left_VS = torch.randn(vocabulary, SKETCH, generator=generator) / SKETCH**0.5
    right_DS = torch.randn(hidden, SKETCH, generator=generator) / SKETCH**0.5
    sketch_RSS = (seen.d_RTV @ left_VS).transpose(1, 2) @ (seen.last_RTD @ right_DS)
    same_RTT = (seen.token_RT.unsqueeze(1) == seen.token_RT.unsqueeze(2)).double()
    found = {
        "length": length_R,
        "sum (1-pi)^2": chosen,
        "sum |d|^2": logit,
        "NLL^2": log_prob_RT.sum(1).square(),
        "(sum (1-pi))^2": miss_RT.sum(1).square(),
        "(sum |d|)^2": root_RT.sum(1).square(),
        "sum (1-pi)^2, coherent 0.1": EnergyForm(0.0, 0.1).of_response(chosen, miss_RT.sum(1)),
        "sum (1-pi)^2, coherent 0.3": EnergyForm(0.0, 0.3).of_response(chosen, miss_RT.sum(1)),
        "sum (log pi)^2, coherent 0.1": EnergyForm(0.0, 0.1).of_response(
            log_prob_RT.square().sum(1), -log_prob_RT.sum(1)
        ),
        "sum ((1-pi) log pi)^2": surprising_RT.sum(1),
        DEFAULT: DEFAULT_FORM.of_response(surprising_RT.sum(1), surprising_RT.sqrt().sum(1)),
        "(sum (1-pi) log pi)^2": surprising_RT.sqrt().sum(1).square(),
        "sum (1-pi)^2 x sqrt length": chosen * length_R.sqrt(),
        "sum (1-pi)^2 x length": chosen * length_R,
        "sum by token id (1-pi), squared": (same_RTT * miss_RT.unsqueeze(1) * miss_RT.unsqueeze(2)).sum((1, 2)),
        "|sum d|^2": seen.d_RTV.sum(1).square().sum(1),
        "|sum d W|^2": back_RTD.sum(1).square().sum(1),
        "sum |d|^2 |h|^2": (norm_RT * seen.last_RTD.square().sum(2)).sum(1),
        "|sum (1-pi) h_block|^2": (miss_RT.float().unsqueeze(2) * seen.block_RTD).sum(1).square().sum(1),
        "|sum d h|^2 (output embedding)": (d_RTT * last_RTT).sum((1, 2)),
        f"|sum d h|^2, sketch {SKETCH}x{SKETCH}": sketch_RSS.square().sum((1, 2)),
        "|sum d h_block|^2": (d_RTT * block_RTT).sum((1, 2)),
        "|sum (d W) h_block|^2": (back_RTT * block_RTT).sum((1, 2)),
    }
    return {name: value.double() for name, value in found.items()}


@dataclass(frozen=True)
class Tokens:
    """Of R rows: log_prob_RT and sum_pi_squared_RT (sum over the vocabulary of squared probabilities), 0 where
    mask_RT (bool) is not set; energy: (R,) float64 by name."""

    log_prob_RT: Tensor
    sum_pi_squared_RT: Tensor
    mask_RT: Tensor
    energy: dict[str, Tensor]


class Observer:
    """Looks into the passes of a policy: `rollout_pool.make_pool` calls `see` once per pass, `tokens` is the whole."""

    def __init__(self, policy: Policy, limit: int):
        self.limit, self._policy = limit, policy
        self._parts: list[Tokens] = []
        self._states: dict[str, Tensor] = {}
        self._handles = [
            policy.model.get_output_embeddings().register_forward_pre_hook(self._keep_last),
            policy.block.register_forward_hook(self._keep_block),
        ]

    def _keep_last(self, module, inputs):
        self._states["last"] = inputs[0]

    def _keep_block(self, module, inputs, output):
        self._states["block"] = output[0] if isinstance(output, tuple) else output

    def see(self, ids_RL: Tensor, total_R: Tensor, length_R: Tensor, log_prob_RL: Tensor, logits_RLV: Tensor) -> None:
        """Args: token ids, tokens of prompt and response, of the response; as `Policy.log_probs` gives them."""
        longest = int(length_R.max())
        place_RT = (total_R - length_R - 1).unsqueeze(1) + torch.arange(longest)
        mask_RT = torch.arange(longest) < length_R.unsqueeze(1)
        place_RT = torch.where(mask_RT, place_RT, 0)
        row_R1 = torch.arange(len(ids_RL)).unsqueeze(1)
        token_RT = ids_RL[row_R1, place_RT + 1]
        pi_RTV = logits_RLV[row_R1, place_RT].softmax(-1)
        sum_pi_squared_RT = pi_RTV.square().sum(-1) * mask_RT
        d_RTV = torch.nn.functional.one_hot(token_RT, pi_RTV.shape[-1]) - pi_RTV
        keep_RT1 = mask_RT.unsqueeze(2).float()
        seen = Pass(
            log_prob_RT=log_prob_RL[row_R1, place_RT] * mask_RT,
            token_RT=token_RT,
            mask_RT=mask_RT,
            d_RTV=d_RTV * keep_RT1,
            last_RTD=self._states["last"][row_R1, place_RT] * keep_RT1,
            block_RTD=self._states["block"][row_R1, place_RT] * keep_RT1,
            head_VD=self._policy.model.get_output_embeddings().weight.detach(),
        )
        pad = (0, self.limit - longest)
        log_prob_RT, squares_RT, mask_RT = (
            torch.nn.functional.pad(x, pad) for x in (seen.log_prob_RT, sum_pi_squared_RT, mask_RT)
        )
        self._parts.append(Tokens(log_prob_RT, squares_RT, mask_RT, measures(seen)))

    def tokens(self) -> Tokens:
        """All that was seen since the last call."""
        parts, self._parts = self._parts, []
        return Tokens(
            torch.cat([part.log_prob_RT for part in parts]),
            torch.cat([part.sum_pi_squared_RT for part in parts]),
            torch.cat([part.mask_RT for part in parts]),
            {name: torch.cat([part.energy[name] for part in parts]) for name in parts[0].energy},
        )

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
