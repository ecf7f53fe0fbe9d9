"""Do better baselines make for better learning? 64 seeds of an embedded task side by side on one GPU.

    python -m recipe.poise.quickstart.prepare --task uneven --out outputs/many_seeds/uneven
    python benchmarks/many_seeds/run.py outputs/many_seeds/uneven --limit 192 --out uneven.json

A run of `recipe.poise.compare` takes minutes, six seeds of it tell differences of a few hundredths. Here half a minute
takes 64 seeds of a plain loop, which tell thousandths. Methods are written to the file one by one.
`python benchmarks/many_seeds/table.py FILE ...` prints the tables again. Needs this project without verl, Ray and vLLM.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])  # not this folder

from benchmarks.needs import needs_packages  # noqa: E402

with needs_packages():
    import torch
    from tqdm import tqdm

    from benchmarks.many_seeds.banks import Banks, BankSettings
    from benchmarks.many_seeds.loop import METHODS, Settings, Trainer
    from benchmarks.many_seeds.table import render
    from benchmarks.many_seeds.task import TaskData


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("assets", type=Path, help="folder that recipe.poise.quickstart.prepare wrote")
    words.add_argument("--limit", type=int, default=64, help="tokens of a response (uneven: 192)")
    words.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    words.add_argument("--seeds", type=int, default=64)
    words.add_argument("--first-seed", type=int, default=0)
    words.add_argument("--updates", type=int, default=Settings.updates)
    words.add_argument("--rollouts", type=int, default=Settings.rollouts, help="per update")
    words.add_argument("--learning-rate", type=float, default=Settings.learning_rate)
    words.add_argument("--validate-every", type=int, default=Settings.validate_every)
    words.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    words.add_argument("--out", type=Path, help="JSON file")
    return words


def train(trainer: Trainer, name: str) -> dict:
    """Numbers by name: at (updates that were validated after), accuracy (those x seeds), and of each update reward and
    tokens, means over seeds, and ratio, their median, since energies are heavy-tailed."""
    found: dict[str, list] = {"at": [0], "accuracy": [trainer.validate().tolist()]}
    for update in tqdm(range(1, trainer.settings.updates + 1), desc=name, disable=None):
        for key, value_S in trainer.step().items():
            found.setdefault(key, []).append(float(value_S.median() if key == "ratio" else value_S.mean()))
        if update % trainer.settings.validate_every == 0:
            found["at"].append(update)
            found["accuracy"].append(trainer.validate().tolist())
    return found


def measured(data: TaskData, name: str, settings: Settings, seeds: list[int]) -> dict:
    """All seeds of one method, and the seconds that they took."""
    method, start = METHODS[name], time.perf_counter()
    if method.kind == "bank":
        with Banks(BankSettings(data.model.config.hidden_size, method.n, method.guard), seeds) as banks:
            found = train(Trainer(data, method, settings, seeds, banks), name)
    else:
        found = train(Trainer(data, method, settings, seeds, None), name)
    return found | {"seconds": time.perf_counter() - start}


def main() -> None:
    args = parser().parse_args()
    for name in args.methods:
        if args.rollouts % METHODS[name].n:
            sys.exit(f"error: --rollouts {args.rollouts}: {name} wants a multiple of {METHODS[name].n}")
    if not (args.assets / "model").is_dir():
        sys.exit(f"error: no model in {args.assets}: python -m recipe.poise.quickstart.prepare --out {args.assets}")
    data = TaskData(args.assets, args.limit, args.device)
    settings = Settings(args.rollouts, args.updates, args.learning_rate, validate_every=args.validate_every)
    card = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()} CPU"
    told = {
        **{"task": json.loads((args.assets / "manifest.json").read_text())["settings"]["task"], "seeds": args.seeds},
        **{"updates": args.updates, "rollouts": args.rollouts, "learning rate": args.learning_rate},
        **{"device": card, "cpu cores": os.cpu_count(), "torch": torch.__version__},
    }
    whole: dict = {"settings": told, "methods": {}}
    seeds = list(range(args.first_seed, args.first_seed + args.seeds))
    for name in args.methods:
        whole["methods"][name] = measured(data, name, settings, seeds)
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(whole))
    print(render(whole), end="")


if __name__ == "__main__":
    main()
