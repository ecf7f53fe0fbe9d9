"""Table, figures and config block of a study."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from probe.metrics import calibration_curve
from probe.pairing import sibling_mean
from probe.study.compare import Choice, Result
from probe.study.dump import Dump

HEADER = (
    "block tokens  states           signals                    estimator        Pearson    MAE   Brier  var/RLOO  fit s"
)


def table_row(result: Result) -> str:
    choice = result.choice
    signals = "+".join(signal.replace("entropy_", "e.") for signal in choice.signals) or "none"
    if len(signals) > 26:
        signals = f"{len(choice.signals)} signals" + (" with reward" if "reward" in choice.signals else "")
    return (
        f"{choice.block:>5} {choice.tokens:>6}  {'+'.join(choice.kinds):<16} {signals:<26} {choice.estimator:<16} "
        f"{result.pearson:>7.3f} {result.mae:>6.3f} {result.brier_skill:>7.3f} {result.variance_ratio:>9.3f} "
        f"{result.seconds:>6.2f}"
    )


def config_block(choice: Choice, rank: int) -> str:
    """The ``poise:`` settings of a choice, to paste into a run's YAML.

    Args:
        rank: of the subspace that the estimators were compared in.
    """
    return (
        "poise:\n"
        f"  block: {choice.block}\n"
        f"  num_tokens: {choice.tokens}\n"
        f"  states: [{', '.join(choice.kinds)}]\n"
        f"  signals: [{', '.join(choice.signals)}]\n"
        "  probe:\n"
        f"    kind: {choice.estimator}\n"
        f"    rank: {rank}\n"
    )


def _figure(path: Path, draw, xlabel: str, ylabel: str, title: str) -> Path:
    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    draw(axes)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    figure.suptitle(title, fontsize="medium")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def figures(
    folder: Path, dump: Dump, blocks: list[Result], winner: Result, curve: list[tuple[int, Result]]
) -> list[Path]:
    """Calibration, correlation by block, learning curve: PNG files in `folder`."""
    target_N = sibling_mean(dump.reward_N, dump.group_N)
    bins = calibration_curve(winner.value_N, target_N, group_R=dump.prompt_N)

    def calibration(axes):
        ends = [min(0.0, float(bins.value_B.min())), max(1.0, float(bins.value_B.max()))]
        axes.plot(ends, ends, color="0.7", linewidth=1)
        axes.errorbar(bins.value_B, bins.target_B, yerr=1.96 * bins.error_B, fmt="o-", label="95% interval")

    def by_block(axes):
        for tokens in sorted({result.choice.tokens for result in blocks}):
            points = sorted((r.choice.block, r.pearson) for r in blocks if r.choice.tokens == tokens)
            axes.plot(*zip(*points, strict=True), "o-", label=f"{tokens} token{'s' * (tokens > 1)}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    def learning(axes):
        axes.plot([rows for rows, _ in curve], [result.brier_skill for _, result in curve], "o-", label="Brier skill")
        axes.plot([rows for rows, _ in curve], [result.pearson for _, result in curve], "s--", label="Pearson")
        axes.axhline(0.0, color="0.7", linewidth=1)
        axes.set_xscale("log", base=2)
        axes.set_xticks([rows for rows, _ in curve], [f"{rows:,}" for rows, _ in curve])

    rows = f"{len(dump.reward_N):,} rows, {len(dump.prompt_N.unique()):,} prompts"
    error = f"expected calibration error {bins.expected_error:.3f}"
    return [
        _figure(
            folder / "calibration.png", calibration, "predicted reward", "mean reward of the siblings",
            f"Calibration on unseen prompts\n{error}",
        ),
        _figure(folder / "blocks.png", by_block, "decoder block", "Pearson correlation", f"Which block?\n{rows}"),
        _figure(
            folder / "learning_curve.png", learning, "rows learned from", "score on unseen prompts",
            "How many rows?\n0: no better than the mean reward",
        ),
    ]  # fmt: skip
