"""Choices of features and estimators, judged on prompts they have not seen.

Shapes: N rows.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probe.estimators import make_estimator
from probe.metrics import advantage_variance, brier_skill, mae, pearson, rmse
from probe.pairing import sibling_mean
from probe.settings import KINDS, ProbeSettings
from probe.study.dump import Dump, parse_state, state_name

SIGNAL_SETS: dict[str, tuple[str, ...]] = {
    "none": (),
    "entropy": ("entropy_response", "entropy_reasoning", "entropy_answer"),
    "entropy+reward": ("entropy_response", "entropy_reasoning", "entropy_answer", "reward"),
}
SHARES = tuple(0.5**halvings for halvings in range(5, -1, -1))  # of the learning curve


@dataclass(frozen=True)
class Choice:
    """What to read and how to learn from it. `kinds`: prompt, response or both."""

    block: int
    tokens: int
    kinds: tuple[str, ...]
    signals: tuple[str, ...]
    estimator: str

    @property
    def names(self) -> tuple[str, ...]:
        return (*(state_name(kind, self.block, self.tokens) for kind in self.kinds), *self.signals)


@dataclass(frozen=True)
class Result:
    """Scores of out-of-fold predictions. Pearson is the mean over folds; the ratio is to RLOO's advantage variance on
    the same rows, below 1 is better."""

    choice: Choice
    value_N: Tensor
    pearson: float
    mae: float
    rmse: float
    brier_skill: float
    variance_ratio: float
    seconds: float


def folds_of(prompt_N: Tensor, folds: int, seed: int) -> Tensor:
    """(N,) fold of each row: prompts are dealt at random, all rows of a prompt to one fold. Raises ValueError where
    there are fewer prompts than folds."""
    prompts, place_N = torch.unique(prompt_N, return_inverse=True)
    if len(prompts) < folds:
        raise ValueError(f"{len(prompts)} prompts cannot be dealt into {folds} folds: dump more steps")
    dealt = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)) % folds
    return dealt[place_N]


def out_of_fold(
    dump: Dump, choice: Choice, settings: ProbeSettings, fold_N: Tensor, share: float = 1.0
) -> tuple[Tensor, float]:
    """Predictions (N,) by estimators that have not seen the row's prompt, and the median seconds of a fit.

    Args:
        share: of the other folds' prompts that are learned from.
    """
    x_NF, layout = dump.columns(choice.names)
    target_N = sibling_mean(dump.reward_N, dump.group_N)
    value_N, seconds = torch.full_like(target_N, float("nan")), []
    for fold in fold_N.unique().tolist():
        outside_N = fold_N == fold
        inside_N = torch.isin(dump.prompt_N, _part(dump.prompt_N[~outside_N].unique(), share))
        estimator = make_estimator(settings, layout, kind=choice.estimator)
        start = time.perf_counter()
        estimator.fit(x_NF[inside_N], target_N[inside_N], dump.prompt_N[inside_N])
        seconds.append(time.perf_counter() - start)
        value_N[outside_N] = estimator.predict(x_NF[outside_N])
    return value_N, sorted(seconds)[len(seconds) // 2]


def _part(prompts: Tensor, share: float) -> Tensor:
    """So many of the prompts, at least two; a smaller share is part of a larger one."""
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0))
    return prompts[order[: max(2, round(share * len(prompts)))]]


def judge(dump: Dump, choice: Choice, settings: ProbeSettings, fold_N: Tensor, share: float = 1.0) -> Result:
    """Score a choice against the mean reward of each row's siblings, which is the pass rate where they are many."""
    value_N, seconds = out_of_fold(dump, choice, settings, fold_N, share)
    target_N = sibling_mean(dump.reward_N, dump.group_N)
    constant_N, correlations = torch.empty_like(target_N), []
    for fold in fold_N.unique().tolist():
        outside_N = fold_N == fold
        constant_N[outside_N] = target_N[~outside_N].mean()
        # within a fold: over all of them, the folds' different means would pass for a negative correlation
        correlations.append(pearson(value_N[outside_N], target_N[outside_N]))
    variance = advantage_variance(value_N, dump.reward_N, dump.group_N)
    return Result(
        choice=choice,
        value_N=value_N,
        pearson=sum(c for c in correlations if c == c) / len(correlations),  # a constant says nothing: 0
        mae=mae(value_N, target_N),
        rmse=rmse(value_N, target_N),
        brier_skill=brier_skill(value_N, target_N, constant_N),
        variance_ratio=variance["probe"] / variance["rloo"] if variance["rloo"] > 0 else float("nan"),
        seconds=seconds,
    )


