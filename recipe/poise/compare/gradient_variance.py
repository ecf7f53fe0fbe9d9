"""Variance of the policy gradient at a fixed checkpoint, by estimator, at equal tokens.

    python -m recipe.poise.compare.gradient_variance --model MODEL --data train.parquet --out DIR

Many batches of the same token budget per estimator, no two of which share a rollout. The gradient of a batch is
sum_i A_i grad log pi(y_i) / tokens, as in the on-policy step with the token mean; each rollout's score is projected
once onto fixed random signs, so that a batch's projected gradient is a weighted sum of rows.

Printed, with 95% bootstrap intervals over batches: the variance (trace of the covariance), the squared norm of the
mean gradient, and their ratio, which does not depend on how an estimator scales its advantages. A ratio of 1 means:
one batch has as much noise as signal. The squared norm is corrected for the noise left in the mean.
"""

import argparse
import json
import os
import platform
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
from recipe.poise.compare.rollout_pool import Policy, Pool, make_pool

REWARD = "reward.reasoning_gym_verifier:compute_score"


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


def batches(pool: Pool, n: int, per_prompt: int, tokens: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Row numbers of batches of whole groups of n, each of about `tokens` response tokens; no row twice."""
    prompts = len(pool.ids) // per_prompt
    order, found, current, used = [], [], [], 0.0
    for offset in range(0, per_prompt, n):  # every pass takes other rollouts of all prompts, in another order
        order += [np.arange(n) + offset + prompt * per_prompt for prompt in rng.permutation(prompts)]
    length = pool.length_R.numpy()
    for group in order:
        current.append(group)
        used += length[group].sum()
        if used >= tokens:
            found.append(np.concatenate(current))
            current, used = [], 0.0
    return found


def gradients(method: Method, pool: Pool, score_RK: Tensor, value_R: Tensor, oracle_R: Tensor, drawn) -> np.ndarray:
    """(batches, K) projected gradients."""
    out = []
    for rows in drawn:
        index = torch.from_numpy(rows)
        group = torch.arange(len(rows)) // method.n
        reward = pool.reward_R[index]
        advantage = method.advantage(reward, group, value_R[index], oracle_R[index])
        kept = torch.ones(len(rows), dtype=torch.bool)
        if method.drops:
            mean = torch.bincount(group, weights=reward)[group] / method.n
            kept = (mean > 0) & (mean < 1)
        if not kept.any():
            out.append(np.zeros(score_RK.shape[1]))
            continue
        total = (advantage[kept].double().unsqueeze(1) * score_RK[index][kept].double()).sum(0)
        out.append((total / pool.length_R[index][kept].sum()).numpy())
    return np.array(out)


def statistics(g_BK: np.ndarray) -> tuple[float, float, float]:
    """Variance, squared norm of the mean (corrected for its noise), and their ratio; of the unprojected gradient."""
    variance = float(g_BK.var(axis=0, ddof=1).mean())
    signal = float((g_BK.mean(axis=0) ** 2).mean()) - variance / len(g_BK)
    return variance, signal, variance / signal if signal > 0 else float("inf")


def interval(g_BK: np.ndarray, pick: int, rng: np.random.Generator, resamples: int = 1000) -> tuple[float, float]:
    found = [statistics(g_BK[rng.integers(0, len(g_BK), len(g_BK))])[pick] for _ in range(resamples)]
    return tuple(np.quantile(found, [0.025, 0.975]))


def main(args) -> None:
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    policy, start = Policy(args.model, args.block, args.num_tokens), time.perf_counter()
    fit = make_pool(policy, args.data, slice(0, args.fit_prompts), 8, args.max_tokens, args.reward)
    pool = make_pool(policy, args.data, slice(args.fit_prompts, None), 8, args.max_tokens, args.reward)
    # as in training: pairs of siblings, each the other's target
    pair = torch.arange(len(fit.ids)) // 2
    probe = make_estimator(ProbeSettings(), fit.layout, seed=args.seed)
    probe.fit(fit.feature_RF, sibling_mean(fit.reward_R, pair), fit.prompt_R)
    value_R = probe.predict(pool.feature_RF)
    oracle_R = sibling_mean(pool.reward_R, pool.prompt_R)  # of the seven other rollouts
    tokens = args.rollouts * float(pool.length_R.float().mean())
    print(
        f"{args.model}: {len(pool.ids) // 8} prompts x 8, pass rate {pool.reward_R.mean():.3f}, "
        f"{pool.length_R.float().mean():.1f} tokens per response; probe fitted on {len(fit.ids)} rows of "
        f"{args.fit_prompts} other prompts, correlation with the other rollouts' mean "
        f"{np.corrcoef(value_R, oracle_R)[0, 1]:.3f}\n"
        f"{args.directions} directions, batches of {tokens:.0f} response tokens, seed {args.seed}; "
        f"{platform.machine()}, {os.cpu_count()} cores",
        flush=True,
    )
    score_RK = projected_scores(policy, pool, args.directions, args.seed)
    print(
        f"{'estimator':<26} {'batches':>7} {'variance':>10} {'signal':>10} {'variance / signal':>18}  95%", flush=True
    )
    results = {}
    for method in METHODS:
        drawn = batches(pool, method.n, 8, tokens, rng)
        g_BK = gradients(method, pool, score_RK, value_R, oracle_R, drawn)
        variance, signal, ratio = statistics(g_BK)
        low, high = interval(g_BK, 2, rng)
        variance_low, variance_high = interval(g_BK, 0, rng)
        print(
            f"{method.name:<26} {len(drawn):>7} {variance:>10.3e} {signal:>10.3e} {ratio:>18.2f}  "
            f"{low:.2f} to {high:.2f}",
            flush=True,
        )
        results[method.name] = {
            "batches": len(drawn), "variance": variance, "variance_95": [variance_low, variance_high],
            "signal": signal, "ratio": ratio, "ratio_95": [low, high],
        }  # fmt: skip
    print(f"{time.perf_counter() - start:.0f} s")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        settings = {key: str(value) for key, value in vars(args).items()}
        (args.out / "gradient_variance.json").write_text(
            json.dumps({"settings": settings, "results": results}, indent=2)
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--data", type=Path, required=True, help="parquet in verl's schema")
    parser.add_argument("--reward", default=REWARD)
    parser.add_argument("--fit-prompts", type=int, default=512, help="the first ones, for the probe")
    parser.add_argument("--rollouts", type=int, default=256, help="of mean length, in a batch")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--directions", type=int, default=64)
    parser.add_argument("--block", type=float, default=19 / 36)
    parser.add_argument("--num-tokens", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    main(parser.parse_args())
