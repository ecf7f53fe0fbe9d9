"""What a run's own rows say of how its probe should have learned: where weights belong, whether old rows should count
less, what which features tell.

    python -m recipe.poise.studies.window_study --runs outputs/runs/compare/uneven/poise_s* --out DIR

A probe's state holds its window: of each row the features, reward, energy, prompt and step. From these the steps are
gone through again: a form is fitted on the rows of all steps before step t and judged on those of step t, by the error
that leads the gradient's variance, sum e (r - b)^2, over that of the energy-weighted constant of the same earlier rows.
Values are lagged here, in all forms alike. Costs seconds; the runs need nothing but their checkpoints.

Shapes: N rows of a window, F features.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from probe import FeatureLayout, ProbeSettings, state, weights
from probe.estimators import Ridge
from probe.estimators.linear import fit_sigmoid
from probe.ridge_path import ridge_path
from recipe.poise.studies.value_scores import over_seeds

FIRST = 8  # steps that are only learned
HALF_LIVES = (32, 16, 8, 4)
PENALTIES = ProbeSettings().penalties


@dataclass(frozen=True)
class Window:
    """Rows of a probe's window: feature_NF, reward_N, energy_N, group_N (prompts), step_N."""

    feature_NF: Tensor
    reward_N: Tensor
    energy_N: Tensor
    group_N: Tensor
    step_N: Tensor

    def where(self, kept_N: Tensor) -> "Window":
        return Window(*(getattr(self, name)[kept_N] for name in self.__dataclass_fields__))


def read_window(critic: Path, features: str) -> Window | None:
    """The rows of a saved probe, float64.

    Args:
        critic: folder of the state, `global_step_N/critic` of a run.
        features: "prompt": the row's own prompt state. "sibling": all features of the other rollout of its prompt; None
            where prompts have one rollout.

    Raises:
        ValueError: no state, of several domains, or without energies or a prompt's state.
    """
    identity, content, tensors = state.read(critic)
    if list(content["domains"]) != ["default"] or identity["crossing"]["weights"] != "energy":
        raise ValueError(f"{critic}: want a probe of one domain whose rows weigh by energy (poise.weights=energy)")
    rows = Window(
        *(tensors[f"0.window.{name}"] for name in ("feature", "reward", "uncapped", "group", "step")),
    )
    rows = Window(rows.feature_NF.double(), rows.reward_N.double(), rows.energy_N.double(), rows.group_N, rows.step_N)
    sizes = identity["features"]
    if features == "prompt":
        if "prompt" not in sizes:
            raise ValueError(f"{critic}: its features have no prompt's state ({', '.join(sizes)})")
        first = sum(sizes[name] for name in _before(identity["feature_order"], "prompt"))
        return Window(rows.feature_NF[:, first : first + sizes["prompt"]], *_others(rows))
    _, place_N, count_G = torch.unique(rows.group_N, return_inverse=True, return_counts=True)
    rows, place_N = rows.where(count_G[place_N] == 2), place_N[count_G[place_N] == 2]
    if not len(place_N):
        return None
    order = place_N.argsort(stable=True)
    rows = rows.where(order)
    sibling = torch.arange(len(order)) ^ 1  # neighbours in pairs
    return Window(rows.feature_NF[sibling], *_others(rows))


def _before(names: list[str], name: str) -> list[str]:
    return names[: names.index(name)]


def _others(rows: Window) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return rows.reward_N, rows.energy_N, rows.group_N, rows.step_N


Value = Callable[[Tensor], Tensor]


def linked(rows: Window, x_NF: Tensor, count_N: Tensor | None) -> Value:
    """Rows count alike (or `count_N`) in the regression, and by energy in the link."""
    solution = ridge_path(x_NF, rows.reward_N, rows.group_N, PENALTIES, weight_N=count_N)
    mean_F = weights.mean(x_NF, count_N)
    energy_N = rows.energy_N if count_N is None else rows.energy_N * count_N
    slope, offset = fit_sigmoid(solution.left_out_N, rows.reward_N, weights.relative(energy_N))
    if slope <= 0:
        return constant(rows, x_NF, count_N)
    return lambda x: (slope * ((x - mean_F) @ solution.coefficient_K + solution.intercept) + offset).sigmoid()


