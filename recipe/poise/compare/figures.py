"""The report's figures; each function draws one matplotlib figure."""

from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from recipe.poise.compare.measures import PHASES, STEP_METRICS, calibration
from recipe.poise.compare.summary import AXES, Band, Method, accuracy_bands, metric_bands

# Okabe and Ito's colours, which the colour-blind can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
STYLES = ("-", "--", "-.", ":")
SHOWN = ("gradient norm", "advantage variance", "zero-advantage share", "response length", "probe correlation")
FITTING = 6  # names in a panel's legend; more would hide the curves
UNITS = {"seconds": "seconds in training steps", "updates": "updates"}


def _short(value: float, _position=None) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g} {unit}"
    return f"{value:g}"


def _draw(axes, bands: dict[str, Band], order: list[str]) -> None:
    for name, found in bands.items():
        place = order.index(name)
        colour, style = COLOURS[place % len(COLOURS)], STYLES[place // len(COLOURS) % len(STYLES)]
        label = name if found.seeds > 1 else f"{name} (1 run)"
        marker = "o" if len(found.x) < 30 else None
        axes.plot(found.x, found.mean, style, color=colour, label=label, marker=marker, markersize=3)
        if found.seeds > 1:
            axes.fill_between(found.x, found.low, found.high, color=colour, alpha=0.15, linewidth=0)
    axes.grid(alpha=0.25)
    axes.xaxis.set_major_formatter(FuncFormatter(_short))


def accuracy_figure(methods: list[Method], level: float | None, over: Sequence[str] = tuple(AXES)) -> Figure:
    """Validation accuracy over each of some `AXES`."""
    order = [method.name for method in methods]
    figure, panels = plt.subplots(1, len(over), figsize=(13, 4), sharey=True, layout="constrained")
    for panel, axis in zip(panels, over, strict=True):
        _draw(panel, accuracy_bands(methods, axis), order)
        panel.set_xlabel(UNITS.get(axis, axis))
        if level is not None:
            panel.axhline(level, color="grey", linewidth=0.8, linestyle=(0, (1, 2)))
    panels[0].set_ylabel("validation accuracy")
    if panels[0].has_data() and len(methods) <= FITTING:
        panels[-1].legend(loc="lower right", fontsize=8)
    elif panels[0].has_data():
        figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure


def metrics_figure(methods: list[Method]) -> Figure:
    """Per-update metrics; a metric that no run has is left out."""
    order = [method.name for method in methods]
    found = {label: bands for label in SHOWN if (bands := metric_bands(methods, STEP_METRICS[label]))}
    columns = 3
    rows = max(1, -(-len(found) // columns))
    figure, grid = plt.subplots(rows, columns, figsize=(13, 3.2 * rows), layout="constrained", squeeze=False)
    for panel in grid.flat[len(found) :]:
        panel.axis("off")
    for panel, (label, bands) in zip(grid.flat, found.items(), strict=False):
        _draw(panel, bands, order)
        panel.set_title(label, fontsize=10)
        panel.set_xlabel("updates")
    if found:
        grid.flat[0].legend(fontsize=8)
    return figure


def phases_figure(methods: list[Method]) -> Figure:
    """Seconds per update by phase, means over runs; and what of it the baseline costs."""
    figure, panel = plt.subplots(figsize=(13, 0.9 + 0.5 * len(methods)), layout="constrained")
    names, left = [method.name for method in methods], np.zeros(len(methods))
    for place, phase in enumerate(PHASES):
        widths = np.array([_mean([item.phases.get(phase, 0.0) for item in method.measures]) for method in methods])
        if widths.any():
            panel.barh(names, widths, left=left, color=plt.cm.tab10(place), label=phase)
            left += widths
    for place, method in enumerate(methods):
        cost = _mean([sum(item.baseline.values()) for item in method.measures])
        panel.text(left[place], place, f"  baseline {cost:.2f} s", va="center", fontsize=8)
    panel.set_xlim(0, max(left.max() * 1.2, 1e-9))
    panel.invert_yaxis()
    panel.set_xlabel("seconds per update")
    panel.legend(fontsize=8, ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def _mean(values: list[float]) -> float:
    return float(np.mean(values))


def probe_figure(methods: list[Method]) -> Figure | None:
    """How well the values predict rewards over updates: correlation, error and Brier skill. None without a probe."""
    order = [method.name for method in methods]
    wanted = {
        "correlation with the sibling's reward": STEP_METRICS["probe correlation"],
        "mean absolute error": ("poise/mae",),
        "Brier skill (over the constant)": ("poise/brier_skill",),
        "advantage variance / RLOO's": ("poise/advantage_variance_ratio",),
    }
    found = {label: bands for label, names in wanted.items() if (bands := metric_bands(methods, names))}
    if not found:
        return None
    figure, panels = plt.subplots(1, len(found), figsize=(13, 3.4), layout="constrained", squeeze=False)
    for panel, (label, bands) in zip(panels.flat, found.items(), strict=True):
        _draw(panel, bands, order)
        panel.set_title(label, fontsize=10)
        panel.set_xlabel("updates")
    panels.flat[0].legend(fontsize=8)
    return figure


def calibration_figure(methods: list[Method]) -> Figure | None:
    """Mean reward of the siblings by predicted reward, a curve per run. None where no run logged it."""
    figure, panel = plt.subplots(figsize=(5, 4.2), layout="constrained")
    for place, method in enumerate(methods):
        curves = [curve for run in method.runs if len((curve := calibration(run)).x)]
        for number, curve in enumerate(curves):
            label = method.name if number == 0 else None
            panel.plot(curve.x, curve.y, "o-", color=COLOURS[place % len(COLOURS)], label=label, markersize=4)
    if not panel.has_data():
        plt.close(figure)
        return None
    panel.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    panel.set_xlabel("predicted reward, fifths of the rows")
    panel.set_ylabel("reward of the siblings")
    panel.grid(alpha=0.25)
    panel.legend(fontsize=8)
    return figure
