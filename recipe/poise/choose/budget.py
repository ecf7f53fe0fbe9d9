"""How many rollouts a prompt deserves, within a step's budget.

Shapes: B prompts that are asked.
"""

import torch
from torch import Tensor

from recipe.poise.choose.rule import FLOOR, Judgement


def openness(said: Judgement) -> Tensor:
    """(B,) variance of a rollout's reward given what the probe knows, p (1 - p); NaN where it knows nothing."""
    return (said.rate_C * (1.0 - said.rate_C)).clamp(FLOOR, 0.25)


def allocate(variance_B: Tensor, total: int, most: int) -> Tensor:
    """(B,) int64 rollouts of each prompt, at least one and at most `most`, `total` in all.

    Those that minimise the sum of variance / rollouts: each further rollout goes where it lowers the sum most, which is
    exact as the terms are convex. A prompt without a variance has the mean one.

    Raises:
        ValueError: a total that cannot be reached.
    """
    count = len(variance_B)
    if not count <= total <= count * most:
        raise ValueError(f"{total} rollouts cannot be given to {count} prompts, 1 to {most} each")
    known_B = variance_B.isfinite()
    mean = float(variance_B[known_B].mean()) if known_B.any() else 1.0
    variance_B = torch.where(known_B, variance_B, mean).double()
    given_B = torch.ones(count, dtype=torch.int64)
    gain_B = variance_B / 2.0 if most > 1 else variance_B * 0.0
    for _ in range(total - count):
        place = int(gain_B.argmax())
        given_B[place] += 1
        rollouts = int(given_B[place])
        gain_B[place] = variance_B[place] / (rollouts * (rollouts + 1)) if rollouts < most else -1.0
    return given_B