def weighted_regression(rows: Window, x_NF: Tensor, count_N: Tensor | None) -> Value:
    """Rows count by energy throughout, as `poise.probe.weighted=fit` has it."""
    ridge = Ridge(FeatureLayout(("state",), (x_NF.shape[1],)), PENALTIES, weighted="fit")
    ridge.fit(x_NF, rows.reward_N, rows.group_N, rows.energy_N)
    return lambda x: ridge.predict(x).double()


def constant(rows: Window, x_NF: Tensor, count_N: Tensor | None) -> Value:
    """The energy-weighted mean reward."""
    value = weights.mean(rows.reward_N, rows.energy_N if count_N is None else rows.energy_N * count_N)
    return lambda x: value.expand(len(x))


CONSTANT = "energy-weighted constant"
FORMS: dict[str, tuple[Callable[[Window, Tensor, Tensor | None], Value], int | None]] = {
    CONSTANT: (constant, None),
    "weights in the regression": (weighted_regression, None),
    "weights in the link (the default)": (linked, None),
    **{f"the same, rows' counts halve in {half} steps": (linked, half) for half in HALF_LIVES},
    **{f"{CONSTANT}, halving in {half} steps": (constant, half) for half in HALF_LIVES},
}


def errors(rows: Window) -> dict[str, float]:
    """Sum over steps of e (r - b)^2, by form, over the constant's.

    Raises:
        ValueError: fewer than `FIRST` + 1 steps.
    """
    last = int(rows.step_N.max())
    first = int(rows.step_N.min()) + FIRST
    if first > last:
        raise ValueError(f"want more than {FIRST} steps in the window, not {last - first + FIRST + 1}")
    total = dict.fromkeys(FORMS, 0.0)
    for step in range(first, last + 1):
        earlier, now = rows.where(rows.step_N < step), rows.where(rows.step_N == step)
        if not len(now.reward_N):
            continue
        mean_F, deviation_F = earlier.feature_NF.mean(0), earlier.feature_NF.std(0).clamp(min=1e-9)
        x_NF, new_NF = ((part.feature_NF - mean_F) / deviation_F for part in (earlier, now))
        for name, (form, half) in FORMS.items():
            count_N = None if half is None else weights.relative(0.5 ** ((step - earlier.step_N) / half))
            value_N = form(earlier, x_NF, count_N)(new_NF)
            total[name] += float((now.energy_N * (now.reward_N - value_N).square()).sum())
    return {name: value / total[CONSTANT] for name, value in total.items()}


def newest(run: Path) -> Path:
    """Folder of the probe's newest state. Raises ValueError where there is none."""
    found = {int(path.parent.name.rsplit("_", 1)[1]): path for path in run.glob("checkpoints/global_step_*/critic")}
    found = {step: path for step, path in found.items() if (path / state.MANIFEST).exists()}
    if not found:
        raise ValueError(f"{run / 'checkpoints'} holds no probe's state")
    return found[max(found)]


def measured(runs: list[Path]) -> Iterator[dict]:
    """A record for each run and kind of features that it has."""
    for run in tqdm(runs, desc="runs", disable=None):
        for features in ("prompt", "sibling"):
            if (rows := read_window(newest(run), features)) is not None:
                found = {"run": run.name, "features": features, "rows": len(rows.reward_N), "errors": errors(rows)}
                tqdm.write(f"{run.name}, {features}: " + ", ".join(f"{k} {v:.3f}" for k, v in found["errors"].items()))
                yield found


def table(done: list[dict]) -> str:
    """Mean (lowest to highest) over runs: a row per form, a column per kind of features."""
    kinds = list(dict.fromkeys(record["features"] for record in done))
    counts = [sum(record["features"] == kind for record in done) for kind in kinds]
    heads = [f"{kind} states, {count} runs" for kind, count in zip(kinds, counts, strict=True)]
    lines = ["| form | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name in FORMS:
        cells = []
        for kind in kinds:
            spread = over_seeds([record["errors"][name] for record in done if record["features"] == kind])
            mean, low, high = spread if spread is not None else (float("nan"),) * 3
            cells.append(f"{mean:.3f}" + (f" ({low:.3f} to {high:.3f})" if low != high else ""))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=Path, nargs="+", required=True, help="run folders of `launch`")
    options.add_argument("--out", type=Path, required=True, help="folder of the table and of all numbers")
    arguments = options.parse_args(argv)
    try:
        done = list(measured(arguments.runs))
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "window_study.json").write_text(json.dumps(done, indent=1) + "\n")
    (arguments.out / "window_study.md").write_text(table(done) + "\n")
    print(f"\n{table(done)}\n\n{arguments.out}/window_study.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
