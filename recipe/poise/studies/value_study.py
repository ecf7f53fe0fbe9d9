"""How well the expected reward of unseen prompts is estimated, and at what cost: the probe, a policy-sized value
model, the mean of other rollouts' rewards.

    python -m recipe.poise.studies.value_study --model assets/s{seed}/model --data assets/s{seed}/train.parquet \\
        --out DIR

Per seed: a fixed policy answers the fit prompts twice, as in a POISE step. The probe is fitted on these rows; verl's
own value model is trained on them, as PPO trains it (`value_model`), with several learning rates and passes, of which
the best on a tenth of the fit prompts (which it does not learn from) is shown beside PPO's own setting. Both are then
asked about other prompts, whose pass rate avg@k comes from k further rollouts that no estimate has seen. A seed that is
done is not repeated.
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

from probe import FeatureLayout
from probe.estimators import make_estimator
from probe.metrics import calibration_curve
from probe.pairing import sibling_mean
from probe.settings import ProbeSettings
from recipe.poise.evaluate.models import resolve
from recipe.poise.evaluate.settings import EvaluationError
from recipe.poise.studies.rollout_pool import REWARD, Policy, Pool, make_pool, prompt_count
from recipe.poise.studies.value_model import ValueModel, critic_config
from recipe.poise.studies.value_report import write_study
from recipe.poise.studies.value_scores import noise_ceiling, score

PAIR = 2  # rollouts of a fit prompt
OTHERS = 8  # rollouts of a held-out prompt that estimates may look at


def split_prompts(available: int, fit: int, held_out: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of the fit and of the held-out prompts.

    Raises:
        ValueError: there are too few.
    """
    if fit + held_out > available:
        raise ValueError(f"{fit} fit and {held_out} held-out prompts are wanted, the file has {available}")
    if fit < 20 or held_out < 3:
        raise ValueError("at least 20 fit prompts (a tenth selects the value model) and 3 held-out ones are needed")
    order = np.random.default_rng(seed).permutation(available)
    return order[:fit], order[fit : fit + held_out]


def held_out_rewards(pool: Pool, k: int) -> tuple[Tensor, Tensor]:
    """(P, OTHERS) rewards that estimates may use, and (P,) the pass rate avg@k of the other rollouts."""
    reward_PN = pool.reward_R.view(-1, OTHERS + k)
    return reward_PN[:, :OTHERS], reward_PN[:, OTHERS:].mean(dim=1)


