"""What a cap of the weights does on real rollouts of a fixed policy, rows weighted by their energy.

    python benchmarks/caps.py --model MODEL --data DATA [--prompts 2048] [--seeds 0 1 2]

MODEL is a folder or a checkpoint of verl, DATA a parquet file in verl's schema, for instance the quickstart's. Two
rollouts per prompt; prompts are dealt into five folds, and a probe fitted on the others, capped at a quantile of their
energies, gives a fold's baselines (each row its sibling's value). Printed is sum e (r - b)^2 over rows that were not
fitted, with e as it is, over that of the energy-weighted constant without a cap; 95% by bootstrap over prompts, which
are drawn with all their rollouts of all seeds.
"""

import argparse
import platform
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not this folder, whose probe.py would hide the package

from benchmarks.needs import needs_packages  # noqa: E402

with needs_packages():
    import torch
    from torch import Tensor

    from probe import ProbeSettings
    from probe.estimators import make_estimator
    from probe.pairing import sibling_mean
    from probe.step import prepare
    from recipe.poise.evaluate.models import resolve
    from recipe.poise.studies.rollout_pool import REWARD, Policy, Pool, make_pool

CAPS, FOLDS, DRAWS = (None, 0.999, 0.99, 0.95, 0.9), 5, 2000


@torch.no_grad()
def energies(policy: Policy, pool: Pool, rows: int = 256) -> Tensor:
    """(R,) sum of (1 - pi)^2 over each response."""
    found = []
    for start in range(0, len(pool.ids), rows):
        ids = pool.ids[start : start + rows]
        log_prob_RL, _ = policy.log_probs(*policy.batch(ids))
        for row, tokens, length in zip(log_prob_RL, ids, pool.length_R[start : start + rows].tolist(), strict=True):
            found.append(torch.expm1(row[len(tokens) - 1 - length : len(tokens) - 1].double()).square().sum())
    return torch.stack(found).float().cpu()


def squares(pool: Pool, energy_R: Tensor, cap: float | None, seed: int) -> tuple[Tensor, Tensor]:
    """(R,) e (r - b)^2 of rows that were not fitted, with the probe and with the constant as b."""
    prompts = int(pool.prompt_R.max()) + 1
    fold_R = (torch.randperm(prompts, generator=torch.Generator().manual_seed(seed)) % FOLDS)[pool.prompt_R]
    value_R, constant_R = torch.empty_like(energy_R), torch.empty_like(energy_R)
    for fold in range(FOLDS):
        inside = fold_R != fold
        weight_R = energy_R[inside]
        if cap is not None:
            weight_R = weight_R.clamp(max=float(weight_R.double().quantile(cap)))
        rows = prepare(pool.feature_RF[inside], pool.reward_R[inside], pool.prompt_R[inside], weight_R, False)
        good = rows.good_R
        probe = make_estimator(ProbeSettings(), pool.layout, seed)
        probe.fit(rows.feature_RF[good], rows.target_R[good], rows.group_R[good], rows.target_weight_R[good])
        value_R[~inside] = probe.predict(pool.feature_RF[~inside])
        constant_R[~inside] = (weight_R @ pool.reward_R[inside]) / weight_R.sum()
    baselines = (sibling_mean(value_R, pool.prompt_R), constant_R)
    probe_R, fixed_R = (energy_R * (pool.reward_R - baseline).square() for baseline in baselines)
    return probe_R, fixed_R


def ratio(above_P: Tensor, below_P: Tensor) -> str:
    """Ratio of sums over prompts, and its interval."""
    draws = torch.randint(len(above_P), (DRAWS, len(above_P)), generator=torch.Generator().manual_seed(0))
    low, high = (above_P[draws].sum(1) / below_P[draws].sum(1)).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return f"{float(above_P.sum() / below_P.sum()):.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder, or a checkpoint of verl")
    parser.add_argument("--data", type=Path, required=True, help="parquet in verl's schema")
    parser.add_argument("--prompts", type=int, default=2048, help="the first ones")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--reward", default=REWARD)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of rollouts and folds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    policy = Policy(str(resolve(options.model).path))
    sums: dict = {}
    for seed in options.seeds:
        torch.manual_seed(seed)
        pool = make_pool(policy, options.data, slice(0, options.prompts), 2, options.max_tokens, options.reward)
        energy_R = energies(policy, pool).double()
        failed, solved = energy_R[pool.reward_R < 0.5], energy_R[pool.reward_R >= 0.5]
        times = failed.mean() / solved.mean()
        heaviest = energy_R.sort(descending=True).values[: max(1, len(energy_R) // 100)].sum() / energy_R.sum()
        print(
            f"seed {seed}: {len(energy_R)} rollouts, pass rate {pool.reward_R.mean():.3f}, a failed one has "
            f"{times:.1f} times the energy of a solved one, the heaviest hundredth has {heaviest:.0%} of all",
            flush=True,
        )
        for cap in CAPS:
            parts = [part.double().view(-1, 2).sum(1) for part in squares(pool, energy_R.float(), cap, seed)]
            sums.setdefault(cap, []).append(torch.stack(parts))
    print(f"{Path(options.model).name}; {platform.machine()} CPU")
    print(f"{'cap':>6} {'probe':>24} {'constant':>24} {'probe over no cap':>24}")
    whole = {cap: torch.stack(parts).sum(dim=0) for cap, parts in sums.items()}
    base = whole[None]
    for cap, (probe_P, constant_P) in whole.items():
        cells = (ratio(probe_P, base[1]), ratio(constant_P, base[1]), ratio(probe_P, base[0]))
        print(f"{'none' if cap is None else f'{cap:g}':>6} " + " ".join(f"{cell:>24}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
