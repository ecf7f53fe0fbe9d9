"""Variance of the policy gradient at a fixed checkpoint, by estimator, at equal tokens.

    python -m recipe.poise.studies.gradient_variance --model MODEL --data train.parquet --out DIR

MODEL is a folder in Hugging Face's format or a checkpoint of verl (merged on the way). Many batches of the same token
budget per estimator, no two of which share a rollout; DAPO's batches pay for the groups that it throws away. The
gradient of a batch is sum_i A_i grad log pi(y_i) / tokens, as in the on-policy step with the token mean; each rollout's
score is projected once onto fixed random signs, so that a batch's projected gradient is a weighted sum of rows.

Told, with 95% intervals: the variance (trace of the covariance), the squared norm of the mean gradient (the signal),
and their ratio. GRPO and DAPO divide by a group's standard deviation, which scales the gradient: the variances of such
estimators can only be compared relative to their signals. A ratio of 1 means: one batch has as much noise as signal.
The directions are the same for all estimators; what K directions add to the uncertainty of the absolute numbers (about
sqrt(2 / K) of the signal) is in no interval and cancels where estimators are compared.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from probe.estimators import make_estimator
from probe.pairing import sibling_mean
from probe.settings import ProbeSettings
from recipe.poise.evaluate.models import resolve
from recipe.poise.evaluate.settings import EvaluationError
from recipe.poise.studies.gradient_report import answers, write
from recipe.poise.studies.gradient_statistics import Moments, moments
from recipe.poise.studies.rollout_pool import REWARD, Policy, Pool, make_pool, prompt_count

PER_PROMPT = 8  # rollouts in the pool


def projected_scores(policy: Policy, pool: Pool, directions: int, seed: int) -> Tensor:
    """(R, K): sum over response tokens of grad log pi, times K vectors of random signs."""
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(seed)
    signs = [
        torch.randint(0, 2, (directions, p.numel()), generator=generator, dtype=torch.int8) * 2 - 1 for p in parameters
    ]
    signs = [part.to(torch.float32) for part in signs]
    rows = torch.zeros(len(pool.ids), directions)
    for index, ids in enumerate(tqdm(pool.ids, desc="scores", leave=False, disable=None)):
        log_prob, _ = policy.log_probs(ids.unsqueeze(0), torch.ones(1, len(ids), dtype=torch.long))
        total = log_prob[0, -int(pool.length_R[index]) :].sum()
        gradients = torch.autograd.grad(total, parameters)
        for part, gradient in zip(signs, gradients, strict=True):
            rows[index] += part @ gradient.flatten()
    return rows


@dataclass(frozen=True)
class Method:
    """How a batch is drawn and what its advantages are.

    advantage: rewards and groups of the batch's rows and the probe's values -> advantages. drops: throws away groups
    of equal rewards, whose tokens count nevertheless.
    """

    name: str
    n: int
    advantage: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    drops: bool = False


def _grpo(reward, group, value, oracle):
    count = torch.bincount(group)[group]
    mean = torch.bincount(group, weights=reward)[group] / count
    square = torch.bincount(group, weights=(reward - mean) ** 2)[group]
    return (reward - mean) / ((square / (count - 1)).sqrt() + 1e-6)


METHODS = (
    Method("no baseline, n=1", 1, lambda r, g, v, o: r),
    Method("batch mean, n=1", 1, lambda r, g, v, o: r - r.mean()),
    Method("RLOO, n=2", 2, lambda r, g, v, o: r - sibling_mean(r, g)),
    Method("RLOO, n=8", 8, lambda r, g, v, o: r - sibling_mean(r, g)),
    Method("GRPO, n=8", 8, _grpo),
    Method("DAPO, n=8", 8, _grpo, drops=True),
    Method("POISE, n=2", 2, lambda r, g, v, o: r - sibling_mean(v, g)),
    Method("POISE, n=8", 8, lambda r, g, v, o: r - sibling_mean(v, g)),
    Method("pass rate (oracle), n=1", 1, lambda r, g, v, o: r - o),
    Method("pass rate (oracle), n=2", 2, lambda r, g, v, o: r - o),
)


def batches(pool: Pool, n: int, tokens: float, rng: np.random.Generator) -> list[list[np.ndarray]]:
    """Passes over all prompts; of each, row numbers of batches of whole groups of n, of about `tokens` response tokens.

    A pass takes rollouts that no other pass takes, and its batches share no prompt; what is left at its end is dropped.
    """
    prompts, length = len(pool.ids) // pool.n, pool.length_R.numpy()
    passes = []
    for offset in range(0, pool.n, n):
        found: list[np.ndarray] = []
        current: list[np.ndarray] = []
        used = 0.0
        for prompt in rng.permutation(prompts):
            group = np.arange(n) + offset + prompt * pool.n
            # the nearer of stopping before this group and after it: batches have the budget on average
            if current and used + length[group].sum() / 2 > tokens:
                found.append(np.concatenate(current))
                current, used = [], 0.0
            current.append(group)
            used += length[group].sum()
        passes.append(found)
    return passes


def gradients(method: Method, pool: Pool, score_RK: Tensor, value_R: Tensor, oracle_R: Tensor, drawn) -> np.ndarray:
    """(batches, K) projected gradients."""
    out = np.zeros((len(drawn), score_RK.shape[1]))
    for place, rows in enumerate(drawn):
        index = torch.from_numpy(rows)
        group = torch.arange(len(rows)) // method.n
        reward = pool.reward_R[index]
        advantage = method.advantage(reward, group, value_R[index], oracle_R[index])
        kept = torch.ones(len(rows), dtype=torch.bool)
        if method.drops:
            mean = torch.bincount(group, weights=reward)[group] / method.n
            kept = (mean > 0) & (mean < 1)
        if kept.any():
            total = (advantage[kept].double().unsqueeze(1) * score_RK[index][kept].double()).sum(0)
            out[place] = (total / pool.length_R[index][kept].sum()).numpy()
    return out


def study(args: argparse.Namespace) -> Path:
    """Everything; the report's path."""
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    if prompt_count(args.data) <= args.fit_prompts:
        raise ValueError(f"{args.data} has {prompt_count(args.data)} prompts; --fit-prompts must leave some")
    policy, start = Policy(str(resolve(args.model).path), args.block, args.num_tokens), time.perf_counter()
    fit = make_pool(policy, args.data, slice(0, args.fit_prompts), PER_PROMPT, args.max_tokens, args.reward)
    pool = make_pool(policy, args.data, slice(args.fit_prompts, None), PER_PROMPT, args.max_tokens, args.reward)
    # as in training: pairs of siblings, each the other's target
    pair = torch.arange(len(fit.ids)) // 2
    probe = make_estimator(ProbeSettings(), fit.layout, seed=args.seed)
    probe.fit(fit.feature_RF, sibling_mean(fit.reward_R, pair), fit.prompt_R)
    value_R = probe.predict(pool.feature_RF)
    oracle_R = sibling_mean(pool.reward_R, pool.prompt_R)  # of the seven other rollouts
    tokens = args.rollouts * float(pool.length_R.float().mean())
    equal = pool.reward_R.view(-1, PER_PROMPT).std(dim=1) == 0
    heading = (
        f"{Path(args.model).name}: {len(pool.ids) // PER_PROMPT} prompts x {PER_PROMPT}, "
        f"pass rate {pool.reward_R.mean():.3f} ({equal.float().mean():.0%} of groups of 8 have equal rewards), "
        f"{pool.length_R.float().mean():.1f} tokens "
        f"per response; probe fitted on {len(fit.ids)} rows of {args.fit_prompts} other prompts, correlation with the "
        f"mean of the seven other rewards {np.corrcoef(value_R, oracle_R)[0, 1]:.3f}. {args.directions} directions, "
        f"batches of {tokens:.0f} generated tokens (about {args.rollouts} rollouts), seed {args.seed}; "
        f"{platform.machine()}, {os.cpu_count()} cores. Mean (95% bootstrap over batches)."
    )
    print(heading, flush=True)
    score_RK = projected_scores(policy, pool, args.directions, args.seed)
    found: dict[str, Moments] = {}
    counts: dict[str, int] = {}
    for method in METHODS:
        passes = batches(pool, method.n, tokens, rng)
        projected = [gradients(method, pool, score_RK, value_R, oracle_R, drawn) for drawn in passes]
        found[method.name] = moments(projected, rng)
        counts[method.name] = sum(map(len, passes))
        parts = found[method.name].intervals()
        print(
            f"{method.name:<24} {counts[method.name]:>3} batches  variance {parts['variance']:.2e}  "
            f"signal {parts['signal']:.2e}  ratio {parts['ratio']:.1f}",
            flush=True,
        )
    print("\n".join(answers(found)))
    print(f"{time.perf_counter() - start:.0f} s")
    return write(found, counts, {"heading": heading, "settings": {k: str(v) for k, v in vars(args).items()}}, args.out)


def main(argv: list[str] | None = None) -> int:
    try:
        print(f"report: {study(parser().parse_args(argv))}")
    except (ValueError, EvaluationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", required=True, help="model folder, or a checkpoint of verl")
    options.add_argument("--data", type=Path, required=True, help="parquet in verl's schema")
    options.add_argument("--reward", default=REWARD)
    options.add_argument("--fit-prompts", type=int, default=512, help="the first ones, for the probe")
    options.add_argument("--rollouts", type=int, default=256, help="of mean length, in a batch")
    options.add_argument("--max-tokens", type=int, default=64)
    options.add_argument("--directions", type=int, default=64)
    options.add_argument("--block", type=float, default=19 / 36)
    options.add_argument("--num-tokens", type=int, default=10)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, required=True)
    return options


if __name__ == "__main__":
    sys.exit(main())
