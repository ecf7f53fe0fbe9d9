"""The tables of docs/many_seeds.md from what `benchmarks/many_seeds/run.py` wrote.

    python benchmarks/many_seeds/table.py [--beside poise] FILE.json [MORE.json ...]

Differences are paired: the same seed is the same order of prompts. Intervals are Student's t, 95%.
"""

import argparse
import json
import math
import statistics
from pathlib import Path

from scipy.stats import t as student

CONSTANT = "energy_constant"


def area(method: dict) -> list[float]:
    """Per seed: the mean accuracy over updates."""
    at, curves = method["at"], method["accuracy"]
    steps = list(zip(at, at[1:], curves, curves[1:], strict=False))
    whole = at[-1] - at[0]
    return [sum((b - a) * (x[s] + y[s]) / 2 for a, b, x, y in steps) / whole for s in range(len(curves[0]))]


def interval(values: list[float], form: str = "+.4f") -> str:
    """Mean with its interval; the mean alone of a single seed."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:{form}}"
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:{form}} ({mean - half:{form}} to {mean + half:{form}})"


def less(mine: list[float], base: list[float]) -> str:
    return interval([a - b for a, b in zip(mine, base, strict=True)])


def row(name: str, method: dict, base: dict | None) -> list[str]:
    """A method's cells."""
    ratios = method["ratio"]
    told = ["" if x != x else f"{x:.2f}" for x in (ratios[0], statistics.fmean(ratios[1:] or [float("nan")]))]
    cells = [name, interval(area(method), ".4f"), f"{statistics.fmean(method['accuracy'][-1]):.3f}"]
    if base is None:
        cells += ["", "", ""]
    else:
        pairs = [(area(method), area(base)), *((method["accuracy"][k], base["accuracy"][k]) for k in (1, -1))]
        cells += [less(*pair) for pair in pairs]
    return [*cells, *told, f"{method['seconds']:.0f}"]


def render(whole: dict, beside: str = CONSTANT) -> str:
    """Differences are to the method `beside`; squares are over the constant's always."""
    methods, base = whole["methods"], whole["methods"].get(beside)
    first = next(iter(methods.values()))["at"][1]
    heads = ["method", "area", "final", f"area less {beside}'s", f"after {first} updates", "final"]
    heads += ["squares, first update", "squares, later", "s"]
    lines = [", ".join(f"{key} {value}" for key, value in whole["settings"].items()), ""]
    lines += ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for name, method in methods.items():
        lines.append("| " + " | ".join(row(name, method, None if name == beside else base)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, nargs="+")
    parser.add_argument("--beside", default=CONSTANT, help="method that differences are to")
    args = parser.parse_args()
    print("\n".join(render(json.loads(path.read_text()), args.beside) for path in args.json), end="")


if __name__ == "__main__":
    main()
