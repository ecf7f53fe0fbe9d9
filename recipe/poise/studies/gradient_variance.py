"""Variance of the policy gradient at fixed checkpoints, by estimator, at equal generated tokens.

    python -m recipe.poise.studies.gradient_variance --model start=assets/s{seed}/model \\
        middle=runs/poise_s{seed}/checkpoints/global_step_8 --data assets/s{seed}/train.parquet --seeds 0 1 2 --out DIR

A model is a folder in Hugging Face's format or a checkpoint of verl (merged on the way). All estimators stand on the
same prompts and rollouts, and one group of rollouts is one sample (`gradient_statistics`): ratios of two estimators
have paired intervals. Scores are exact in their norms and projected on random signs elsewhere (`scores`). The probe is
the project's, with its guard, after steps of a training's size on other prompts (`advantages`); these are of the same
checkpoint, so "lagged" here lags in rows, not in policies.

Beside the estimators: what may stand for the norm of a score (`energies`), and what values could gain (`value_worth`).
GRPO and DAPO divide by a group's deviation, and GRPO, DAPO, OPO and OTB have a row's own reward in its baseline: their
gradients are others, and they are compared by variance over signal. A checkpoint that is done is not repeated.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recipe.poise.evaluate.models import resolve
from recipe.poise.evaluate.settings import EvaluationError
from recipe.poise.studies import estimators as menu
from recipe.poise.studies.energies import DEFAULT, Observer
from recipe.poise.studies.gradient_report import write
from recipe.poise.studies.gradient_statistics import draw_prompts
from recipe.poise.studies.rollout_pool import REWARD, Policy, make_pool, prompt_count
from recipe.poise.studies.value_worth import worth

PER_PROMPT = 8  # rollouts of a prompt of the study
EARLIER = 2  # rollouts of a prompt of the earlier steps
LEAST = 4  # prompts


def split_prompts(available: int, fit: int, studied: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of the earlier steps' prompts, and of the study's (fewer where the file has no more).

    Raises:
        ValueError: none would be left for one of them.
    """
    if available < fit + LEAST or fit < LEAST or studied < LEAST:
        raise ValueError(
            f"the file has {available} prompts: --fit-prompts {fit} must leave some; at least {LEAST} each are needed"
        )
    order = np.random.default_rng(seed).permutation(available)
    return np.sort(order[:fit]), np.sort(order[fit : fit + studied])


def study_checkpoint(args: argparse.Namespace, model: str, data: Path, seed: int) -> dict:
    """All numbers of one checkpoint, as JSON has them."""
    seconds: dict[str, float] = {}
    start = time.perf_counter()

    def lap(name: str) -> None:
        seconds[name] = time.perf_counter() - start - sum(seconds.values())
        print(f"  {name}: {seconds[name]:.0f} s", flush=True)

    path = str(resolve(model).path)
    fit_prompts, prompts = split_prompts(prompt_count(data), args.fit_prompts, args.prompts, seed)
    torch.manual_seed(seed)
    policy = Policy(path, args.block, args.num_tokens)
    observer = Observer(policy, args.max_tokens)
    limits = (args.max_tokens, args.reward, observer.see, args.sample_on)
    earlier = make_pool(policy, data, fit_prompts, EARLIER, *limits)
    earlier_tokens = observer.tokens()
    pool = make_pool(policy, data, prompts, PER_PROMPT, *limits)
    tokens = observer.tokens()
    lap("sampling")
    material = menu.gather(args, path, earlier, earlier_tokens, pool, tokens, seed)
    lap("scores")
    drawn_BP = draw_prompts(len(prompts), np.random.default_rng(seed))
    budget = args.rollouts * float(pool.length_R.float().mean())
    found, guards = menu.compare(material, args, drawn_BP, seed)
    results = menu.numbers(found, budget)
    lap("estimators")
    energies = menu.search(material, args, drawn_BP, seed)
    lap("energies")
    uniform_R, true_R = torch.ones_like(material.true_R), material.true_R
    weight_E, weight_R = material.earlier_energy[args.energy], material.energy[args.energy]
    worths = {
        "equal": worth(earlier, pool, None, uniform_R, uniform_R, drawn_BP, seed),
        "energy": worth(earlier, pool, weight_E, weight_R, true_R, drawn_BP, seed),
    }
    lap("values")
    return {
        "facts": _facts(pool.reward_R, pool.length_R, true_R, len(prompts), budget)
        | {"guards": guards, "seconds": seconds},
        "results": results,
        "energies": energies,
        "worth": {
            name: {source: [share.value, share.low, share.high] for source, share in found.items()}
            for name, found in worths.items()
        },
        "minutes": (time.perf_counter() - start) / 60,
    }