def pass_rate_spread(dump: Dump) -> tuple[float, float]:
    """Standard deviation of the prompts' true pass rates, and the Pearson correlation of a perfect predictor with the
    siblings' mean reward: what the noise of that mean leaves. Rollouts of a prompt have nothing in common but the pass
    rate, so their rewards' covariance is its variance."""
    target_N, mean = sibling_mean(dump.reward_N, dump.group_N).double(), dump.reward_N.double().mean()
    variance = max(0.0, float(((dump.reward_N - mean) * (target_N - mean)).mean()))
    spread = float(target_N.var())
    return variance**0.5, min(1.0, (variance / spread) ** 0.5) if spread > 0 else 0.0


def best(results: list[Result]) -> Result:
    """The smallest squared error: what decides the variance of the advantage."""
    return min(results, key=lambda result: result.rmse)


def first_as_good(results: list[Result], dump: Dump) -> Result:
    """The first result whose squared error exceeds the smallest by no more than a standard error of their difference,
    in which the rows of a prompt count as one: what a few prompts decide is no reason to leave the default."""
    target_N = sibling_mean(dump.reward_N, dump.group_N).double()
    _, place_N = torch.unique(dump.prompt_N, return_inverse=True)
    least_N = (best(results).value_N.double() - target_N).square()
    for result in results:
        excess_N = (result.value_N.double() - target_N).square() - least_N
        sum_G = torch.zeros_like(excess_N).index_add_(0, place_N, excess_N - excess_N.mean())
        if excess_N.mean() <= sum_G.square().sum().sqrt() / len(excess_N):
            return result
    raise AssertionError("the best result is as good as itself")


def stages(
    dump: Dump, start: Choice, estimators: tuple[str, ...] = KINDS
) -> Iterator[tuple[str, Callable[[Choice], list[Choice]]]]:
    """Name of each stage, and the choices it compares given the best so far: one question after the other."""
    states = [parsed for name in dump.layout.names if (parsed := parse_state(name)) is not None]
    places = sorted({(block, tokens) for _, block, tokens in states})
    kinds = tuple(dict.fromkeys(kind for kind, _, _ in states))
    scalars = {name for name in dump.layout.names if parse_state(name) is None}
    signal_sets = {name: signals for name, signals in SIGNAL_SETS.items() if scalars >= set(signals)}
    signal_sets["all"] = tuple(name for name in dump.layout.names if name in scalars)
    subsets = [kinds, *((kind,) for kind in kinds)] if len(kinds) > 1 else [kinds]

    yield "block and pooling", lambda c: [replace(c, block=block, tokens=tokens) for block, tokens in places]
    yield "states", lambda c: [replace(c, kinds=subset) for subset in subsets]
    yield "signals", lambda c: [replace(c, signals=s) for s in dict.fromkeys(signal_sets.values()) if s or c.kinds]
    yield "estimator", lambda c: [replace(c, estimator=kind) for kind in estimators]


def start_choice(dump: Dump, estimator: str) -> Choice:
    """Both states of the first block in the dump, with the default signals as far as they are there. Raises ValueError
    for a dump without states."""
    states = [parsed for name in dump.layout.names if (parsed := parse_state(name)) is not None]
    if not states:
        raise ValueError("the dump holds no hidden states: nothing to compare")
    _, block, tokens = states[0]
    kinds = tuple(kind for kind, b, t in states if (b, t) == (block, tokens))
    signals = tuple(name for name in SIGNAL_SETS["entropy"] if name in dump.layout.names)
    return Choice(block, tokens, kinds, signals, estimator)


def learning_point(
    dump: Dump, choice: Choice, settings: ProbeSettings, fold_N: Tensor, share: float
) -> tuple[int, Result]:
    """Rows learned from (in the mean over folds) and scores, when a share of the prompts is learned from."""
    folds = len(fold_N.unique())
    return round(share * len(fold_N) * (folds - 1) / folds), judge(dump, choice, settings, fold_N, share)
