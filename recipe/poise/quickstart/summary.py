"""A run's figure and a short table, from the lines that verl's file logger wrote.

``python -m recipe.poise.quickstart.summary --metrics RUN/metrics.jsonl --out RUN`` prints the table and writes
``RUN/figure.png``. A metric that the run did not log is shown as missing. With ``--follow`` it prints a line per step
while the run goes on, until the process that started it ends or stops it.
"""

import argparse
import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

MISSING = "missing"
VALIDATION = re.compile(r"val-core/(?P<source>.+)/(?:acc|reward)/mean@(?P<n>\d+)")
REWARD = "critic/score/mean"
CORRELATION = "poise/correlation"
GRADIENT = "poise/gradient_variance_ratio"
VARIANCE, VARIANCE_RLOO = "poise/advantage_variance", "poise/advantage_variance_rloo"
AGREEMENT = "training/rollout_actor_probs_pearson_corr"
STEP_SECONDS, VALIDATION_SECONDS = "timing_s/step", "timing_s/testing"
PHASES = ("gen", "reward", "old_log_prob", "ref", "values", "adv", "update_critic", "update_actor", "update_weights")


@dataclass(frozen=True)
class Series:
    """One metric over the run: steps and values, of the same length, without the steps that lack it."""

    steps: list[int]
    values: list[float]

    @property
    def last(self) -> float | None:
        return self.values[-1] if self.values else None


class Metrics:
    """The lines of a metrics file, by step; two lines of one step are merged, the later one wins."""

    def __init__(self, path: Path):
        """Raises FileNotFoundError without a file, ValueError where a line is not the file logger's."""
        self.by_step: dict[int, dict[str, float | None]] = {}
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                self.by_step.setdefault(int(entry["step"]), {}).update(entry["data"])
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                if number == len(lines):  # a run that was killed may have left half a line
                    continue
                raise ValueError(f"{path}:{number} is not a line of verl's file logger: {line[:80]!r}") from error

    def series(self, name: str) -> Series:
        """NaN is logged as null, and left out."""
        points = [(step, data[name]) for step, data in sorted(self.by_step.items()) if data.get(name) is not None]
        return Series([step for step, _ in points], [float(value) for _, value in points if value is not None])

    def validation(self) -> dict[str, Series]:
        """Accuracy per data source; with several sources also their plain mean, first, as "mean"."""
        names = sorted({name for data in self.by_step.values() for name in data if VALIDATION.fullmatch(name)})
        found = {name.removeprefix("val-core/").split("/")[0]: self.series(name) for name in names}
        if len(found) < 2:
            return found
        shared = sorted(set.intersection(*(set(series.steps) for series in found.values())))
        at_step = [dict(zip(series.steps, series.values, strict=True)) for series in found.values()]
        mean = Series(shared, [sum(values[step] for values in at_step) / len(at_step) for step in shared])
        return {"mean": mean, **found}


def mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def shown(value: float | None, form: str = ".3f") -> str:
    return MISSING if value is None else format(value, form)


def table(metrics: Metrics) -> list[tuple[str, str]]:
    """Rows (what, value) of the summary."""
    rows = []
    for source, series in metrics.validation().items() or [("validation", Series([], []))]:
        text = MISSING
        if series.values:
            first, last = series.values[0], series.values[-1]
            text = f"{first:.3f} -> {last:.3f} ({last - first:+.3f}), steps {series.steps[0]} to {series.steps[-1]}"
        rows.append((f"validation accuracy, {source}", text))
    seconds = metrics.series(STEP_SECONDS).values
    correlation, agreement = metrics.series(CORRELATION).values, metrics.series(AGREEMENT).values
    variance, rloo = metrics.series(VARIANCE), metrics.series(VARIANCE_RLOO)
    rows += [
        ("training steps", str(len(metrics.series(REWARD).steps))),
        ("minutes in steps, validation apart", shown(sum(seconds) / 60 if seconds else None, ".1f")),
        ("probe correlation, last 10 steps", shown(mean(correlation[-10:]))),
        ("gradient variance over RLOO's, last 10 steps", shown(mean(metrics.series(GRADIENT).values[-10:]))),
        ("advantage variance over RLOO's, last 10 steps", shown(_ratio(variance.values[-10:], rloo.values[-10:]))),
        ("rollout and actor agree (Pearson), lowest", shown(min(agreement, default=None), ".6f")),
    ]
    return rows


def where_time_went(metrics: Metrics, phases: dict[str, float]) -> str:
    """Minutes of each phase of the quickstart. The last one is training: its steps and validations are in the log, and
    what remains is the start of Ray and vLLM, the first validation, and the end.

    Args:
        phases: seconds by name, in order.
    """
    *before, (name, training) = phases.items()
    steps, testing = (sum(metrics.series(key).values) for key in (STEP_SECONDS, VALIDATION_SECONDS))
    parts = [*before, ("start of Ray and vLLM, first validation", training - steps - testing)]
    parts += [(f"{name}'s steps", steps), ("later validations", testing)]
    total = sum(seconds for _, seconds in parts) / 60
    return f"{total:.1f}: " + ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in parts)


def phase(text: str) -> tuple[str, float]:
    """NAME=SECONDS, for argparse."""
    name, _, seconds = text.rpartition("=")
    return name, float(seconds)


