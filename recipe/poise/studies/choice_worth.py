"""What a choice among prompts finds: how open those are that a rule would ask, beside chance and the best there are.

How open a prompt is: p (1 - p), half the chance that two of its rollouts get unequal rewards.

Shapes: P prompts, k rollouts of each.
"""

from dataclasses import replace

import torch
from torch import Tensor

from recipe.poise.choose.rule import Judgement, ordered, scores
from recipe.poise.choose.settings import SelectSettings

CHANCE, BEST = "chance", "the best of all"
POWERS = (1.0, 4.0, 16.0)


def openness(reward_PK: Tensor) -> Tensor:
    """(P,) float64 unbiased estimates: the variance of a prompt's rewards, which is p (1 - p) where they are 0 or 1."""
    return reward_PK.double().var(1)


def check_rollouts(k: int) -> None:
    """Raises ValueError where half of a prompt's rollouts would tell nothing of its openness."""
    if k < 4:
        raise ValueError(f"{k} rollouts of a prompt do not tell how open it is: give --k 4 or more")


def choices(
    said: Judgement, reward_PK: Tensor, settings: SelectSettings, one_in: int, seed: int, trials: int = 200
) -> dict[str, float]:
    """Mean openness of the prompts that are asked, one in `one_in`, by name of the rule.

    By chance; by the settings' rule with several powers, uncertainty drawn as in training and left out; the most open
    ones, by half of the rollouts and judged by the other half, since the same ones would flatter their choice.

    Raises:
        ValueError: fewer than four rollouts of a prompt.
    """
    check_rollouts(reward_PK.shape[1])
    open_P = openness(reward_PK)
    asked = max(1, len(open_P) // one_in)
    found = {CHANCE: float(open_P.mean())}
    for sure in (False, True):
        judged = replace(said, spread_C=torch.zeros_like(said.spread_C)) if sure else said
        for power in POWERS:
            noise = torch.Generator().manual_seed(seed)
            means = []
            for _ in range(trials):
                score_C = scores(settings.rule, judged, noise)
                order_C = ordered(score_C, power, settings.random_share, noise)
                means.append(float(open_P[order_C[:asked]].mean()))
            found[f"power {power:g}" + (", as if sure" if sure else "")] = sum(means) / trials
    first_P, second_P = openness(reward_PK[:, 0::2]), openness(reward_PK[:, 1::2])
    best = [second_P[first_P.topk(asked).indices], first_P[second_P.topk(asked).indices]]
    return found | {BEST: float(torch.cat(best).mean())}
