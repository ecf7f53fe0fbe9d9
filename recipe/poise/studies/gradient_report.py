"""The gradient study as Markdown, PNG and JSON, and the paper's claim read off it."""

import json
from dataclasses import asdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from recipe.poise.compare.figures import COLOURS
from recipe.poise.studies.gradient_statistics import Moments, quotient

# more prompts with two rollouts against fewer with eight: (two, eight)
CLAIMS = (
    ("POISE, n=2", "GRPO, n=8"),
    ("POISE, n=2", "DAPO, n=8"),
    ("POISE, n=2", "RLOO, n=8"),
    ("POISE, n=2", "POISE, n=8"),
    ("POISE, n=2", "RLOO, n=2"),
    ("RLOO, n=2", "RLOO, n=8"),
)


SCALED = ("GRPO", "DAPO")  # divide by a deviation: another scale, so another gradient


def answers(found: dict[str, Moments]) -> list[str]:
    """One line per comparison: is the noise at equal tokens lower, and is that beyond chance?

    Estimators of one and the same gradient are compared by their variance; where one has another scale, by variance
    over signal, whose interval is wider since the signal is estimated too.
    """
    lines = []
    for few, many in CLAIMS:
        if few not in found or many not in found:
            continue
        scaled = few.startswith(SCALED) or many.startswith(SCALED)
        share = quotient(found[few], found[many], relative=scaled)
        said = "lower" if share.high < 1 else "higher" if share.low > 1 else "not told apart"
        other = quotient(found[few], found[many], relative=not scaled)
        names = ("variance / signal", "variance")
        lines.append(
            f"{few} beside {many}, equal tokens: {names[not scaled]} is {said}: {share:.2f} times, 95%; "
            f"{names[scaled]}: {other:.2f} times"
        )
    return lines


def table(found: dict[str, Moments], batches: dict[str, int]) -> str:
    lines = ["| estimator | batches | variance | signal | variance / signal |", "|---|---|---|---|---|"]
    for name, item in found.items():
        parts = item.intervals()
        lines.append(
            f"| {name} | {batches[name]} | {parts['variance']:.2e} | {parts['signal']:.2e} | {parts['ratio']:.1f} |"
        )
    return "\n".join(lines)


def figure(found: dict[str, Moments]):
    """Variance, and variance over signal, by estimator, with 95% intervals."""
    drawn, panels = plt.subplots(1, 2, figsize=(13, 0.8 + 0.36 * len(found)), layout="constrained", sharey=True)
    for panel, (key, label) in zip(panels, (("variance", "variance"), ("ratio", "variance / signal")), strict=True):
        for place, item in enumerate(found.values()):
            part, colour = item.intervals()[key], COLOURS[0 if "POISE" in list(found)[place] else 6]
            panel.plot([part.low, part.high], [place, place], color=colour)
            panel.plot(part.value, place, "o", color=colour)
        panel.set_xlabel(f"{label} of the gradient of a batch (95%)")
        panel.set_xscale("log")
        panel.grid(alpha=0.25, which="both")
    panels[0].set_yticks(range(len(found)), list(found))
    panels[0].invert_yaxis()
    return drawn


def write(found: dict[str, Moments], batches: dict[str, int], facts: dict, out: Path) -> Path:
    """gradient_variance.md, .png, .json in a folder; the Markdown file's path.

    Args:
        facts: `heading` (text) and `settings`.
    """
    out.mkdir(parents=True, exist_ok=True)
    numbers = {
        name: {"batches": batches[name], **{key: asdict(part) for key, part in item.intervals().items()}}
        for name, item in found.items()
    }
    said = answers(found)
    (out / "gradient_variance.json").write_text(json.dumps({**facts, "results": numbers, "answers": said}, indent=2))
    drawn = figure(found)
    drawn.savefig(out / "gradient_variance.png", dpi=130)
    plt.close(drawn)
    text = [facts["heading"], table(found, batches), "\n".join(f"- {line}" for line in said)]
    text.append("![Variance of the policy gradient](gradient_variance.png)")
    (out / "gradient_variance.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    return out / "gradient_variance.md"
