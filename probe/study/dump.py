"""Feature dumps: what a run leaves of its rollouts for the offline study, as safetensors files that execute nothing.

A file holds rows of one step from one rank. Columns are first states, named
``{prompt|response}@{block}/{tokens}``, then scalars.

Shapes: N rows, F features.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from probe.settings import FeatureLayout

VERSION = "1"
PATTERN = "step_*_rank_*.safetensors"


@dataclass(frozen=True)
class Dump:
    """x_NF (float32), reward_N (float32), prompt_N (int64; equal for rollouts of one prompt, also of different steps),
    group_N (int64; equal for rollouts of one prompt in one step), layout, folders."""

    x_NF: Tensor
    reward_N: Tensor
    prompt_N: Tensor
    group_N: Tensor
    layout: FeatureLayout
    files: int

    def columns(self, names: tuple[str, ...]) -> tuple[Tensor, FeatureLayout]:
        """The blocks `names`, states first, and their layout. Raises KeyError for a name that is not there."""
        slices, size_of = self.layout.slices, dict(zip(self.layout.names, self.layout.sizes, strict=True))
        names = tuple(sorted(names, key=lambda name: size_of[name] == 1))  # stable: states first
        layout = FeatureLayout(names, tuple(size_of[name] for name in names))
        return torch.cat([self.x_NF[:, slices[name]] for name in names], dim=1), layout


def state_name(kind: str, block: int, tokens: int) -> str:
    """Name of a state's columns."""
    return f"{kind}@{block}/{tokens}"


def parse_state(name: str) -> tuple[str, int, int] | None:
    """Kind, block and tokens of a state's name; None for a scalar."""
    kind, at, place = name.partition("@")
    if not at:
        return None
    block, _, tokens = place.partition("/")
    return kind, int(block), int(tokens)


def write_dump(
    folder: Path, step: int, rank: int, layout: FeatureLayout, x_NF: Tensor, reward_N, prompt_N, group_N
) -> Path:
    """Write rows of one step and rank, atomically; rows of an earlier attempt at the step are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:06d}_rank_{rank}.safetensors"
    tensors = {
        "x": x_NF.float(),
        "reward": reward_N.float(),
        "prompt": prompt_N.long(),
        "group": group_N.long(),
    }
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    metadata = {"version": VERSION, "names": json.dumps(layout.names), "sizes": json.dumps(layout.sizes)}
    save_file({key: t.detach().cpu().clone() for key, t in tensors.items()}, temporary, metadata)
    temporary.rename(path)
    return path


def _read(path: Path) -> tuple[dict[str, Tensor], FeatureLayout]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("version") == VERSION:
                layout = FeatureLayout(json.loads(metadata["names"]), json.loads(metadata["sizes"]))
                tensors = {key: file.get_tensor(key) for key in ("x", "reward", "prompt", "group")}
                rows = len(tensors["x"])
                shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
                if shapes != {"x": (rows, layout.num_features), "reward": (rows,), "prompt": (rows,), "group": (rows,)}:
                    raise ValueError(f"shapes {shapes} for {layout.num_features} features")
                return tensors, layout
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, or dump again") from error
    raise ValueError(f"{path} is no feature dump of version {VERSION} ({metadata.get('version')}): dump again")


def read_dumps(folders: list[Path]) -> Dump:
    """All rows under `folders` whose numbers are finite and that have a sibling in their step.

    Raises:
        FileNotFoundError: no dump in a folder.
        ValueError: a damaged file, dumps of different features, or no usable row.
    """
    parts: list[dict[str, Tensor]] = []
    layouts: dict[FeatureLayout, Path] = {}
    for number, folder in enumerate(folders):
        paths = sorted(folder.glob(PATTERN))
        if not paths:
            raise FileNotFoundError(
                f"{folder} holds no feature dump ({PATTERN}): run with poise.dump_features.folder={folder}"
            )
        for path in paths:
            tensors, layout = _read(path)
            step = int(path.name.split("_")[1])
            # groups of different steps and folders are different groups
            tensors["group"] = tensors["group"] + (number << 56) + (step << 32)
            parts.append(tensors)
            layouts.setdefault(layout, path)
    if len(layouts) > 1:
        lines = "\n  ".join(f"{path}: {', '.join(layout.names)}" for layout, path in layouts.items())
        raise ValueError(f"these dumps hold different features and cannot be studied together:\n  {lines}")
    column = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    good_N = column["x"].isfinite().all(dim=1) & column["reward"].isfinite()
    _, place_N, count_G = torch.unique(column["group"][good_N], return_inverse=True, return_counts=True)
    rows = good_N.nonzero().squeeze(1)[count_G[place_N] > 1]
    if not len(rows):
        raise ValueError("no prompt has two rollouts with finite features and rewards: dump a run with rollout.n >= 2")
    return Dump(
        column["x"][rows], column["reward"][rows], column["prompt"][rows], column["group"][rows],
        next(iter(layouts)), len(parts),
    )  # fmt: skip
