"""What is counted of a run: from verl's metric names and ours to curves and numbers that can be compared."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from recipe.poise.compare.readers import Run

VALIDATION = re.compile(r"val-core/(?P<source>.+)/(?:acc|reward)/mean@(?P<n>\d+)")
CALIBRATION_BINS = 5  # `probe.metrics.calibration_metrics`
PHASES = ("gen", "reward", "old_log_prob", "ref", "values", "adv", "update_critic", "update_actor", "update_weights")
# per-step metrics whose mean over the run is told; the first name that a run has counts
STEP_METRICS = {
    "gradient norm": ("actor/grad_norm",),
    "advantage variance": ("advantage/variance", "poise/advantage_variance"),
    "zero-advantage share": ("advantage/zero_share",),
    "prompts per update": ("rollout/prompts",),
    "response length": ("response_length/mean",),
    "probe correlation": ("poise/correlation", "spo/correlation"),
    "seconds per update": ("timing_s/step",),
    "peak memory, GB": ("actor/perf/max_memory_allocated_gb", "perf/max_memory_allocated_gb"),
}


@dataclass(frozen=True)
class Curve:
    """Values over an axis, both (N,); the axis does not fall."""

    x: np.ndarray
    y: np.ndarray

    def at(self, x: np.ndarray) -> np.ndarray:
        """Linear between the points, NaN outside."""
        return np.interp(x, self.x, self.y, left=np.nan, right=np.nan) if len(self.x) else np.full(len(x), np.nan)

    def first(self, level: float) -> float | None:
        """Where the curve first reaches a level, linear between the points; None where it never does."""
        reached = np.flatnonzero(self.y >= level)
        if not len(reached):
            return None
        right = int(reached[0])
        if right == 0 or self.y[right] == self.y[right - 1]:
            return float(self.x[right])
        share = (level - self.y[right - 1]) / (self.y[right] - self.y[right - 1])
        return float(self.x[right - 1] + share * (self.x[right] - self.x[right - 1]))

    def mean_to(self, end: float) -> float | None:
        """Area under the curve from 0 to `end`, over `end`; None where the curve does not reach that far, or starts
        later."""
        if not len(self.x) or self.x[0] > 0 or self.x[-1] < end or end <= 0:
            return None
        x = np.append(self.x[self.x < end], end)
        y = self.at(x)
        return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / end)


def series(run: Run, names: Iterable[str]) -> Curve:
    """A metric over the steps; the first of the names that the run has."""
    for name in names:
        points = [(step, values[name]) for step, values in sorted(run.steps.items()) if name in values]
        if points:
            x, y = zip(*points, strict=True)
            return Curve(np.array(x, float), np.array(y, float))
    return Curve(np.empty(0), np.empty(0))


def metric_names(run: Run) -> set[str]:
    """Every metric that some step has."""
    return {name for values in run.steps.values() for name in values}


def update_steps(run: Run) -> list[int]:
    """Steps in which the policy was updated (a validation before training is logged as step 0)."""
    return [
        step for step, values in sorted(run.steps.items()) if "timing_s/step" in values or "actor/grad_norm" in values
    ]


def accuracy(run: Run) -> Curve:
    """Validation accuracy over updates: the plain mean over data sources, where a step has all of them."""
    names = sorted(name for name in metric_names(run) if VALIDATION.fullmatch(name))
    points = [
        (step, np.mean([values[name] for name in names]))
        for step, values in sorted(run.steps.items())
        if names and all(name in values for name in names)
    ]
    return Curve(np.array([step for step, _ in points], float), np.array([value for _, value in points], float))


def final_by_source(run: Run) -> dict[str, float]:
    """The last validation accuracy of each data source."""
    found = {}
    for name in sorted(metric_names(run)):
        if match := VALIDATION.fullmatch(name):
            found[match["source"]] = float(series(run, [name]).y[-1])
    return found


def protocol(run: Run) -> str:
    """What the accuracy is an average of, for instance avg@4 of 2 sources; "" without validation."""
    names = metric_names(run)
    found = sorted({match["n"] for name in names if (match := VALIDATION.fullmatch(name))})
    sources = {match["source"] for name in names if (match := VALIDATION.fullmatch(name))}
    return f"avg@{'/'.join(found)} of {len(sources)} sources" if found else ""


def generated_tokens(run: Run) -> tuple[Curve, bool]:
    """Cumulative response tokens over updates, thrown-away ones included; and whether that is exact.

    Runs of other entries log no ``rollout/generated_tokens``: then rows x mean length, and verl's count of discarded
    groups at the same mean length.
    """
    steps, total, exact, points = update_steps(run), 0.0, True, []
    n = float(((run.config.get("actor_rollout_ref") or {}).get("rollout") or {}).get("n") or 1)
    batch = float((run.config.get("data") or {}).get("train_batch_size") or np.nan)
    for step in steps:
        values = run.steps[step]
        if "rollout/generated_tokens" in values:
            total += values["rollout/generated_tokens"]
        else:
            exact = False
            groups = batch + sum(
                value for name, value in values.items()
                if name.endswith(("filter_groups/evicted_samples", "filter_groups/discarded_surplus_samples"))
            )  # fmt: skip
            total += groups * n * values.get("response_length/mean", np.nan)
        points.append((step, total))
    return _over(points), exact


def wall_clock(run: Run) -> Curve:
    """Cumulative seconds in training steps over updates, saving included; validation and starting up are not in it."""
    total, points = 0.0, []
    for step in update_steps(run):
        total += run.steps[step].get("timing_s/step", np.nan)
        points.append((step, total))
    return _over(points)


def _over(points: list[tuple[int, float]]) -> Curve:
    if not points or any(np.isnan(value) for _, value in points):
        return Curve(np.empty(0), np.empty(0))
    x, y = zip((0, 0.0), *points, strict=True)
    return Curve(np.array(x, float), np.array(y, float))


def accuracy_over(run: Run, axis: Curve) -> Curve:
    """Validation accuracy over another axis than updates (seconds, tokens); steps off the axis are left out."""
    found = accuracy(run)
    x = axis.at(found.x)
    known = np.isfinite(x)
    return Curve(x[known], found.y[known])


def phase_seconds(run: Run) -> dict[str, float]:
    """Mean seconds per update of each phase that verl times."""
    found = {phase: series(run, [f"timing_s/{phase}"]).y for phase in PHASES}
    return {phase: float(values.mean()) for phase, values in found.items() if len(values)}


def baseline_seconds(run: Run) -> dict[str, float]:
    """Seconds per update that the baseline costs, by part: the probe's, the critic's, the discarded generation."""
    cost = {}
    probe = [series(run, [f"poise/time_{part}_s"]).y for part in ("capture", "predict", "fit")]
    if any(len(part) for part in probe):
        cost["probe"] = sum(float(part.mean()) for part in probe if len(part))
    elif len(values := series(run, ["timing_s/values"]).y):
        cost["critic"] = float(values.mean()) + float(series(run, ["timing_s/update_critic"]).y.mean())
    discarded, generated = series(run, ["rollout/discarded_tokens"]).y, series(run, ["rollout/generated_tokens"]).y
    if len(discarded) and discarded.sum() and len(gen := series(run, ["timing_s/gen"]).y):
        cost["discarded generation"] = float(gen.mean() * discarded.sum() / generated.sum())
    return cost


def calibration(run: Run) -> Curve:
    """Mean reward of the siblings beside the mean prediction, by fifths of the rows, over the second half of the
    updates. Empty where the probe's bins were not logged, or the probe never predicted."""
    steps = update_steps(run)
    late = [run.steps[step] for step in steps[len(steps) // 2 :]]
    points = []
    for bin in range(1, CALIBRATION_BINS + 1):
        names = (f"poise/calibration_value_{bin}", f"poise/calibration_target_{bin}")
        both = [[values[name] for name in names] for values in late if all(name in values for name in names)]
        if not both:
            return Curve(np.empty(0), np.empty(0))
        points.append(np.mean(both, axis=0))
    x, y = np.array(points).T
    return Curve(x, y)


@dataclass(frozen=True)
class Measures:
    """One run in numbers; what the run does not have is None."""

    updates: int
    start: float | None
    final: float | None
    sources: dict[str, float]
    seconds: float | None
    tokens: float | None
    tokens_exact: bool
    discarded_share: float | None
    gradient_norm_variance: float | None
    means: dict[str, float]
    phases: dict[str, float]
    baseline: dict[str, float]


def measure(run: Run) -> Measures:
    """All numbers of a run."""
    curve, seconds, (tokens, exact) = accuracy(run), wall_clock(run), generated_tokens(run)
    generated, discarded = series(run, ["rollout/generated_tokens"]).y, series(run, ["rollout/discarded_tokens"]).y
    norms = series(run, STEP_METRICS["gradient norm"]).y
    means = {label: series(run, names).y for label, names in STEP_METRICS.items()}
    return Measures(
        updates=len(update_steps(run)),
        start=float(curve.y[0]) if len(curve.y) and curve.x[0] == 0 else None,
        final=float(curve.y[-1]) if len(curve.y) else None,
        sources=final_by_source(run),
        seconds=float(seconds.y[-1]) if len(seconds.y) else None,
        tokens=float(tokens.y[-1]) if len(tokens.y) else None,
        tokens_exact=exact,
        discarded_share=float(discarded.sum() / generated.sum()) if len(generated) and generated.sum() else None,
        gradient_norm_variance=float(norms.var(ddof=1)) if len(norms) > 1 else None,
        means={label: float(values.mean()) for label, values in means.items() if len(values)},
        phases=phase_seconds(run),
        baseline=baseline_seconds(run),
    )