def _ratio(above: list[float], below: list[float]) -> float | None:
    return sum(above) / sum(below) if above and sum(below) > 0 else None


def draw(metrics: Metrics, path: Path) -> None:
    """Four panels: validation accuracy, training reward, the probe, seconds per phase."""
    figure, ((accuracy, reward), (probe, phases)) = plt.subplots(2, 2, figsize=(10, 6.5), layout="constrained")

    for source, series in metrics.validation().items():
        accuracy.plot(series.steps, series.values, marker="o", label=source, linewidth=2.5 if source == "mean" else 1.2)
    _finish(accuracy, "Validation accuracy", "accuracy")

    series = metrics.series(REWARD)
    reward.plot(series.steps, series.values, color="tab:green")
    _finish(reward, "Training reward, mean of the batch", "reward")

    series = metrics.series(GRADIENT)
    probe.plot(series.steps, series.values, label="variance of the gradient over RLOO's")
    for name, label in ((VARIANCE, "variance of the advantage"), (VARIANCE_RLOO, "the same rows with RLOO")):
        series = metrics.series(name)
        probe.plot(series.steps, series.values, label=label, linestyle="-" if name == VARIANCE else "--")
    _finish(probe, "What the baseline does", "")

    timed = {name: metrics.series(f"timing_s/{name}") for name in PHASES}
    timed = {name: series for name, series in timed.items() if series.values}
    steps = sorted({step for series in timed.values() for step in series.steps})
    at_step = {name: dict(zip(series.steps, series.values, strict=True)) for name, series in timed.items()}
    if steps:
        stacked = [[values.get(step, 0.0) for step in steps] for values in at_step.values()]
        phases.stackplot(steps, stacked, labels=[name.replace("_", " ") for name in timed])
    _finish(phases, "Time per step", "seconds")

    figure.savefig(path, dpi=120)
    plt.close(figure)


def _finish(axes, title: str, unit: str) -> None:
    axes.set(title=title, xlabel="step", ylabel=unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if any(len(line.get_xdata()) for line in axes.lines) or axes.collections:
        if labels := axes.get_legend_handles_labels()[1]:
            low, high = axes.get_ylim()
            axes.set_ylim(low, high + 0.35 * (high - low))  # room for the legend, so that it covers no curve
            axes.legend(fontsize="small", loc="upper left", ncols=1 if len(labels) < 5 else 3)
    else:
        axes.text(0.5, 0.5, MISSING, ha="center", transform=axes.transAxes)


def step_line(step: int, data: dict[str, float | None]) -> str:
    """What a person watches: reward, probe, seconds, and accuracies where there was a validation."""
    parts = [f"step {step:>4}"]
    for name, label, form in (
        (REWARD, "reward", ".3f"),
        (CORRELATION, "probe correlation", ".2f"),
        (STEP_SECONDS, "seconds", ".1f"),
    ):
        if name in data:
            parts.append(f"{label} {shown(data[name], form)}")
    accuracies = [(match["source"], data[name]) for name in sorted(data) if (match := VALIDATION.fullmatch(name))]
    if accuracies:
        parts.append("validation " + ", ".join(f"{source} {shown(value)}" for source, value in accuracies))
    return "  ".join(parts)


def follow(path: Path, poll_s: float = 1.0, silence_s: float = 30.0) -> None:
    """Print `step_line` of each new line of `path`, which may not exist yet; ends when the parent process is gone."""
    parent, start = os.getppid(), time.monotonic()
    printed, spoke = 0, start
    while os.getppid() == parent:
        text = path.read_text() if path.exists() else ""
        whole = text[: text.rfind("\n") + 1].splitlines()
        for line in whole[printed:]:
            entry = json.loads(line)
            print(step_line(entry["step"], entry["data"]), flush=True)
        if len(whole) > printed:
            printed, spoke = len(whole), time.monotonic()
        elif not printed and time.monotonic() - spoke >= silence_s:
            spoke = time.monotonic()
            print(f"starting, {spoke - start:.0f} s", flush=True)
        time.sleep(poll_s)


def main() -> None:
    parser = argparse.ArgumentParser(description="Print a run's summary and draw its figure.")
    parser.add_argument("--metrics", type=Path, required=True, help="JSONL of verl's file logger")
    parser.add_argument("--out", type=Path, required=True, help="folder for figure.png")
    parser.add_argument(
        "--phases", nargs="+", type=phase, metavar="NAME=SECONDS", help="what came before, training last"
    )
    parser.add_argument("--follow", action="store_true", help="print steps as they come, draw nothing")
    args = parser.parse_args()
    if args.follow:
        return follow(args.metrics)
    if not args.metrics.is_file():
        parser.exit(
            1, f"no metrics at {args.metrics}: the run ended before its first step, or trainer.logger lacks 'file'\n"
        )
    metrics = Metrics(args.metrics)
    args.out.mkdir(parents=True, exist_ok=True)
    draw(metrics, args.out / "figure.png")
    rows = table(metrics)
    if args.phases:
        rows.append(("minutes", where_time_went(metrics, dict(args.phases))))
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))
    print(f"figure: {args.out / 'figure.png'}\nmetrics: {args.metrics}")


if __name__ == "__main__":
    main()
