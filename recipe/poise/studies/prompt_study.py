"""How well the pass rate of a prompt is known before it is asked, over a training run: the run's own prompt probe,
SPO's tracker, what the prompt's rollouts got when it was last asked; and what a choice by the probe would find.

    python -m recipe.poise.studies.prompt_study --run outputs/runs/compare/uneven/poise_select_s0 --out DIR

The run chose prompts (poise.select) and kept its rollouts (trainer.rollout_data_dir) and its checkpoints. At each of
these the policy answers k times: validation prompts, which it was never trained on, and prompts that it was asked
before. A tracker knows of the former what it knows of all prompts together; the last group's mean, nothing.

Shapes: P prompts, k rollouts of a pass rate.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from probe.metrics import calibration_curve
from probe.prompts import PromptProbe
from recipe.poise.choose.rule import Judgement
from recipe.poise.config import read_poise_config
from recipe.poise.evaluate.models import resolve
from recipe.poise.evaluate.settings import EvaluationError
from recipe.poise.studies.choice_worth import check_rollouts, choices
from recipe.poise.studies.prompt_report import write_report
from recipe.poise.studies.rollout_pool import REWARD, Policy, make_pool
from recipe.poise.studies.value_scores import noise_ceiling, score
from recipe.poise.trainer.spo import BetaTracker

PROBE, TRACKER, LAST = "prompt probe", "SPO's tracker", "last group's mean"
NEVER, BEFORE = "never asked", "asked before"
ONE_IN = (4, 16)  # candidates of a prompt that is asked


@dataclass(frozen=True)
class Group:
    """A prompt's rollouts in one step of the run."""

    step: int
    prompt: str
    rewards: list[float]


def groups(folder: Path) -> list[Group]:
    """What verl wrote of the run's rollouts, in the order of steps.

    Raises:
        ValueError: there are none.
    """
    files = sorted((path for path in folder.glob("*.jsonl") if path.stem.isdigit()), key=lambda path: int(path.stem))
    found = []
    for path in files:
        rewards: dict[str, list[float]] = {}
        for line in map(json.loads, path.read_text().splitlines()):
            rewards.setdefault(line["input"], []).append(float(line["score"]))
        found += [Group(int(path.stem), prompt, own) for prompt, own in rewards.items()]
    if not found:
        raise ValueError(f"{folder} holds no rollouts: give the run trainer.rollout_data_dir=DIR")
    return found


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """Steps that have a prompt probe, in order.

    Raises:
        ValueError: there are none.
    """
    folders = {int(path.name.rsplit("_", 1)[1]): path for path in (run / "checkpoints").glob("global_step_*")}
    found = [(step, folder) for step, folder in sorted(folders.items()) if (folder / "critic/prompts").is_dir()]
    if not found:
        raise ValueError(
            f"{run / 'checkpoints'} holds no checkpoint with a prompt probe: the run must choose prompts "
            "(poise.select.candidates=4), and keep its checkpoints (trainer.max_actor_ckpt_to_keep, "
            "trainer.max_critic_ckpt_to_keep)"
        )
    return found


def _only_file(config: DictConfig, key: str) -> Path:
    """Raises ValueError where the run's data are of several files: prompts of the others would be left out unsaid."""
    files = config.data[key]
    files = [files] if isinstance(files, str) else list(files)
    if len(files) != 1:
        raise ValueError(f"data.{key} names {len(files)} files; the study reads one: put their rows together")
    return Path(files[0])


def texts(policy: Policy, table: pd.DataFrame) -> list[str]:
    """Each prompt as verl writes it with the rollouts: its tokens, decoded without special ones."""
    ids = [
        policy.tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, return_dict=False)
        for prompt in table["prompt"]
    ]
    return policy.tokenizer.batch_decode(ids, skip_special_tokens=True)


def estimates(
    probe: PromptProbe, state_PD: Tensor, domain_P: Tensor, prompts: list[str], history: list[Group], asked: bool
) -> dict[str, Tensor]:
    """(P,) expected pass rates by name, from what the run knew."""
    tracker, last = BetaTracker(), {}
    for group in history:
        for reward in group.rewards:
            tracker.update(group.prompt, min(max(reward, 0.0), 1.0))
        last[group.prompt] = sum(group.rewards) / len(group.rewards)
    found = {
        PROBE: probe.judge(state_PD, domain_P)[:, 0].double().cpu(),
        TRACKER: torch.tensor([tracker.value(prompt) for prompt in prompts], dtype=torch.float64),
    }
    if asked:
        found[LAST] = torch.tensor([last[prompt] for prompt in prompts], dtype=torch.float64)
    return found


