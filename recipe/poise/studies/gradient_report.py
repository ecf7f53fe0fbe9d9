"""The gradient study as Markdown, PNG and JSON: one table of estimators over all checkpoints, and three beside it.

Ratios over several seeds are means of their logarithms; the interval is that of the mean, from each seed's paired
bootstrap, and the lowest and highest seed are told beside it.
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from recipe.poise.compare.figures import COLOURS

# more prompts with fewer rollouts against fewer with eight, and what the states add: (one, other, key of the ratio)
CLAIMS = (
    ("POISE, lagged, uniform, n=2", "RLOO, n=8", "over_rloo"),
    ("POISE, fresh, energy, n=2", "RLOO, n=8", "over_rloo"),
    ("energy-weighted constant, n=1", "RLOO, n=8", "over_rloo"),
    ("POISE, fresh, energy, n=2", "energy-weighted constant, n=2", "over_constant_2"),
    ("POISE, fresh, energy, n=2", "energy-weighted constant, n=1", "over_constant"),
    ("prompt probe, fresh, energy, n=1", "energy-weighted constant, n=1", "over_constant"),
    ("prompt probe, fresh, energy, n=1", "prompt probe, fresh, weighted regression, n=1", "over_weighted"),
)


def pooled(parts: list[dict]) -> tuple[float, ...]:
    """Mean, low and high of its 95% interval, lowest and highest seed, of ratios {value, low, high}."""
    values = np.array([part["value"] for part in parts])
    if not (np.isfinite(values).all() and (values > 0).all()):
        return (float("nan"),) * 5
    bounds = np.array([[part["low"], part["high"]] for part in parts])
    logs = np.log(values)
    down, up = ((np.abs(logs - np.log(np.maximum(bound, 1e-12))) ** 2).sum() ** 0.5 / len(parts) for bound in bounds.T)
    mean = logs.mean()
    return tuple(float(x) for x in (np.exp(mean), np.exp(mean - down), np.exp(mean + up), values.min(), values.max()))


MOST = 1e4  # a ratio beyond it is none


def cell(parts: list[dict], form: str = "{:.3f}") -> str:
    """A ratio as the tables have it."""
    mean, low, high, lowest, highest = pooled(parts)
    if not np.isfinite(mean):
        return "–"
    # a signal that is not told from zero bounds no ratio
    if not high < MOST or low < 1 / MOST:
        return "not bounded"
    text = f"{form.format(mean)} ({form.format(low)} to {form.format(high)})"
    return text if len(parts) == 1 else f"{text}; seeds {form.format(lowest)}–{form.format(highest)}"


def escaped(name: str) -> str:
    """As a table's cell has it."""
    return name.replace("|", r"\|")


def by_label(done: list[dict]) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for entry in done:
        found.setdefault(entry["label"], []).append(entry)
    return found


