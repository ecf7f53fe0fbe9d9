"""The study of what is known of prompts, as Markdown, PNG and JSON."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from recipe.poise.compare.figures import COLOURS
from recipe.poise.studies.value_scores import over_seeds

COLUMNS = {
    "Pearson r": ("pearson", "{:.2f}"),
    "MAE": ("mae", "{:.3f}"),
    "skill": ("skill", "{:.2f}"),
    "calibration error": ("calibration_error", "{:.3f}"),
}


def _places(runs: list[dict]) -> dict[tuple[str, int], list[dict]]:
    """Records of all runs by kind of prompts and step."""
    found: dict[tuple[str, int], list[dict]] = {}
    for run in runs:
        for record in run["records"]:
            found.setdefault((record["prompts"], record["step"]), []).append(record)
    return dict(sorted(found.items(), key=lambda item: (item[0][0] != "never asked", item[0][1])))


def _cell(values: list[float | None], form: str) -> str:
    spread = over_seeds(values)
    if spread is None:
        return "–"
    mean, low, high = (form.format(value) for value in spread)
    return mean if low == high else f"{mean} ({low} to {high})"


def table(runs: list[dict]) -> str:
    """Mean (lowest to highest) over runs: a row per kind of prompts, update and estimate."""
    header = ["prompts", "update", "pass rate", "estimate", *COLUMNS, "r of the true rate"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for (kind, step), records in _places(runs).items():
        rate = _cell([record["pass_rate"] for record in records], "{:.2f}")
        ceiling = _cell([record["ceiling"]["pearson"] for record in records], "{:.2f}")
        for name in records[0]["results"]:
            cells = [kind, str(step), rate, name]
            cells += [_cell([r["results"][name][key] for r in records], form) for key, form in COLUMNS.values()]
            lines.append("| " + " | ".join([*cells, ceiling]) + " |")
    return "\n".join(lines)


def choices_table(runs: list[dict]) -> str:
    """Mean (lowest to highest) over runs: a row per update and number of candidates, a column per rule."""
    rows = [
        (step, one_in, [record["choices"][one_in] for record in records])
        for (_, step), records in _places(runs).items()
        if "choices" in records[0]
        for one_in in records[0]["choices"]
    ]
    names = list(rows[0][2][0])
    lines = ["| " + " | ".join(["update", "asked", *names]) + " |", "|---" * (len(names) + 2) + "|"]
    for step, one_in, found in rows:
        cells = [_cell([of[name] for of in found], "{:.3f}") for name in names]
        lines.append("| " + " | ".join([str(step), f"one in {one_in}", *cells]) + " |")
    return "\n".join(lines)


def figure(runs: list[dict]):
    """Correlation over updates, prompts never asked and asked before; calibration at the last checkpoint."""
    places = _places(runs)
    names = list(dict.fromkeys(name for records in places.values() for name in records[0]["results"]))
    kinds = list(dict.fromkeys(kind for kind, _ in places))
    drawn, panels = plt.subplots(1, 2 * len(kinds), figsize=(4.2 * 2 * len(kinds), 3.8), layout="constrained")
    for place, kind in enumerate(kinds):
        steps = [step for known, step in places if known == kind]
        over, curve = panels[2 * place], panels[2 * place + 1]
        for number, name in enumerate(names):
            points = [
                (step, record["results"][name]["pearson"])
                for step in steps
                for record in places[kind, step]
                if name in record["results"] and record["results"][name]["pearson"] is not None
            ]
            if points:
                over.plot(*zip(*points, strict=True), "o-", color=COLOURS[number], label=name, markersize=4)
            for record in places[kind, steps[-1]]:
                found = record["results"].get(name)
                if found is not None and found["pearson"] is not None:  # the same of all prompts: no curve
                    curve.plot(*found["calibration"], "o-", color=COLOURS[number], markersize=3)
        ceiling = [places[kind, step][0]["ceiling"]["pearson"] for step in steps]
        over.plot(steps, ceiling, "--", color="grey", label="the true rate")
        over.set_title(f"prompts {kind}")
        over.set_xlabel("update")
        over.set_ylabel("correlation with avg@k")
        over.legend(fontsize=8)
        curve.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
        curve.set_title(f"{kind}, update {steps[-1]}")
        curve.set_xlabel("estimate")
        curve.set_ylabel("pass rate")
    for panel in panels:
        panel.grid(alpha=0.25)
    return drawn


def write_report(runs: list[dict], k: int, out: Path) -> Path:
    """prompt_study.md, .png, .json in a folder; the Markdown file's path."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "prompt_study.json").write_text(json.dumps(runs, indent=2))
    drawn = figure(runs)
    drawn.savefig(out / "prompt_study.png", dpi=130)
    plt.close(drawn)
    count = ", ".join(str(count) for count in sorted({r["count"] for run in runs for r in run["records"]}))
    text = [
        f"Runs: {', '.join(run['run'] for run in runs)}; {count} prompts of each kind at each checkpoint, against "
        f"avg@{k}. Skill: 1 - MSE / MSE of the mean reward of the latest steps. Calibration error: mean distance of "
        f"fifths by estimate. The last column is what the true rate itself would score against avg@{k}.",
        "",
        table(runs),
        "",
        "How open the prompts are that a choice would ask, of those never asked: mean p (1 - p), half the chance that "
        "two rollouts get unequal rewards. By the run's rule with several powers, the probe's uncertainty drawn as in "
        "training and left out.",
        "",
        choices_table(runs),
        "",
        "![What is known of prompts](prompt_study.png)",
        "",
    ]
    (out / "prompt_study.md").write_text("\n".join(text), encoding="utf-8")
    return out / "prompt_study.md"
