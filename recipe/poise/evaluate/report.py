"""From samples to numbers, tables and files. Pure: no engine, no model."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recipe.poise.evaluate.samples import Sample
from recipe.poise.evaluate.statistics import Estimate, estimate, estimate_of_suites, pass_at, powers_up_to

MEAN = "mean of the suites"


@dataclass(frozen=True)
class Problem:
    """One problem's samples in numbers. Samples whose verifier failed count nowhere but in `verifier_failed`."""

    problem: int
    prompt: str
    ground_truth: str
    samples: int
    verifier_failed: int
    correct: int
    avg: float | None  # None: no sample has a verdict
    pass_at: dict[int, float]
    mean_tokens: float
    truncated: int


@dataclass(frozen=True)
class SuiteResult:
    """One suite in numbers. Shares are of all samples."""

    problems: int
    samples: int
    avg: Estimate | None
    pass_at: dict[int, Estimate]
    mean_tokens: float
    truncated: float
    verifier_failed: float


def problem_result(number: int, row: dict[str, Any], samples: list[Sample], k: int) -> Problem:
    """Raises ValueError for a problem without samples."""
    if not samples:
        raise ValueError(f"problem {number} has no samples")
    judged = [sample for sample in samples if not sample.verifier_failed]
    correct = sum(sample.acc >= 1.0 for sample in judged)
    return Problem(
        problem=number,
        prompt=row["prompt"][-1]["content"],
        ground_truth=row["reward_model"]["ground_truth"],
        samples=len(samples),
        verifier_failed=len(samples) - len(judged),
        correct=correct,
        avg=float(np.mean([sample.acc for sample in judged])) if judged else None,
        pass_at={j: pass_at(len(judged), correct, j) for j in powers_up_to(k) if j <= len(judged)},
        mean_tokens=float(np.mean([sample.tokens for sample in samples])),
        truncated=sum(sample.truncated for sample in samples),
    )


def suite_result(problems: list[Problem], k: int) -> SuiteResult:
    averages = [problem.avg for problem in problems if problem.avg is not None]
    samples = sum(problem.samples for problem in problems)
    passes = {j: [problem.pass_at[j] for problem in problems if j in problem.pass_at] for j in powers_up_to(k)}
    return SuiteResult(
        problems=len(problems),
        samples=samples,
        avg=estimate(np.array(averages)) if averages else None,
        pass_at={j: estimate(np.array(values)) for j, values in passes.items() if values},
        mean_tokens=sum(problem.mean_tokens * problem.samples for problem in problems) / samples,
        truncated=sum(problem.truncated for problem in problems) / samples,
        verifier_failed=sum(problem.verifier_failed for problem in problems) / samples,
    )


def means(problems: dict[str, list[Problem]], k: int) -> dict[str, Estimate]:
    """Plain means over the suites: "avg" and "pass"; empty for a single suite, or where a suite has no verdicts."""
    by_suite = list(problems.values())
    values = {
        "avg": [[problem.avg for problem in suite if problem.avg is not None] for suite in by_suite],
        "pass": [[problem.pass_at[k] for problem in suite if k in problem.pass_at] for suite in by_suite],
    }
    if len(by_suite) < 2:
        return {}
    return {
        name: estimate_of_suites([np.array(suite) for suite in suites])
        for name, suites in values.items()
        if all(suites)
    }


def table(results: dict[str, SuiteResult], over_suites: dict[str, Estimate], k: int) -> list[list[str]]:
    """Header and rows. The `verifier failed` column stands only where one did."""
    failed = any(result.verifier_failed for result in results.values())
    rows = [["suite", "problems", f"avg@{k}", "95%", f"pass@{k}", "95%", "tokens", "truncated"]]
    for name, result in results.items():
        best = result.pass_at.get(k)
        lengths = [f"{result.mean_tokens:.0f}", f"{result.truncated:.1%}"]
        rows.append([name, str(result.problems), *_cells(result.avg), *_cells(best), *lengths])
    if over_suites:
        problems = str(sum(result.problems for result in results.values()))
        rows.append([MEAN, problems, *_cells(over_suites.get("avg")), *_cells(over_suites.get("pass")), "", ""])
    if failed:
        rows[0].append("verifier failed")
        for row, result in zip(rows[1:], results.values(), strict=False):
            row.append(f"{result.verifier_failed:.1%}")
        if over_suites:
            rows[-1].append("")
    return rows


def _cells(found: Estimate | None) -> tuple[str, str]:
    return ("-", "-") if found is None else (f"{found.value:.3f}", f"{found.low:.3f} to {found.high:.3f}")


def as_text(rows: list[list[str]]) -> str:
    """The first column to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
        for r in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def as_markdown(rows: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(rows[0]) - 1)
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (rows[0], rule, *rows[1:])
    )


def write(out: Path, protocol: dict[str, Any], problems: dict[str, list[Problem]], k: int) -> str:
    """Write ``problems/SUITE.jsonl``, ``results.json`` and ``results.md``; the table as text."""
    results = {name: suite_result(found, k) for name, found in problems.items()}
    over_suites = means(problems, k)
    rows = table(results, over_suites, k)
    for name, found in problems.items():
        _replace(out / "problems" / f"{name}.jsonl", "".join(json.dumps(asdict(one)) + "\n" for one in found))
    whole = {
        "protocol": protocol,
        "suites": {name: asdict(result) for name, result in results.items()},
        "mean": {name: asdict(found) for name, found in over_suites.items()},
    }
    _replace(out / "results.json", json.dumps(whole, indent=2) + "\n")
    said = "\n".join(f"- {name}: {value}" for name, value in protocol.items())
    _replace(out / "results.md", f"{as_markdown(rows)}\n\n{said}\n- intervals: bootstrap over problems, 95%\n")
    return as_text(rows)


def _replace(path: Path, text: str) -> None:
    """Write a file whole: a kill leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, encoding="utf-8", errors="backslashreplace")  # a model's path may be no text
    os.replace(fresh, path)