def estimator_table(done: list[dict], key: str) -> str:
    """Variance over that of another estimator, a column per checkpoint."""
    labels = by_label(done)
    lines = ["| estimator | unbiased | " + " | ".join(labels) + " |", "|---|---" + "|---" * len(labels) + "|"]
    for name, first in done[0]["results"].items():
        mark = "" if first["unbiased"] in ("yes", "but for 1 / batch") else " †"
        cells = [cell([entry["results"][name][key] for entry in entries]) + mark for entries in labels.values()]
        lines.append(f"| {escaped(name)} | {first['unbiased']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def absolute_table(entries: list[dict]) -> str:
    """Variance, signal and ratio of one checkpoint, mean over seeds."""
    lines = ["| estimator | variance of a batch | signal | variance / signal |", "|---|---|---|---|"]
    for name in entries[0]["results"]:
        parts = [[entry["results"][name][key]["value"] for entry in entries] for key in ("variance", "signal", "ratio")]
        variance, signal, ratio = (float(np.mean(part)) for part in parts)
        lines.append(f"| {escaped(name)} | {variance:.2e} | {signal:.2e} | {ratio:.1f} |")
    return "\n".join(lines)


def energy_table(entries: list[dict]) -> str:
    """What each candidate for the norm of a score is worth at one checkpoint."""
    columns = {"constant, n=1": "constant", "prompt probe, n=1": "prompt_probe", "POISE, n=2": "poise"}
    lines = [
        "| energy | correlation | b* | " + " | ".join(columns) + " |",
        "|---|---|---" + "|---" * len(columns) + "|",
    ]
    for name, first in entries[0]["energies"].items():
        numbers = [np.mean([entry["energies"][name][key] for entry in entries]) for key in ("correlation", "constant")]
        cells = [f"{numbers[0]:.2f}", f"{numbers[1]:.3f}"]
        for key in columns.values():
            full = f"over_rloo_{key}"
            cells.append(cell([entry["energies"][name][full] for entry in entries]) if full in first else "–")
        lines.append(f"| {escaped(name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def worth_table(done: list[dict]) -> str:
    """Shares of the variance by source, mean over seeds of value and bounds, two columns per checkpoint."""
    labels = by_label(done)
    heads = [f"{label}, {what}" for label in labels for what in ("reward", "energy-weighted")]
    lines = ["| told by | " + " | ".join(heads) + " |", "|---" + "|---" * len(heads) + "|"]
    for source in done[0]["worth"]["equal"]:
        cells = []
        for entries in labels.values():
            for kind in ("equal", "energy"):
                value, low, high = np.mean([entry["worth"][kind][source] for entry in entries], axis=0)
                cells.append(f"{value:.2f} ({low:.2f} to {high:.2f})")
        lines.append(f"| {source} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def answers(done: list[dict]) -> list[str]:
    """One line per claim and checkpoint: is the variance at equal tokens lower, and is that beyond chance?"""
    lines = []
    for label, entries in by_label(done).items():
        for name, other, key in CLAIMS:
            mean, low, high, *_ = pooled([entry["results"][name][key] for entry in entries])
            said = "lower" if high < 1 else "higher" if low > 1 else "not told apart"
            lines.append(
                f"{label}: {name} beside {other}, equal tokens: variance is {said}: "
                f"{mean:.2f} ({low:.2f} to {high:.2f}) times"
            )
    return lines


def figure(done: list[dict]):
    """Variance over that of RLOO with eight rollouts, a panel per checkpoint, with 95% intervals and seeds."""
    labels = by_label(done)
    names = list(done[0]["results"])
    drawn, panels = plt.subplots(
        1, len(labels), figsize=(4 + 3.6 * len(labels), 0.9 + 0.3 * len(names)), layout="constrained", sharey=True,
        squeeze=False,
    )  # fmt: skip
    for panel, (label, entries) in zip(panels[0], labels.items(), strict=True):
        shown = [0.1, 1.5]
        for place, name in enumerate(names):
            parts = [entry["results"][name]["over_rloo"] for entry in entries]
            mean, low, high, *_ = pooled(parts)
            if not np.isfinite(mean):
                continue
            colour = COLOURS[0] if name.startswith(("POISE", "prompt probe")) else COLOURS[6]
            open_face = parts and done[0]["results"][name]["unbiased"].startswith("no")
            panel.plot([low, high], [place, place], color=colour)
            panel.plot(mean, place, "o", color=colour, markerfacecolor="white" if open_face else colour)
            if len(parts) > 1:
                panel.plot([part["value"] for part in parts], [place] * len(parts), "|", color=colour, alpha=0.6)
            shown.append(mean)
        rate = np.mean([entry["facts"]["pass_rate"] for entry in entries])
        panel.set_title(f"{label} (pass rate {rate:.2f})", fontsize=10)
        panel.axvline(1.0, color="grey", linewidth=0.8)
        panel.set_xscale("log")
        panel.set_xticks([0.1, 0.2, 0.5, 1.0, 2.0], ["0.1", "0.2", "0.5", "1", "2"])
        panel.set_xticks([], minor=True)
        panel.set_xlim(min(shown) / 1.1, max(shown) * 1.5)  # a ratio that is hardly bounded would squeeze all others
        panel.set_xlabel("variance / RLOO, n=8, equal tokens (95%)")
        panel.grid(alpha=0.25, which="both")
    panels[0, 0].set_yticks(range(len(names)), names, fontsize=8)
    panels[0, 0].invert_yaxis()
    return drawn


def heading(done: list[dict], where: str) -> str:
    """What was studied."""
    settings, lines = done[0]["settings"], []
    for label, entries in by_label(done).items():
        facts = {
            key: np.mean([entry["facts"][key] for entry in entries]) for key in ("pass_rate", "length", "mixed_groups")
        }
        ratio = [entry["facts"]["energy_of_wrong_over_right"] for entry in entries]
        told = "" if None in ratio else f", a wrong rollout has {np.mean(ratio):.1f} times the energy of a right one"
        lines.append(
            f"- {label}: pass rate {facts['pass_rate']:.3f}, {facts['length']:.1f} tokens per response (longest "
            f"{max(entry['facts']['longest'] for entry in entries)}), {facts['mixed_groups']:.0%} of groups of 8 with "
            f"unequal rewards{told}"
        )
    seeds = sorted({entry["seed"] for entry in done})
    lines.append(
        f"\n{done[0]['facts']['prompts']} prompts x 8 rollouts; the probe after steps of {settings['rollouts']} "
        f"rollouts on {settings['fit_prompts']} other prompts, energy {settings['energy']}; "
        f"{settings['loss_agg_mode']}, "
        f"{settings['directions']} directions, seeds {', '.join(map(str, seeds))}; {where}."
    )
    return "\n".join(lines)


def markdown(done: list[dict], where: str) -> str:
    parts = [
        heading(done, where),
        "Variance at equal generated tokens over that of RLOO with eight rollouts (95%, paired bootstrap over "
        "prompts). †: another gradient, compared by variance over signal.",
        estimator_table(done, "over_rloo"),
        "The same over that of the energy-weighted constant, n=1.",
        estimator_table(done, "over_constant"),
        "\n".join(f"- {line}" for line in answers(done)),
        "![Variance of the policy gradient](gradient_variance.png)",
        "What values could gain: share of the variance of the reward, and of the energy-weighted squared error that "
        "the gradient sees, that a value takes off the constant's, on prompts that no fit has seen. At most: what lies "
        "between prompts, from more and fewer rollouts; an upper bound where rows weigh unequally.",
        worth_table(done),
    ]
    for label, entries in by_label(done).items():
        parts += [
            f"{label}: what may stand for the norm of a score. Correlation of logarithms with the true norm, the "
            "constant that it gives, and variance over that of RLOO, n=8, with it.",
            energy_table(entries),
            f"{label}: batches of {np.mean([entry['facts']['tokens_per_batch'] for entry in entries]):.0f} tokens.",
            absolute_table(entries),
        ]
    return "\n\n".join(parts) + "\n"


def write(done: list[dict], where: str, out: Path) -> Path:
    """gradient_variance.md, .png, .json in a folder; the Markdown file's path."""
    (out / "gradient_variance.json").write_text(json.dumps({"checkpoints": done, "made on": where}, indent=1))
    drawn = figure(done)
    drawn.savefig(out / "gradient_variance.png", dpi=130)
    plt.close(drawn)
    (out / "gradient_variance.md").write_text(markdown(done, where), encoding="utf-8")
    return out / "gradient_variance.md"
