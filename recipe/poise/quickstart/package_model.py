"""Make the packaged model: ``python -m recipe.poise.quickstart.package_model`` (two minutes on two cores)."""

import torch

from recipe.poise.quickstart.packaged import FOLDER, WEIGHTS, write_packaged
from recipe.poise.quickstart.prepare import default_settings, new_tokenizer, trained_model


def main() -> None:
    torch.set_num_threads(1)  # the same sums in the same order, wherever it runs
    settings, tokenizer = default_settings(), new_tokenizer()
    record = write_packaged(trained_model(settings, tokenizer), settings.model_record(), tokenizer)
    print(f"{FOLDER / WEIGHTS}: {(FOLDER / WEIGHTS).stat().st_size / 1e6:.2f} MB, SHA-256 {record['weights']}")


if __name__ == "__main__":
    main()
