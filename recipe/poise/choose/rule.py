"""From what is expected of candidates to the order in which they are asked.

Shapes: C candidates.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from recipe.poise.choose.settings import Rule

FLOOR = 1e-4  # of p (1 - p): nobody is quite without a chance


@dataclass(frozen=True)
class Judgement:
    """What the prompt probe says of C candidates, all (C,) float64, NaN where it knows nothing.

    Attributes:
        rate_C: expected pass rate.
        spread_C: standard deviation of that expectation's error.
        value_C: energy-weighted mean reward. energy_C: mean energy of a rollout, up to a factor. NaN without weights.
        known: share of the pass rates' out-of-prompt variance that the probe explains, over the candidates' domains.
    """

    rate_C: Tensor
    spread_C: Tensor
    value_C: Tensor
    energy_C: Tensor
    known: float = 0.0

    def at(self, rows: Tensor) -> "Judgement":
        """Some of the candidates."""
        return Judgement(self.rate_C[rows], self.spread_C[rows], self.value_C[rows], self.energy_C[rows], self.known)

    @classmethod
    def of_table(cls, said_C5: Tensor) -> "Judgement":
        """Columns as in `probe.prompts.PromptProbe.judge`."""
        said_C5 = said_C5.double()
        known_C = said_C5[:, 4][said_C5[:, 4].isfinite()]
        rate_C, spread_C, value_C, energy_C = said_C5[:, :4].unbind(1)
        return cls(rate_C, spread_C, value_C, energy_C, float(known_C.mean()) if len(known_C) else 0.0)


def scores(rule: Rule, said: Judgement, noise: torch.Generator) -> Tensor:
    """(C,) what candidates are drawn in proportion to; NaN where nothing is known.

    The probe's uncertainty takes part as in Thompson's sampling: a pass rate is drawn from what the probe holds
    possible, so that a prompt it is unsure of may prove open.
    """
    draw_C = torch.randn(len(said.rate_C), generator=noise, dtype=torch.float64)
    if rule == "random":
        return torch.ones_like(draw_C)
    spread_C = said.spread_C.nan_to_num(0.0)
    if rule == "energy":
        # the error of the pass rate stands for that of the weighted one
        value_C = (said.value_C + spread_C * draw_C).clamp(0.0, 1.0)
        return said.energy_C * (value_C * (1.0 - value_C) + FLOOR)
    rate_C = (said.rate_C + spread_C * draw_C).clamp(0.0, 1.0)
    return rate_C * (1.0 - rate_C) + FLOOR


def ordered(score_C: Tensor, power: float, random_share: float, noise: torch.Generator) -> Tensor:
    """(C,) int64: all candidates, first those to be asked.

    Drawn without replacement in proportion to score ** power (Gumbel top-k: Kool, van Hoof and Welling 2019). A place
    goes, with probability `random_share`, to a candidate drawn by chance. A candidate without a score has the mean one;
    where none has, all is chance.
    """
    count = len(score_C)
    uniform_2C = torch.rand(2, count, generator=noise, dtype=torch.float64).clamp(1e-300, 1.0)
    coin_C = torch.rand(count, generator=noise, dtype=torch.float64)
    known_C = score_C.isfinite()
    mean = float(score_C[known_C].mean()) if known_C.any() else 1.0
    log_C = torch.where(known_C, score_C, mean).clamp(min=1e-300).log()
    gumbel_C = -(-uniform_2C[0].clamp(max=1 - 1e-16).log()).log()
    by_rule = (power * log_C + gumbel_C).argsort(descending=True, stable=True).tolist()
    by_chance = uniform_2C[1].argsort(stable=True).tolist()
    taken, found = set(), []
    ends = [0, 0]
    for chance in (coin_C < random_share).tolist():
        order = by_chance if chance else by_rule
        while order[ends[chance]] in taken:
            ends[chance] += 1
        taken.add(order[ends[chance]])
        found.append(order[ends[chance]])
    return torch.tensor(found, dtype=torch.int64)
