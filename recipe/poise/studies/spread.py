"""How unequal a task's prompts are for a policy: pass rates, lengths, and where the baseline of least variance lies.

    python -m recipe.poise.studies.spread --model assets/model --data assets/val.parquet --max-tokens 192

Each prompt is answered k times at temperature 1. Energy e of a rollout: that of `recipe.poise.capture.energy`, from
the chosen tokens alone; the baseline of least variance of a prompt is b* = E[e r] / E[e].
Shapes: P prompts, k rollouts of each.
"""

import argparse
import json
import math
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from recipe.poise.capture.energy import DEFAULT_FORM
from recipe.poise.evaluate.models import resolve
from recipe.poise.evaluate.scoring import load_reward
from recipe.poise.studies.rollout_pool import REWARD, Policy, _score

LONG = 150  # tokens


def spread(reward_PK: Tensor, energy_PK: Tensor, length_PK: Tensor, limit: int) -> dict[str, float | None]:
    """Figures of one group of prompts, each (P, k) float64.

    Two standard deviations over prompts: of avg@k as it is, and of the true rate, with the noise of k draws taken off
    (rates: by each prompt's own variance; b*: as the covariance of its estimates from even and from odd draws).
    None for what is not defined: a mean over no rollout, a spread of one prompt.
    """
    k = reward_PK.shape[1]
    rate_P = reward_PK.mean(1)
    noise = float((rate_P * (1 - rate_P)).mean()) / (k - 1)
    right, failed = reward_PK > 0.5, reward_PK <= 0.5
    best_P = weighted_rate(reward_PK, energy_PK)
    halves_2P = torch.stack([weighted_rate(reward_PK[:, i::2], energy_PK[:, i::2]) for i in (0, 1)])
    found = {
        "prompts": len(rate_P),
        "rate": float(rate_P.mean()),
        "rate_sd": float(rate_P.std()),
        "rate_sd_true": max(0.0, float(rate_P.var()) - noise) ** 0.5,
        "below_0.1": float((rate_P < 0.1).double().mean()),
        "above_0.9": float((rate_P > 0.9).double().mean()),
        "length": float(length_PK.mean()),
        "length_right": float(length_PK[right].mean()),
        "length_failed": float(length_PK[failed].mean()),
        "long": float((length_PK > LONG).double().mean()),
        "at_limit": float((length_PK >= limit).double().mean()),
        "energy_right": float(energy_PK[right].mean()),
        "energy_failed": float(energy_PK[failed].mean()),
        "energy_ratio": float(energy_PK[failed].mean() / energy_PK[right].mean()),
        "best": float((energy_PK * reward_PK).sum() / energy_PK.sum()),
        "best_sd": float(best_P.std()),
        "best_sd_true": max(0.0, float(torch.cov(halves_2P)[0, 1])) ** 0.5,
    }
    if len(rate_P) < 2:
        found |= dict.fromkeys(("rate_sd", "rate_sd_true", "best_sd", "best_sd_true"), math.nan)
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def weighted_rate(reward_PK: Tensor, energy_PK: Tensor) -> Tensor:
    """(P,) estimates of b*; a prompt whose rollouts have no energy at all has its rate."""
    energy_PK = energy_PK + 1e-9
    return (energy_PK * reward_PK).sum(1) / energy_PK.sum(1)


@torch.no_grad()
def rollouts(policy: Policy, rows: list[dict], k: int, limit: int, reward: str) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, energies and lengths in tokens of k responses to each row, (P, k) float64."""
    tokens = [
        policy.tokenizer.apply_chat_template(list(row["prompt"]), add_generation_prompt=True, return_dict=False)
        for row in rows
    ]
    ids, lengths = policy.sample(tokens, k, limit, batch=512)
    texts = policy.tokenizer.batch_decode(
        [row[-length:] for row, length in zip(ids, lengths, strict=True)], skip_special_tokens=True
    )
    rewards = _score(load_reward(reward), [row for row in rows for _ in range(k)], texts)
    energies: list[float] = []
    for start in range(0, len(ids), 256):
        part, part_lengths = ids[start : start + 256], lengths[start : start + 256]
        log_prob_RL, _ = policy.log_probs(*policy.batch(part))
        square_RL = DEFAULT_FORM.of_tokens(log_prob_RL)
        for square_L, row, length in zip(square_RL, part, part_lengths, strict=True):
            square_Y = square_L[len(row) - length - 1 : len(row) - 1]
            energies.append(float(DEFAULT_FORM.of_response(square_Y.sum(), square_Y.sqrt().sum())))
    return tuple(torch.tensor(column).double().view(-1, k) for column in (rewards, energies, lengths))  # type: ignore


COLUMNS = {
    "prompts": ("prompts", "d"),
    "rate": ("avg@k", ".3f"),
    "rate_sd": ("SD", ".3f"),
    "rate_sd_true": ("SD, noise off", ".3f"),
    "below_0.1": ("< 0.1", ".2f"),
    "above_0.9": ("> 0.9", ".2f"),
    "length": ("tokens", ".0f"),
    "length_right": ("right", ".0f"),
    "length_failed": ("failed", ".0f"),
    "long": (f"> {LONG}", ".3f"),
    "at_limit": ("at the limit", ".3f"),
    "energy_right": ("energy, right", ".2f"),
    "energy_failed": ("failed ", ".2f"),
    "energy_ratio": ("ratio", ".2f"),
    "best": ("b*", ".3f"),
    "best_sd": ("SD of b*", ".3f"),
    "best_sd_true": ("noise off", ".3f"),
}


def table(found: dict[str, dict[str, float | None]]) -> str:
    """Markdown, a row per group."""
    lines = [
        "| " + " | ".join(["", *(name.strip() for name, _ in COLUMNS.values())]) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for group, figures in found.items():
        values = ["-" if figures[key] is None else format(figures[key], form) for key, (_, form) in COLUMNS.items()]
        lines.append("| " + " | ".join([group, *values]) + " |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", required=True, help="model folder or checkpoint of verl")
    options.add_argument("--data", type=Path, required=True, help="parquet in verl's schema")
    options.add_argument("--reward", default=REWARD)
    options.add_argument("--prompts", type=int, help="the first so many (default: all)")
    options.add_argument("--k", type=int, default=32, help="rollouts of a prompt")
    options.add_argument("--max-tokens", type=int, default=192, help="of a response")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, help="JSON file for the figures")
    return options


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    torch.manual_seed(args.seed)
    rows = pd.read_parquet(args.data).iloc[: args.prompts].to_dict("records")
    policy = Policy(str(resolve(args.model).path))
    reward_PK, energy_PK, length_PK = rollouts(policy, rows, args.k, args.max_tokens, args.reward)
    family_P = [row["data_source"] for row in rows]
    groups = {"all": torch.ones(len(rows), dtype=torch.bool)}
    groups |= {name: torch.tensor([family == name for family in family_P]) for name in sorted(set(family_P))}
    found = {
        name: spread(reward_PK[chosen], energy_PK[chosen], length_PK[chosen], args.max_tokens)
        for name, chosen in groups.items()
    }
    print(f"avg@{args.k}, seed {args.seed}\n{table(found)}")
    if args.out:
        args.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
