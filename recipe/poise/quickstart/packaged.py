"""The finished model of each embedded task as a file of the package, so that no first run waits for a warm start.

`recipe.poise.quickstart.package_model` trains it anew and writes the file with its record: the settings it was made
with, digests of weights and tokenizer. It is taken only where all of them agree.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from recipe.poise.quickstart.model import make_model

FOLDER = Path(__file__).parent / "packaged_model"  # with a folder for each embedded task
WEIGHTS, RECORD = "model.safetensors", "record.json"


class DamagedModel(RuntimeError):
    """The file is not what its record says."""


def digest_of_tokenizer(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of what decides on ids. Another version of reasoning-gym or tokenizers could make another tokenizer."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    for last_call in ("padding", "truncation"):
        content.pop(last_call, None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def packaged_model(
    settings: dict[str, Any], tokenizer: PreTrainedTokenizerFast, folder: Path
) -> Qwen3ForCausalLM | None:
    """The model that a warm start with these settings made; None where there is none for them.

    Args:
        settings: what the weights depend on, as plain data.

    Raises:
        DamagedModel: the weights are not those of the record.
    """
    if not (folder / RECORD).exists():
        return None
    record = json.loads((folder / RECORD).read_text())
    if record["settings"] != settings or record["tokenizer"] != digest_of_tokenizer(tokenizer):
        return None
    if hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest() != record["weights"]:
        raise DamagedModel(
            f"{folder / WEIGHTS} is damaged: its digest is not the one in {RECORD}. Install the project again, or "
            "train the model: POISE_PREPARE_ARGS=--train bash launch/quickstart.sh"
        )
    model = make_model(tokenizer, seed=0)
    model.load_state_dict(load_file(folder / WEIGHTS))
    return model.eval()


def write_packaged(
    model: Qwen3ForCausalLM, settings: dict[str, Any], tokenizer: PreTrainedTokenizerFast, folder: Path
) -> dict[str, Any]:
    """Write weights and record; returns the record."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / WEIGHTS)
    record = {
        "settings": settings,
        "tokenizer": digest_of_tokenizer(tokenizer),
        "weights": hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest(),
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    return record
