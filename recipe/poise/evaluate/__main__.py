"""``python -m recipe.poise.evaluate --model MODEL --data DIR --out DIR``: avg@k and pass@k, resumable."""

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from recipe.poise.data.errors import DataError, told
from recipe.poise.evaluate.models import resolve
from recipe.poise.evaluate.run import Evaluation, evaluate
from recipe.poise.evaluate.samples import only_one
from recipe.poise.evaluate.scoring import check_sources, load_reward
from recipe.poise.evaluate.settings import (
    DEFAULT_REWARD,
    DTYPES,
    Engine,
    EvaluationError,
    Sampling,
    check_amounts,
)
from recipe.poise.evaluate.suites import load_suites


def _json(text: str) -> Any:
    """For argparse, which knows a ValueError for a wrong value."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m recipe.poise.evaluate",
        description="Sample and score a model; the same command goes on where it was stopped. Defaults: the paper's.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = options.add_argument
    add("--model", required=True, help="model folder, hub id, or checkpoint of verl (merged into actor_merged)")
    add("--out", type=Path, required=True, metavar="DIR", help="samples, results.json, results.md")
    add("--data", type=Path, default=Path("data"), metavar="DIR", help="suites are in DIR/NAME/test.parquet, or made")
    add("--suites", nargs="+", default=["math-suites"], metavar="SUITE", help="name, group, or [NAME=]FILE.parquet")
    add("--reward", default=DEFAULT_REWARD, metavar="MODULE:FUNCTION", help="or FILE.py:FUNCTION; verl's signature")
    add("-k", type=int, default=32, help="samples of each problem")
    add("--temperature", type=float, default=Sampling.temperature)
    add("--top-p", type=float, default=Sampling.top_p)
    add("--top-k", type=int, default=Sampling.top_k, help="-1: off")
    add("--max-tokens", type=int, default=Sampling.max_tokens, help="of a response")
    add("--seed", type=int, default=Sampling.seed)
    add("--chat-template", type=_json, default={}, metavar="JSON", help='e.g. {"enable_thinking": false}')
    add("--data-parallel", type=int, default=0, help="engines; 0: as many as the devices allow, one on a CPU")
    add("--tensor-parallel", type=int, default=1, help="devices of one engine")
    add("--max-num-seqs", type=int, default=Engine.max_num_seqs, help="responses that an engine writes at a time")
    add("--max-model-len", type=int, help="in place of the model's own context")
    add("--gpu-memory-utilization", type=float, default=Engine.gpu_memory_utilization)
    add("--enforce-eager", action="store_true", help="no CUDA graphs (always so on a CPU)")
    add("--dtype", default=Engine.dtype, help=", ".join(DTYPES))
    add("--no-progress", action="store_true")
    return options


def picked(kind: type, arguments: argparse.Namespace) -> Any:
    """A settings object from the options of the same names. Raises EvaluationError."""
    return kind(**{name: getattr(arguments, name) for name in (field.name for field in fields(kind))})


def asked_of(arguments: argparse.Namespace) -> Evaluation:
    """What the options ask for. What is quick to check comes first, the model, which may be large, last.

    Raises:
        EvaluationError, DataError, OSError: see the message.
    """
    sampling, engine = picked(Sampling, arguments), picked(Engine, arguments)
    check_amounts(arguments.k, arguments.max_model_len)
    suites = load_suites(arguments.suites, arguments.data)
    check_sources(load_reward(arguments.reward), suites)
    out = arguments.out.absolute()
    with only_one(out):  # it can be written to, and nobody else does
        model = resolve(arguments.model)
    return Evaluation(model, suites, sampling, engine, arguments.k, arguments.reward, arguments.max_model_len, out)


def main() -> int:
    arguments = parser().parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a model's path may be no text
    try:
        print(evaluate(asked_of(arguments), load_reward(arguments.reward), not arguments.no_progress))
    except (DataError, EvaluationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {told(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on from the samples in {arguments.out}", file=sys.stderr)
        return 130
    print(f"results: {arguments.out / 'results.json'}, {arguments.out / 'results.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
