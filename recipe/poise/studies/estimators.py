"""The estimators that the gradient study compares, and what each adds to a batch per prompt.

Shapes: P prompts, N rollouts each, R = P N rows, E earlier rows, O groups per prompt, K directions, T response tokens.
"""

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from recipe.poise.studies import advantages as adv
from recipe.poise.studies.energies import Tokens
from recipe.poise.studies.gradient_statistics import Groups, Moments, moments, quotient
from recipe.poise.studies.rollout_pool import Pool
from recipe.poise.studies.scores import Scores, row_scores

AGGREGATIONS = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum")  # verl's actor.loss_agg_mode
TRUE = "true |s|^2"
# what others are compared with, by the key of the ratio
RLOO_8 = "RLOO, n=8"
COMPARED = {
    "over_rloo": RLOO_8,
    "over_constant": "energy-weighted constant, n=1",
    "over_constant_2": "energy-weighted constant, n=2",
    "over_weighted": "prompt probe, fresh, weighted regression, n=1",
}
SEARCH_ROWS = 1024  # of a step, where energies are compared: the fit is the same, in a tenth of the time
SCALE, OWN, SLIGHT = "no: scale", "no: own reward", "but for 1 / batch"


@dataclass(frozen=True)
class Material:
    """What estimators are made of. energy, earlier_energy: by name, of rows as the loss counts them (`TRUE` among
    those of the pool). scores: of rows; otb: of rows with verl's token advantages."""

    earlier: Pool
    pool: Pool
    scores: Scores
    otb: Scores
    energy: dict[str, Tensor]
    earlier_energy: dict[str, Tensor]
    mode: str

    @property
    def true_R(self) -> Tensor:
        return self.energy[TRUE]


@dataclass(frozen=True)
class Method:
    """Advantages of an estimator: one number per row, or None for those that are in `Material.otb` already.

    unbiased: "yes", or why not. kept_R: rows that enter the gradient; others are only paid for. shown: whether its mean
    is the policy gradient, so that variances can be compared; else only variances over signals can.
    """

    name: str
    n: int
    unbiased: str
    advantage_R: Tensor | None
    kept_R: Tensor | None = None

    @property
    def shown(self) -> bool:
        return self.unbiased in ("yes", SLIGHT)


def gather(
    args: argparse.Namespace, path: str, earlier: Pool, earlier_tokens: Tokens, pool: Pool, tokens: Tokens, seed: int
) -> Material:
    """Scores of the pool's rows and energies of all, as `args.loss_agg_mode` counts them.

    Raises:
        ValueError: `args.energy` is no energy.
    """
    if args.energy not in tokens.energy:
        raise ValueError(f"--energy {args.energy!r}: want one of {', '.join(tokens.energy)}")
    token_RT = adv.token_baseline(pool.reward_R, pool.n, tokens.log_prob_RT, tokens.sum_pi_squared_RT, tokens.mask_RT)
    weights = torch.stack([torch.ones_like(token_RT), token_RT])
    plain, otb = row_scores(path, pool.ids, weights, pool.length_R, args.directions, seed)
    factor_R, factor_E = (row_factor(args.loss_agg_mode, x.length_R) for x in (pool, earlier))
    plain, otb = plain.scaled(factor_R), otb.scaled(factor_R)
    return Material(
        earlier,
        pool,
        plain,
        otb,
        {name: x_R * factor_R.square() for name, x_R in tokens.energy.items()} | {TRUE: plain.norm_R},
        {name: x_E * factor_E.square() for name, x_E in earlier_tokens.energy.items()},
        args.loss_agg_mode,
    )


def row_factor(mode: str, length_R: Tensor) -> Tensor:
    """What a row's score is multiplied by in the loss, but for the batch's denominator."""
    return 1.0 / length_R.double() if mode == "seq-mean-token-mean" else torch.ones(len(length_R)).double()


def methods(material: Material, energy: str, args: argparse.Namespace, seed: int, guards: dict) -> Iterator[Method]:
    """All that are compared; `guards` is filled with what the guard of each probe weighs."""
    pool, every = material.pool, material.pool.n
    reward_R, length_R, weight_R = pool.reward_R.double(), pool.length_R.double(), material.energy[energy]
    equal_R = torch.ones_like(weight_R)
    yield Method("no baseline, n=1", 1, "yes", reward_R)
    yield Method("batch mean, n=1", 1, SLIGHT, adv.constant(reward_R, every, equal_R))
    yield Method("RLOO, n=2", 2, "yes", adv.rloo(reward_R, 2))
    yield Method(RLOO_8, every, "yes", adv.rloo(reward_R, every))
    yield Method("GRPO, n=8", every, SCALE, adv.grpo(reward_R, every))
    yield Method("DAPO, n=8", every, SCALE, adv.grpo(reward_R, every), adv.kept_by_dapo(reward_R, every))
    yield Method("OPO as published, n=8", every, OWN, adv.opo(reward_R, length_R, every))
    yield Method("OPO without itself, n=8", every, "yes", adv.rloo(reward_R, every, length_R))
    yield Method("OTB (verl), n=8", every, OWN, None)
    yield Method("energy-weighted RLOO, n=8", every, "yes", adv.rloo(reward_R, every, weight_R))
    for n in (1, 2):
        yield Method(f"energy-weighted constant, n={n}", n, "yes", adv.constant(reward_R, every, weight_R))
    yield Method("constant by true |s|^2, n=1", 1, "yes", adv.constant(reward_R, every, material.true_R))
    forms = [
        (f"POISE, {fit}, {'energy' if weighted else 'uniform'}, n=2", 2, adv.ProbeForm(weighted, fit))
        for weighted in (False, True)
        for fit in ("lagged", "fresh")
    ]
    forms.append(("POISE, fresh, energy, n=8", every, adv.ProbeForm(True, "fresh")))
    forms += [
        (f"prompt probe, fresh, {'energy' if weighted else 'uniform'}, n=1", 1, adv.ProbeForm(weighted, "fresh", True))
        for weighted in (False, True)
    ]
    forms.append(("POISE, fresh, weighted regression, n=2", 2, adv.ProbeForm(True, "fresh", where="fit")))
    forms.append(("prompt probe, fresh, weighted regression, n=1", 1, adv.ProbeForm(True, "fresh", True, "fit")))
    for name, n, form in forms:
        advantage_R, guards[name] = by_probe(material, form, energy, n, args.rollouts, args.weight_cap, seed)
        yield Method(name, n, "yes", advantage_R)
    yield Method("oracle: mean of 7 others, n=2", 2, "yes", adv.rloo(reward_R, every))
    yield Method("oracle: energy-weighted mean of 7 others, n=2", 2, "yes", adv.rloo(reward_R, every, weight_R))
    yield Method("oracle: true-weighted mean of 7 others, n=1", 1, "yes", adv.rloo(reward_R, every, material.true_R))


