"""The value study as Markdown, PNG and JSON."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from recipe.poise.compare.figures import COLOURS
from recipe.poise.studies.value_scores import over_seeds

COLUMNS = {
    "Pearson r": ("pearson", "{:.3f}"),
    "MAE": ("mae", "{:.3f}"),
    "RMSE": ("rmse", "{:.3f}"),
    "skill": ("skill", "{:.2f}"),
    "seconds to learn": ("seconds", "{:.2f}"),
    "s to predict": ("seconds_predict", "{:.3f}"),
}


def _cell(seeds: list[dict], name: str, key: str, form: str) -> str:
    spread = over_seeds([seed["results"][name].get(key) for seed in seeds])
    if spread is None:
        return "–"
    mean, low, high = (form.format(value) for value in spread)
    return mean if len(seeds) == 1 or low == high else f"{mean} ({low} to {high})"


def table(seeds: list[dict]) -> str:
    """Mean (lowest to highest) over seeds, a row per estimator."""
    header = ["estimate", "rollouts seen", "parameters", *COLUMNS]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for name, first in seeds[0]["results"].items():
        cells = [name, str(first["rollouts"]), f"{first['parameters']:,}"]
        cells += [_cell(seeds, name, key, form) for key, form in COLUMNS.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def markdown(seeds: list[dict], k: int, where: str) -> str:
    ceiling = {key: np.mean([seed["ceiling"][key] for seed in seeds]) for key in ("pearson", "rmse")}
    tuned = ", ".join(
        f"{best['learning_rate']:g} x {best['epochs']}"
        for best in (seed["results"]["value model, tuned"] for seed in seeds)
    )
    settings = seeds[0]["settings"]
    return "\n".join(
        [
            f"Held-out prompts against avg@{k}, mean over seeds (lowest to highest); seeds "
            + ", ".join(str(seed["seed"]) for seed in seeds)
            + ".",
            "",
            table(seeds),
            "",
            f"{settings['fit_prompts']} prompts x 2 rollouts to learn from, {settings['held_out']} held-out prompts, "
            f"pass rate {np.mean([seed['pass_rate'] for seed in seeds]):.3f}. The true pass rate itself would score "
            f"r {ceiling['pearson']:.3f} and RMSE {ceiling['rmse']:.3f} against avg@{k}. Skill: 1 - MSE / MSE of the "
            f"constant. Tuned value model: learning rate x passes of each seed, {tuned}. Seconds: to learn from the "
            "fit rows (probe: what capture adds to the log-prob pass, and the fit; value model: old values and "
            f"updates) and to predict all held-out rows. {where}.",
            "",
            "![Estimates of held-out prompts](value_study.png)",
            "",
        ]
    )


def figure(seeds: list[dict]):
    """Correlation and error by estimator with every seed as a point; calibration of the learned ones."""
    names = list(seeds[0]["results"])
    drawn, panels = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for panel, (label, key) in zip(panels, (("Pearson r", "pearson"), ("mean absolute error", "mae")), strict=False):
        for place, name in enumerate(names):
            values = [seed["results"][name][key] for seed in seeds]
            if any(value is None for value in values):
                continue
            colour = COLOURS[place % len(COLOURS)]
            panel.barh(place, np.mean(values), color=colour, alpha=0.5)
            panel.plot(values, [place] * len(values), "o", color=colour, markersize=4)
        panel.set_yticks(range(len(names)), names if key == "pearson" else [])
        panel.invert_yaxis()
        panel.set_xlabel(label)
    for name in ("probe", "value model, tuned"):
        colour = COLOURS[names.index(name) % len(COLOURS)]
        for number, seed in enumerate(seeds):
            value, rate = seed["results"][name]["calibration"]
            panels[2].plot(value, rate, "o-", color=colour, markersize=3, label=name if number == 0 else None)
    panels[2].plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    panels[2].set_xlabel("estimate, tenths of the rows")
    panels[2].set_ylabel("pass rate")
    panels[2].legend(fontsize=8)
    for panel in panels:
        panel.grid(alpha=0.25)
    return drawn


def write_study(seeds: list[dict], k: int, where: str, out: Path) -> Path:
    """value_study.md, .png, .json in a folder; the Markdown file's path."""
    (out / "value_study.json").write_text(json.dumps({"seeds": seeds, "made on": where}, indent=2))
    drawn = figure(seeds)
    drawn.savefig(out / "value_study.png", dpi=130)
    plt.close(drawn)
    (out / "value_study.md").write_text(markdown(seeds, k, where), encoding="utf-8")
    return out / "value_study.md"
