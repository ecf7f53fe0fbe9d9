"""Settings under ``poise.select``."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from probe.checked import Range, SettingError, settle
from probe.settings import Count, Weights

Rule = Literal["pass_rate", "energy", "random"]
RULES: tuple[str, ...] = get_args(Rule)
Rollouts = Literal["fixed", "adaptive"]


@dataclass(frozen=True)
class SelectSettings:
    """How prompts are chosen. Off by default, and then nothing of a run changes.

    Attributes:
        candidates: prompts that are judged for a step, as a multiple of the batch; 1: off, verl draws the prompts.
        rule: what a prompt is drawn in proportion to. pass_rate: p (1 - p), p its expected pass rate: the length of the
            expected gradient that right and wrong answers pull in different directions with. energy: m b (1 - b), m the
            mean energy of its rollouts' scores and b their energy-weighted mean reward: the mean squared length of a
            rollout's gradient under the best baseline, which is p (1 - p) where all weigh alike (needs poise.weights
            other than uniform). random: by chance; the pass runs, for comparison.
        power: of that number. 1: in proportion; larger: the best come nearly always.
        random_share: of the places that go to a candidate drawn by chance, so that no prompt starves.
        max_age: steps in which a prompt that is not chosen stays a candidate; then it is left until the next epoch.
            1: each step judges new ones. null: it waits until it is chosen, or drawn again in a later epoch; hardly any
            prompt is then left out.
        repeat: whether a chosen prompt stays a candidate, so that it may be asked again in the same epoch.
        seed: of drawing and choosing.
    """

    candidates: Annotated[int, Range(1, 1000)] = 1
    rule: Rule = "pass_rate"
    power: Annotated[float, Range(0, 100)] = 1.0
    random_share: Annotated[float, Range(0, 1)] = 0.1
    max_age: Count | None = 1
    repeat: bool = False
    seed: Annotated[int, Range(0)] = 0

    def __post_init__(self):
        settle(self)

    @property
    def on(self) -> bool:
        return self.candidates > 1

    def check(self, weights: Weights) -> None:
        """Raises SettingError where the run's weights do not suffice."""
        if self.rule == "energy" and weights == "uniform":
            raise SettingError("rule", self.rule, "pass_rate with poise.weights=uniform: rollouts have no energy then")
