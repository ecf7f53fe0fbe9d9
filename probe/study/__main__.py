"""Which block, pooling, signals and estimator predict rewards best? On a dump of features of real rollouts:

    python -m probe.study DUMP [DUMP...] --out DIR

A run with `poise.dump_features.folder=DUMP` writes it (add `poise.dump_features.blocks=[8,16,24]` to compare blocks).
The questions are asked one after the other, each with the best answers so far; scores are those of predictions on
prompts that the estimator has not seen. More rollouts per prompt (rollout.n) bring the target nearer to the pass rate.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from probe.settings import KINDS, ProbeSettings
from probe.study.compare import (
    SHARES,
    Result,
    best,
    first_as_good,
    folds_of,
    judge,
    learning_point,
    pass_rate_spread,
    stages,
    start_choice,
)
from probe.study.dump import Dump, read_dumps


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("dumps", nargs="+", type=Path, metavar="DUMP", help="folders of feature dumps")
    options.add_argument("--out", type=Path, required=True, help="folder for figures, results.json and poise.yaml")
    options.add_argument("--folds", type=int, default=5, help="parts that the prompts are dealt into")
    options.add_argument(
        "--estimators",
        nargs="+",
        choices=KINDS,
        default=list(KINDS),
        help="the first is taken unless another is better",
    )
    options.add_argument("--rank", type=int, default=96, help="dimensions of the subspace")
    options.add_argument("--seed", type=int, default=0)
    return options


def parse(argv: list[str] | None) -> argparse.Namespace:
    args = parser().parse_args(argv)
    if args.folds < 2:
        parser().error(f"--folds {args.folds}: want at least 2")
    return args


def summary(dump: Dump) -> str:
    prompts, groups = len(dump.prompt_N.unique()), len(dump.group_N.unique())
    rows = len(dump.reward_N)
    spread, ceiling = pass_rate_spread(dump)
    return (
        f"{rows:,} rows of {prompts:,} prompts from {dump.files} files; {rows / groups:.1f} rollouts per prompt and "
        f"step; mean reward {dump.reward_N.mean():.3f}\n"
        f"the prompts' pass rates spread by about {spread:.3f}; a perfect predictor would reach Pearson {ceiling:.2f}"
    )


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        dump = read_dumps(args.dumps)
        fold_N = folds_of(dump.prompt_N, args.folds, args.seed)
        choice = start_choice(dump, args.estimators[0])
        settings = ProbeSettings(rank=args.rank)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:  # after the cheap checks: matplotlib takes a second
        from tqdm import tqdm

        from probe.study import report
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed; the study needs: pip install matplotlib tqdm", file=sys.stderr)
        return 2

    args.out.mkdir(parents=True, exist_ok=True)
    print(summary(dump))
    print("scores on unseen prompts, against the mean reward of each rollout's siblings")
    done: dict[str, list[Result]] = {}
    for name, choices_after in stages(dump, choice, tuple(args.estimators)):
        choices = choices_after(choice)
        bar = tqdm(choices, desc=name, leave=False, disable=None)
        done[name] = [judge(dump, candidate, settings, fold_N) for candidate in bar]
        choice = (first_as_good(done[name], dump) if name == "estimator" else best(done[name])).choice
        print(f"\n== {name}\n{report.HEADER}")
        for result in sorted(done[name], key=lambda result: result.rmse):
            print(report.table_row(result) + ("  <" if result.choice == choice else ""))
    winner = next(result for result in done["estimator"] if result.choice == choice)
    bar = tqdm(SHARES, desc="learning curve", leave=False, disable=None)
    curve = [learning_point(dump, winner.choice, settings, fold_N, share) for share in bar]
    paths = report.figures(args.out, dump, done["block and pooling"], winner, curve)
    block = report.config_block(winner.choice, args.rank)
    (args.out / "poise.yaml").write_text(block)
    results = {
        name: [{k: v for k, v in asdict(r).items() if not isinstance(v, torch.Tensor)} for r in part]
        for name, part in done.items()
    }
    points = [{"rows": rows, "pearson": r.pearson, "brier_skill": r.brier_skill, "rmse": r.rmse} for rows, r in curve]
    (args.out / "results.json").write_text(json.dumps({"stages": results, "learning_curve": points}, indent=1))
    print("\nlearning curve (rows: Brier skill): " + ", ".join(f"{rows}: {r.brier_skill:.3f}" for rows, r in curve))
    print("figures: " + ", ".join(map(str, paths)))
    print(f"\nthe best settings, also in {args.out / 'poise.yaml'}:\n\n{block}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
