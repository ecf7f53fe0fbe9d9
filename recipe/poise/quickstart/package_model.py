"""Make a packaged model: ``python -m recipe.poise.quickstart.package_model`` (minutes on one core)."""

import argparse

import torch

from recipe.poise.quickstart.packaged import FOLDER, WEIGHTS, write_packaged
from recipe.poise.quickstart.prepare import default_settings, new_tokenizer, trained_model
from recipe.poise.quickstart.registry import TASKS


def main() -> None:
    options = argparse.ArgumentParser(prog="package_model", description="Train the model of an embedded task anew.")
    own = [name for name, task in TASKS.items() if task.packaged_as == name]
    options.add_argument("--task", choices=own, default="quickstart")
    task = TASKS[options.parse_args().task]
    torch.set_num_threads(1)  # the same sums in the same order, wherever it runs
    settings, tokenizer, folder = default_settings(task), new_tokenizer(task), FOLDER / task.name
    record = write_packaged(trained_model(settings, tokenizer), settings.model_record(), tokenizer, folder)
    print(f"{folder / WEIGHTS}: {(folder / WEIGHTS).stat().st_size / 1e6:.2f} MB, SHA-256 {record['weights']}")


if __name__ == "__main__":
    main()
