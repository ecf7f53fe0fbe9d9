"""Make the embedded default's assets: ``python -m recipe.poise.quickstart.prepare --out DIR``.

Writes ``model/`` (weights and tokenizer), ``train.parquet``, ``val.parquet`` and ``manifest.json``. The folder appears
whole or not at all, and a second call with the same settings does nothing. The default's model comes finished with the
package; for other settings, or with ``--train``, it is warm-started here.
"""

import argparse
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from recipe.poise.quickstart.model import make_model, make_tokenizer
from recipe.poise.quickstart.packaged import FOLDER, packaged_model
from recipe.poise.quickstart.registry import QUICKSTART, TASKS, Task
from recipe.poise.quickstart.tasks import Problem, verl_row
from recipe.poise.quickstart.warm_start import WarmStart, accuracy, train

MANIFEST = "manifest.json"
FORMAT = 1  # raise it when the same settings would give another model
PROBLEMS = 2  # and this when they would give other problems


@dataclass(frozen=True)
class Settings:
    """What the assets depend on."""

    warm_start: WarmStart
    train_prompts: int
    val_prompts: int
    seed: int
    task: str = QUICKSTART.name

    def record(self) -> dict[str, Any]:
        """As plain data, for the manifest."""
        return {**self.model_record(), **asdict(self), "problems": PROBLEMS, **TASKS[self.task].recorded_asked()}

    def model_record(self) -> dict[str, Any]:
        """As plain data, what the weights depend on."""
        task = TASKS[self.task]
        own = {"warm_start": asdict(self.warm_start), "seed": self.warm_start.seed}
        return {"format": FORMAT, **own, "behaviours": task.recorded_shares, "levels": task.recorded_levels()}


def settings_of(arguments: argparse.Namespace) -> Settings:
    """`--fast` changes the defaults; what is given explicitly counts."""
    task = TASKS[arguments.task]
    steps, train_prompts, val_prompts = (
        (60, 128, 16) if arguments.fast else (task.steps, task.train_prompts, task.val_prompts)
    )
    return Settings(
        warm_start=WarmStart(
            steps=arguments.steps or steps,
            batch=32 if arguments.fast else task.batch,
            careful_share=task.careful_share,
            seed=arguments.seed if arguments.model_seed is None else arguments.model_seed,
        ),
        train_prompts=arguments.train_prompts or train_prompts,
        val_prompts=arguments.val_prompts or val_prompts,
        seed=arguments.seed,
        task=task.name,
    )


def is_made(folder: Path, settings: Settings) -> bool:
    """Whether the folder already holds the assets of these settings."""
    manifest = folder / MANIFEST
    return manifest.exists() and json.loads(manifest.read_text())["settings"] == settings.record()


def new_tokenizer(task: Task = QUICKSTART) -> PreTrainedTokenizerFast:
    """Words come from the warm-start part only; the templates and the numbers are the same everywhere."""
    return make_tokenizer(task.distinct_problems("warm", 64, 0), task.words, task.numbers)


def trained_model(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """The model after its warm start; a progress bar shows how far it is."""
    model = make_model(tokenizer, settings.warm_start.seed)
    train(model, tokenizer, settings.warm_start, TASKS[settings.task])
    return model


def build(folder: Path, settings: Settings, training: bool) -> dict[str, float]:
    """Write all assets into a folder; the measured accuracies at the start."""
    task = TASKS[settings.task]
    asked = task.validation_problems(settings.val_prompts, settings.seed)
    trained = task.distinct_problems("train", settings.train_prompts, settings.seed)
    write_rows(trained, "train", folder / "train.parquet")
    write_rows(asked, "val", folder / "val.parquet")
    tokenizer = new_tokenizer(task)
    model = None if training else packaged_model(settings.model_record(), tokenizer, FOLDER / task.packaged_as)
    model = model or trained_model(settings, tokenizer)
    measured = {
        "start": accuracy(model, tokenizer, asked, max_new_tokens=task.max_response),
        "careful": accuracy(model, tokenizer, asked, task.careful_opening, task.max_response),
    }
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return measured


def write_rows(problems: list[Problem], split: str, path: Path) -> None:
    """One parquet file in verl's schema."""
    pd.DataFrame([verl_row(problem, index, split) for index, problem in enumerate(problems)]).to_parquet(path)


def prepare(out: Path, settings: Settings, training: bool = False) -> bool:
    """Make the assets at `out`; False if they were there.

    Args:
        training: warm-start the model although the package has it.

    Raises:
        FileExistsError: `out` holds something that this program did not write.
    """
    if is_made(out, settings):
        return False
    if out.exists() and any(out.iterdir()) and not (out / MANIFEST).exists():
        raise FileExistsError(f"{out} is not empty and has no {MANIFEST}; give another --out or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        fresh, old = Path(scratch, "fresh"), Path(scratch, "old")
        fresh.mkdir()
        measured = build(fresh, settings, training)
        (fresh / MANIFEST).write_text(json.dumps({"settings": settings.record(), "accuracy": measured}, indent=2))
        if out.exists():
            shutil.move(out, old)
        os.replace(fresh, out)
    return True


def default_settings(task: Task = QUICKSTART) -> Settings:
    """Of a call without other options."""
    return settings_of(parser().parse_args(["--out", ".", "--task", task.name]))


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="prepare", description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--out", type=Path, required=True, help="folder of the assets")
    options.add_argument("--task", choices=TASKS, default=QUICKSTART.name, help="which embedded task")
    options.add_argument("--seed", type=int, default=0, help="of problems, weights and demonstrations")
    options.add_argument("--model-seed", type=int, help="of weights and demonstrations alone (default: --seed)")
    options.add_argument("--fast", action="store_true", help="in half a minute, for tests: valid, but hardly trained")
    options.add_argument("--train", action="store_true", help="warm-start the model although the package has it")
    options.add_argument("--steps", type=positive, help="warm-start steps")
    options.add_argument("--train-prompts", type=positive, help="number of training prompts")
    options.add_argument("--val-prompts", type=positive, help="number of validation prompts")
    options.add_argument("--threads", type=positive, default=min(os.cpu_count() or 1, 4), help="of torch")
    return options


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(arguments.threads)
    out = arguments.out.absolute()
    if not prepare(out, settings_of(arguments), arguments.train):
        print(f"Assets are already at {out}.")
        return
    measured = json.loads((out / MANIFEST).read_text())["accuracy"]
    print(
        f"Assets are at {out}. Sampled validation accuracy: " + ", ".join(f"{k} {v:.2f}" for k, v in measured.items())
    )


if __name__ == "__main__":
    main()
