"""The tables of docs/gpu.md from what `benchmarks/gpu/run.py` wrote.

    python benchmarks/gpu/table.py OUT/gpu.json [MORE.json ...]

A later file adds to or replaces the sections of an earlier one (of the same card: others are refused).
"""

import argparse
import json
import sys
from pathlib import Path

# section -> heading and what its rows are
SECTIONS = {
    "capture": ("Capture in the log-prob pass", "Median seconds of a pass; median ratio of neighbouring repetitions."),
    "capture_torch": ("The same with verl's own log-probs", "Without flash-attn they are computed token by token."),
    "identical": ("To the last bit", "Log-probs and entropies of passes over the same rows."),
    "sum_pi_squared": ("Sum of squared probabilities", "The same pass with and without, capture on."),
    "prompts": ("A pass over prompts alone", "Against the log-prob pass over as many rollouts."),
    "entropy": ("Entropy", "verl's ways to compute it, against a pass without; capture off."),
    "seat": ("The probe's seat", "Captured rows, from the engine's stream to values, a fit and advantages."),
    "update": ("An update", "All rows as one mini-batch: forward, backward, AdamW; gradient checkpointing on."),
    "probe": ("The probe's step", "Three domains with full windows; a step says values, then learns."),
    "kernels": ("Its small decompositions", "On the device, and moved to the CPU and back."),
}
LEFT_OUT = ("all ms", "slowest calls", "traceback")  # in the JSON only


def cell(value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def markdown(rows: list[dict]) -> str:
    """A table; a column that a row lacks is empty there."""
    heads = list(dict.fromkeys(key for row in rows for key in row if key not in LEFT_OUT))
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    lines += ["| " + " | ".join(cell(row.get(head, "")) for head in heads) + " |" for row in rows]
    return "\n".join(lines)


def render(whole: dict) -> str:
    """All sections, those that failed with their error."""
    about = ", ".join(f"{name} {value}" for name, value in whole["environment"].items())
    parts = [f"Measured on: {about}" + (" (a tiny model: the figures mean nothing)" if whole.get("small") else "")]
    engines = {part: said["engine"] for part, said in whole["parts"].items() if "engine" in said}
    parts += [f"{part}: " + ", ".join(f"{k}: {v}" for k, v in about.items()) for part, about in engines.items()]
    for section, (heading, meaning) in SECTIONS.items():
        said = {part: content["sections"].get(section) for part, content in whole["parts"].items()}
        said = {part: content for part, content in said.items() if content}
        if not said:
            continue
        parts.append(f"### {heading}\n\n{meaning}")
        rows = [row for content in said.values() for row in content.get("rows", [])]
        if rows:
            parts.append(markdown(rows))
        parts += [f"{part} failed: {content['failed']}" for part, content in said.items() if "failed" in content]
    parts += [f"{part} failed: {said['failed']}" for part, said in whole["parts"].items() if "failed" in said]
    shares = step_shares(whole)
    if shares:
        parts.append("### Shares of a step\n\nStep: log-prob pass and update; generation would make it longer.")
        parts.append(markdown(shares))
    return "\n\n".join(parts) + "\n"


def step_shares(whole: dict) -> list[dict]:
    """What capture, the probe and a prompt pass add to a step, where all of it was measured."""

    def rows(part, section):
        return whole["parts"].get(part, {}).get("sections", {}).get(section, {}).get("rows", [])

    table = []
    for update in rows("fsdp2", "update"):
        step = update["update s"] + update["log-prob pass s"]
        added = {}
        for row in (*rows("fsdp2", "capture"), *rows("fsdp2", "capture_torch")):
            if (row["log-probs"], row["tokens/row"]) == (update["log-probs"], update["tokens/row"]):
                added["capture"] = row["s"] - row["without s"]
        for row in rows("probe", "probe"):
            if row["device"] == rows("probe", "probe")[0]["device"] and "failed" not in row:
                added[f"probe, {row['fit']}, {row['weights']}"] = row["mean ms"] / 1e3
        for row in rows("fsdp2", "prompts"):
            added["prompt pass"] = row["s"]
        head = {"log-probs": update["log-probs"], "rows x tokens": f"{update['rows']} x {update['tokens/row']}"}
        table += [
            head | {"step s": step, "what": what, "s": seconds, "% of step": 100 * seconds / step}
            for what, seconds in added.items()
        ]
    return table


def merged(files: list[Path]) -> dict:
    """Ends the program with a sentence where files are of different machines."""
    whole, *others = (json.loads(file.read_text()) for file in files)
    for other in others:
        for key in ("device", "torch", "verl", "transformers"):
            if whole["environment"].get(key) != other["environment"].get(key):
                sys.exit(f"error: the files disagree about {key}: these figures do not belong into one table")
        for part, said in other["parts"].items():
            mine = whole["parts"].setdefault(part, {"sections": {}})
            mine |= {key: value for key, value in said.items() if key != "sections"}
            mine["sections"] |= said["sections"]
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, nargs="+")
    print(render(merged(parser.parse_args().json)), end="")


if __name__ == "__main__":
    main()