def study(config: DictConfig, run: Path, args: argparse.Namespace) -> Iterator[dict]:
    """A record per checkpoint and kind of prompts."""
    poise, rng = read_poise_config(config), np.random.default_rng(args.seed)
    history = groups(Path(OmegaConf.select(config, "trainer.rollout_data_dir") or run / "rollouts"))
    train, val = (_only_file(config, key) for key in ("train_files", "val_files"))
    found = checkpoints(run)
    for step, folder in tqdm(found, desc="checkpoints", disable=None):
        policy = Policy(str(resolve(str(folder)).path), poise.block, poise.num_tokens)
        hidden = policy.model.config.hidden_size
        n = config.actor_rollout_ref.rollout.n
        probe = PromptProbe(poise.probe, hidden, n, poise.weights, poise.weight_cap, "cpu", poise.seed)
        probe.load(folder / "critic/prompts")
        known = [group for group in history if group.step <= step]
        asked = {group.prompt for group in known}
        for kind, path in ((NEVER, val), (BEFORE, train)):
            table = pd.read_parquet(path)
            prompts = texts(policy, table)
            rows = np.array([row for row, text in enumerate(prompts) if (text in asked) == (kind == BEFORE)])
            if len(rows) < 3:
                raise ValueError(f"step {step}: {len(rows)} prompts {kind} in {path}; at least 3 are needed")
            rows = rng.permutation(rows)[: args.prompts]
            torch.manual_seed(args.seed)
            pool = make_pool(policy, path, rows, args.k, config.data.max_response_length, args.reward)
            rate_P = pool.reward_R.view(-1, args.k).double().mean(1)
            state_PD = pool.feature_RF[:: args.k, pool.layout.slices["prompt"]]
            domain_P = torch.tensor([poise.probe.domain_index(str(s)) for s in table["data_source"].iloc[rows]])
            said = estimates(probe, state_PD, domain_P, [prompts[row] for row in rows], known, kind == BEFORE)
            recent = [reward for group in known if group.step > step - args.recent for reward in group.rewards]
            constant = torch.tensor(recent, dtype=torch.float64).mean()
            results = {}
            for name, value_P in said.items():
                curve = calibration_curve(value_P.float(), rate_P.float(), args.bins)
                results[name] = score(value_P.unsqueeze(1), rate_P, constant) | {
                    "calibration": [curve.value_B.tolist(), curve.target_B.tolist()],
                    "calibration_error": float(curve.expected_error),
                }
            record = {
                "step": step,
                "prompts": kind,
                "count": len(rows),
                "pass_rate": float(rate_P.mean()),
                "ceiling": noise_ceiling(pool.reward_R.view(-1, args.k)),
                "results": results,
            }
            if kind == NEVER:  # of those that were asked the choice was made already
                judged, reward_PK = Judgement.of_table(probe.judge(state_PD, domain_P)), pool.reward_R.view(-1, args.k)
                record["choices"] = {
                    one_in: choices(judged, reward_PK, poise.select, one_in, args.seed) for one_in in ONE_IN
                }
            yield record


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        check_rollouts(args.k)
        runs = []
        for run in args.run:
            if not (run / "config.yaml").is_file():
                raise ValueError(f"{run} is no run folder of launch: it has no config.yaml")
            records = list(study(OmegaConf.load(run / "config.yaml"), run, args))  # type: ignore[arg-type]
            runs.append({"run": run.name, "records": records})
        print(write_report(runs, args.k, args.out).read_text())
    except (ValueError, EvaluationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--run", type=Path, nargs="+", required=True, help="folders of runs that chose prompts")
    options.add_argument("--prompts", type=int, default=96, help="of each kind, at each checkpoint")
    options.add_argument("--k", type=int, default=8, help="rollouts of the pass rate avg@k, 4 or more")
    options.add_argument("--recent", type=int, default=8, help="steps whose mean reward is the constant of the skill")
    options.add_argument("--bins", type=int, default=5, help="of the calibration")
    options.add_argument("--reward", default=REWARD)
    options.add_argument("--seed", type=int, default=0, help="of drawing prompts and rollouts")
    options.add_argument("--out", type=Path, required=True)
    return options


if __name__ == "__main__":
    sys.exit(main())
