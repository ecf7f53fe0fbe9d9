"""Scores of single rollouts: exact squared norms, and projections on fixed random signs.

A rollout's score is the sum over response tokens of grad log pi, or with other weights of the tokens; the gradients of
many rollouts come from one vectorised backward pass, and are projected by one product of matrices.

Shapes: R rows, L tokens (padded), W sets of token weights, K directions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call, vjp, vmap
from tqdm import tqdm
from transformers import AutoModelForCausalLM


@dataclass(frozen=True)
class Scores:
    """projected_RK and norm_R (squared), float64, of rows that are sums over tokens of weighted scores."""

    projected_RK: Tensor
    norm_R: Tensor

    def scaled(self, factor_R: Tensor) -> "Scores":
        """Each row times a number."""
        return Scores(self.projected_RK * factor_R.unsqueeze(1), self.norm_R * factor_R.square())


def row_scores(
    path: str,
    ids: list[Tensor],
    weight_WRT: Tensor,
    length_R: Tensor,
    directions: int,
    seed: int,
    batch_tokens: int = 3072,
) -> list[Scores]:
    """One `Scores` per set of weights.

    Args:
        path: model folder. ids: prompt and response of each row. weight_WRT: of the response tokens, from the first on.
        batch_tokens: padded tokens whose gradients, one per row, are held at a time.
    """
    # the fused kernels of attention cannot be vectorised over rows
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    generator = torch.Generator().manual_seed(seed)
    signs = {
        name: (torch.randint(0, 2, (directions, value.numel()), generator=generator, dtype=torch.int8) * 2 - 1).float()
        for name, value in parameters.items()
    }

    def gradients(weights: dict[str, Tensor], ids_L: Tensor, cotangent_WL: Tensor):
        """Of one row, for each set of token weights."""

        def log_probs(p):
            place_1L = torch.arange(len(ids_L)).unsqueeze(0)
            # padding stands on the right, where nothing before it looks
            said = functional_call(
                model, p, kwargs={"input_ids": ids_L[None], "position_ids": place_1L, "use_cache": False}
            )
            return said.logits[0, :-1].log_softmax(-1).gather(1, ids_L[1:, None]).squeeze(1)

        pull = vjp(log_probs, weights)[1]
        return [pull(cotangent_L)[0] for cotangent_L in cotangent_WL.unbind(0)]

    vectorised = vmap(gradients, in_dims=(None, 0, 1))
    sets, rows = weight_WRT.shape[:2]
    projected = torch.zeros(sets, rows, directions, dtype=torch.float64)
    norm = torch.zeros(sets, rows, dtype=torch.float64)
    for part in tqdm(
        batches_by_length([len(row) for row in ids], batch_tokens), desc="scores", leave=False, disable=None
    ):
        ids_RL = torch.nn.utils.rnn.pad_sequence([ids[row] for row in part], batch_first=True)
        cotangent_WRL = torch.zeros(sets, len(part), ids_RL.shape[1] - 1)
        for place, row in enumerate(part):
            count, end = int(length_R[row]), len(ids[row]) - 1
            cotangent_WRL[:, place, end - count : end] = weight_WRT[:, row, :count]
        found = vectorised(parameters, ids_RL, cotangent_WRL)
        for number, gradient in enumerate(found):
            for name, value in gradient.items():
                flat = value.reshape(len(part), -1)
                projected[number, part] += (flat @ signs[name].T).double()
                norm[number, part] += flat.square().sum(1).double()
    return [Scores(p, n) for p, n in zip(projected, norm, strict=True)]


def batches_by_length(lengths: list[int], tokens: int) -> list[list[int]]:
    """Row numbers, the shortest first, in batches of at most `tokens` padded tokens (a row at least)."""
    found: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if found and (len(found[-1]) + 1) * lengths[row] <= tokens:
            found[-1].append(row)
        else:
            found.append([row])
    return found