def fit_probe(fit: Pool, held: Pool, names: tuple[str, ...], seed: int, capture_seconds: float) -> dict:
    """A probe on some of the features: predictions for the held-out rows, and its cost."""
    columns = [fit.layout.slices[name] for name in names]
    index = torch.cat([torch.arange(part.start, part.stop) for part in columns])
    sizes = tuple(part.stop - part.start for part in columns)
    probe = make_estimator(ProbeSettings(), FeatureLayout(names, sizes), seed=seed)
    start = time.perf_counter()
    # what depends on the rollout learns the sibling's reward; a prompt's state alone may learn every reward
    target = sibling_mean(fit.reward_R, fit.prompt_R) if "response" in names else fit.reward_R
    probe.fit(fit.feature_RF[:, index], target, fit.prompt_R)
    fitted = time.perf_counter()
    value_R = probe.predict(held.feature_RF[:, index])
    return {
        "value": value_R.view(len(held.reward_R) // held.n, -1)[:, :OTHERS],
        "parameters": sum(getattr(probe, key).numel() for key in ("weight_", "mean_")) + 1,
        "seconds": capture_seconds + fitted - start,
        "seconds_predict": time.perf_counter() - fitted,
    }


def train_value_models(args, model: str, fit: Pool, held: Pool, seed: int) -> tuple[dict, dict, list[dict]]:
    """PPO's own setting (one pass), the best on the tenth of the fit prompts, and all that was tried."""
    count = len(fit.reward_R) // PAIR
    chooses_R = fit.prompt_R >= count - max(2, count // 10)
    train, chooses = (~chooses_R).nonzero().squeeze(1), chooses_R.nonzero().squeeze(1)
    every = torch.arange(0, len(held.reward_R), held.n)  # a prompt's value is the same for all its rollouts
    own, best, tried = None, None, []
    for rate in [None, *args.learning_rates]:
        config = critic_config(args.config_name, model, rate, args.overrides)
        value_model, generator = ValueModel(config, args.rows_per_update, seed), torch.Generator().manual_seed(seed)
        for epoch in range(1, (1 if rate is None else args.epochs) + 1):
            loss = value_model.epoch(fit, train, generator)
            error = float((value_model.predict(fit, chooses) - fit.reward_R[chooses]).square().mean())
            start = time.perf_counter()
            value_P = value_model.predict(held, every)
            found = {
                "value": value_P.unsqueeze(1),
                "parameters": value_model.parameters,
                "seconds": value_model.seconds_train,
                "seconds_predict": (time.perf_counter() - start) * len(held.reward_R) / len(every),
                "learning_rate": config.optim.lr,
                "epochs": epoch,
                "selection_error": error,
            }
            print(
                f"  value model, lr {config.optim.lr:g}, pass {epoch}: loss {loss:.4f}, selection MSE {error:.4f}, "
                f"{value_model.seconds_train:.0f} s",
                flush=True,
            )
            tried.append({key: value for key, value in found.items() if key != "value"})
            own = own or found
            best = found if best is None or error < best["selection_error"] else best
        value_model.close()
    return own, best, tried  # type: ignore[return-value]


def study_seed(args, seed: int) -> dict:
    """All estimators of one seed."""
    model, data = str(resolve(args.model.format(seed=seed)).path), Path(args.data.format(seed=seed))
    fit_prompts, held_prompts = split_prompts(prompt_count(data), args.fit_prompts, args.held_out, seed)
    torch.manual_seed(seed)
    policy = Policy(model, args.block, args.num_tokens)
    fit = make_pool(policy, data, fit_prompts, PAIR, args.max_tokens, args.reward)
    capture_seconds = policy.capture_seconds
    held = make_pool(policy, data, held_prompts, OTHERS + args.k, args.max_tokens, args.reward)
    reward_PO, rate_P = held_out_rewards(held, args.k)
    print(
        f"seed {seed}: {len(fit.reward_R)} rows of {args.fit_prompts} prompts to learn from; {args.held_out} held-out "
        f"prompts, avg@{args.k} {rate_P.mean():.3f}",
        flush=True,
    )
    probe = fit_probe(fit, held, fit.layout.names, seed, capture_seconds)
    prompt_probe = fit_probe(fit, held, ("prompt",), seed, capture_seconds)
    own, best, tried = train_value_models(args, model, fit, held, seed)
    nothing: dict = {"parameters": 0, "seconds": 0.0, "seconds_predict": 0.0}
    group = torch.arange(len(rate_P)).repeat_interleave(OTHERS)
    others_PO = sibling_mean(reward_PO.flatten(), group).view_as(reward_PO)
    constant = fit.reward_R.mean()
    # rollouts: of a held-out prompt, that an estimate looks at
    estimates = {
        "probe": probe | {"rollouts": 1},
        "probe, prompt's state": prompt_probe | {"rollouts": 0},
        "value model, tuned": best | {"rollouts": 0},
        "value model, PPO's setting": own | {"rollouts": 0},
        "RLOO mean, n=2": nothing | {"value": reward_PO, "rollouts": 1},
        "RLOO mean, n=8": nothing | {"value": others_PO, "rollouts": OTHERS - 1},
        "constant": nothing | {"value": constant.expand(len(rate_P), 1), "rollouts": 0},
    }
    results = {}
    for name, entry in estimates.items():
        value_PM = entry.pop("value")
        if name == "probe, prompt's state":
            value_PM = value_PM[:, :1]
        curve = calibration_curve(value_PM.flatten(), rate_P.repeat_interleave(value_PM.shape[1]))
        results[name] = entry | score(value_PM, rate_P, constant)
        results[name]["calibration"] = [curve.value_B.tolist(), curve.target_B.tolist()]
    return {
        "seed": seed,
        "pass_rate": float(rate_P.mean()),
        "ceiling": noise_ceiling(held.reward_R.view(-1, held.n)[:, OTHERS:]),
        "results": results,
        "tried": tried,
    }


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    keep = {key: value for key, value in vars(args).items() if key not in ("seeds", "out")}
    args.out.mkdir(parents=True, exist_ok=True)
    seeds = []
    try:
        for number, seed in enumerate(args.seeds, 1):
            file = args.out / f"value_study_s{seed}.json"
            if file.is_file() and (done := json.loads(file.read_text()))["settings"] == keep:
                print(f"[{number}/{len(args.seeds)}] seed {seed}: done before ({file})", flush=True)
                seeds.append(done)
                continue
            start = time.perf_counter()
            found = study_seed(args, seed)
            found |= {"settings": keep, "minutes": (time.perf_counter() - start) / 60}
            file.write_text(json.dumps(found, indent=2))
            seeds.append(found)
            print(f"[{number}/{len(args.seeds)}] seed {seed}: {found['minutes']:.1f} min", flush=True)
    except (ValueError, EvaluationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    where = (
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    print((write_study(seeds, args.k, where, args.out)).read_text())
    return 0


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", required=True, help="model folder or checkpoint of verl; {seed}: the seed")
    options.add_argument("--data", required=True, help="parquet in verl's schema; {seed} stands for the seed")
    options.add_argument("--reward", default=REWARD)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--fit-prompts", type=int, default=1024)
    options.add_argument("--held-out", type=int, default=256, help="prompts")
    options.add_argument("--k", type=int, default=8, help="rollouts of the pass rate avg@k")
    options.add_argument("--max-tokens", type=int, default=64)
    options.add_argument("--block", type=float, default=19 / 36)
    options.add_argument("--num-tokens", type=int, default=10)
    options.add_argument("--config-name", default="poise_quickstart", help="config whose critic (+method=ppo) is built")
    options.add_argument("--learning-rates", type=float, nargs="*", default=[3e-4, 1e-3], help="beside the config's")
    options.add_argument("--epochs", type=int, default=3, help="passes over the rows with each of these")
    options.add_argument("--rows-per-update", type=int, default=256)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("overrides", nargs="*", help="Hydra overrides of the critic's config")
    return options


if __name__ == "__main__":
    sys.exit(main())