def by_probe(
    material: Material, form: adv.ProbeForm, energy: str, n: int, rows: int, cap: float | None, seed: int
) -> tuple[Tensor, dict[str, float]]:
    """Advantages (R,) by one form of the probe in steps of `rows` rows, and what its guard weighs."""
    run = adv.ProbeRun(form, material.earlier, material.earlier_energy[energy], n, rows, cap, seed)
    return run.advantages(material.pool, material.energy[energy])[0].double(), run.guard


def groups(material: Material, method: Method) -> Groups:
    """What the method's groups add to a batch."""
    pool = material.pool
    scores = material.otb if method.advantage_R is None else material.scores
    rows = len(pool.reward_R)
    advantage_R = torch.ones(rows).double() if method.advantage_R is None else method.advantage_R.double()
    kept_R = torch.ones(rows).double() if method.kept_R is None else method.kept_R.double()
    advantage_R = advantage_R * kept_R
    shape = (rows // pool.n, pool.n // method.n, method.n)
    moved_RK = scores.projected_RK * advantage_R.unsqueeze(1)
    total_POK = moved_RK.view(*shape, -1).sum(2)
    # norms of rows are exact, products of two rows by projection
    exact_R = scores.norm_R * advantage_R.square() - moved_RK.square().mean(1)
    length_R = pool.length_R.double()
    counted_R = (length_R if material.mode == "token-mean" else torch.ones_like(length_R)) * kept_R
    return Groups(
        total_POK.numpy(),
        (total_POK.square().mean(2) + exact_R.view(shape).sum(2)).numpy(),
        counted_R.view(shape).sum(2).numpy(),
        length_R.view(shape).sum(2).numpy(),
    )


def compare(
    material: Material, args: argparse.Namespace, drawn_BP: np.ndarray, seed: int
) -> tuple[dict[str, tuple[Method, Moments]], dict]:
    """Moments of every method, and what guards weigh."""
    guards: dict[str, dict[str, float]] = {}
    found = {
        method.name: (method, moments(groups(material, method), drawn_BP))
        for method in methods(material, args.energy, args, seed, guards)
    }
    return found, guards


def numbers(found: dict[str, tuple[Method, Moments]], tokens: float) -> dict[str, dict]:
    """As JSON has them: variance, signal and their ratio in batches of `tokens`; beside those of `COMPARED`."""
    out = {}
    for name, (method, item) in found.items():
        entry: dict = {"n": method.n, "unbiased": method.unbiased}
        entry |= {key: asdict(part) for key, part in item.intervals(tokens).items()}
        for key, other in COMPARED.items():
            beside = found[other][1]
            if not method.shown:  # all with the policy gradient have the same signal: take it where it is known best
                known = found[COMPARED["over_constant"]][1]
                beside = replace(beside, signal=known.signal, signals=known.signals)
            entry[key] = asdict(quotient(item, beside, relative=not method.shown))
        out[name] = entry
    return out


def search(material: Material, args: argparse.Namespace, drawn_BP: np.ndarray, seed: int) -> dict[str, dict]:
    """What each candidate for the norm of a score is worth: correlation of logarithms with it, the constant that it
    gives, and the variance over RLOO's of the constant, the prompt probe and POISE (fresh, in large steps) with it."""
    pool, true_R = material.pool, material.true_R
    reward_R = pool.reward_R.double()
    base = moments(groups(material, Method(RLOO_8, pool.n, "yes", adv.rloo(reward_R, pool.n))), drawn_BP)

    def over_rloo(n: int, advantage_R: Tensor) -> dict[str, float]:
        item = moments(groups(material, Method("", n, "yes", advantage_R)), drawn_BP)
        return asdict(quotient(item, base, relative=False))

    out = {}
    for name, weight_R in material.energy.items():
        known_R = (weight_R > 0) & (true_R > 0)
        logs = np.stack([weight_R[known_R].log().numpy(), true_R[known_R].log().numpy()])
        entry: dict = {
            "correlation": float(np.corrcoef(logs)[0, 1]) if logs.std(1).min() > 0 else 0.0,
            "constant": float((weight_R * reward_R).sum() / weight_R.sum()),
            "over_rloo_constant": over_rloo(1, adv.constant(reward_R, pool.n, weight_R)),
        }
        if name in material.earlier_energy:
            for key, n, prompt_only in (("over_rloo_prompt_probe", 1, True), ("over_rloo_poise", 2, False)):
                form = adv.ProbeForm(True, "fresh", prompt_only)
                entry[key] = over_rloo(n, by_probe(material, form, name, n, SEARCH_ROWS, args.weight_cap, seed)[0])
        out[name] = entry
    return out