def _facts(reward_R: Tensor, length_R: Tensor, true_R: Tensor, prompts: int, budget: float) -> dict:
    """What kind of checkpoint it is."""
    right_R = reward_R > 0.5
    mixed = (reward_R.view(-1, PER_PROMPT).std(dim=1) > 0).float().mean()
    both = bool(right_R.any() and (~right_R).any())
    return {
        "prompts": prompts,
        "pass_rate": float(reward_R.mean()),
        "mixed_groups": float(mixed),
        "length": float(length_R.float().mean()),
        "longest": int(length_R.max()),
        "energy_of_wrong_over_right": float(true_R[~right_R].mean() / true_R[right_R].mean()) if both else None,
        "tokens_per_batch": budget,
    }


def checkpoints(args: argparse.Namespace) -> list[tuple[str, str, Path, int]]:
    """(label, model, data, seed) of each checkpoint; a model is given as PATH or LABEL=PATH.

    Raises:
        ValueError: a label twice.
    """
    named = [entry.partition("=")[::2] if "=" in entry else (Path(entry).name, entry) for entry in args.model]
    labels = [label for label, _ in named]
    if len(set(labels)) < len(labels):
        raise ValueError(f"--model has a name twice ({', '.join(labels)}): write NAME=PATH")
    return [
        (label, model.format(seed=seed), Path(args.data.format(seed=seed)), seed)
        for label, model in named
        for seed in args.seeds
    ]


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    keep = {key: value for key, value in vars(args).items() if key not in ("seeds", "out", "model")}
    args.out.mkdir(parents=True, exist_ok=True)
    done = []
    try:
        every = checkpoints(args)
        for number, (label, model, data, seed) in enumerate(every, 1):
            said = f"[{number}/{len(every)}] {label}, seed {seed}"
            file = args.out / f"gradient_variance_{label}_s{seed}.json"
            settings = keep | {"model": model}
            if file.is_file() and (found := json.loads(file.read_text()))["settings"] == settings:
                print(f"{said}: done before ({file})", flush=True)
            else:
                found = {"label": label, "seed": seed, "settings": settings} | study_checkpoint(args, model, data, seed)
                file.write_text(json.dumps(found, indent=1))
                print(f"{said}: pass rate {found['facts']['pass_rate']:.3f}, {found['minutes']:.1f} min", flush=True)
            done.append(found)
    except (ValueError, EvaluationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    where = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    path = write(done, where, args.out)
    print(path.read_text())
    print(f"report: {path}")
    return 0


def _device(name: str) -> str:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise argparse.ArgumentTypeError(f"{name!r} is no device that torch has here ({reason})") from error
    return name


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--model", nargs="+", required=True, help="[NAME=]model folder or checkpoint of verl; {seed}: the seed"
    )
    options.add_argument("--data", required=True, help="parquet in verl's schema; {seed} stands for the seed")
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--reward", default=REWARD)
    options.add_argument("--prompts", type=int, default=1024, help=f"with {PER_PROMPT} rollouts each")
    options.add_argument("--fit-prompts", type=int, default=1024, help=f"others, with {EARLIER}, for the probe")
    options.add_argument("--rollouts", type=int, default=64, help="of a step, and of mean length in a batch")
    options.add_argument("--max-tokens", type=int, default=64)
    options.add_argument(
        "--sample-on", type=_device, metavar="DEVICE", help="cuda: rollouts are sampled there, the rest stays here"
    )
    options.add_argument("--directions", type=int, default=48)
    options.add_argument("--energy", default=DEFAULT, help="what stands for the norm of a score (see the report)")
    options.add_argument("--weight-cap", type=float, help="as poise.weight_cap")
    options.add_argument("--loss-agg-mode", choices=menu.AGGREGATIONS, default=menu.AGGREGATIONS[0])
    options.add_argument("--block", type=float, default=19 / 36)
    options.add_argument("--num-tokens", type=int, default=10)
    options.add_argument("--out", type=Path, required=True)
    return options


if __name__ == "__main__":
    sys.exit(main())
