"""Mathematical rewards per second, and how long one takes.

    python benchmarks/rewards.py [--data FILE.jsonl...] [--workers 2]

Answers come from JSONL files with a column ``answer`` (GSM8K's and AIME's have one), or are made up. Each is judged
as it is (right), written otherwise (right, by mathematics alone), in one of the forms that models use (right: units,
dollars, separators, sentences) and one off (wrong); answers that do not come out so are printed.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import re
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.needs import needs_packages  # noqa: E402

with needs_packages():
    import math_verify  # noqa: F401  here rather than first in a worker
    import numpy as np
    from tqdm import tqdm

    from reward.math_verifier import MathVerifier


def read(path: Path) -> list[tuple[str, str]]:
    """(solution, answer) pairs."""
    pairs = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        text = str(row["answer"])
        answer = text.rpartition("####")[2].strip()
        answer = answer.removesuffix(".0")
        shown = text if "####" in text else str(row.get("solution", ""))
        if "boxed" not in shown and "####" not in shown:
            shown = f"It is \\boxed{{{answer}}}."
        pairs.append((shown, answer))
    return pairs


def made_up(count: int, seed: int) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    kinds = (
        lambda: str(rng.randint(-999, 9999)),
        lambda: f"\\frac{{{rng.randint(1, 99)}}}{{{rng.randint(2, 99)}}}",
        lambda: f"{rng.randint(2, 9)}\\sqrt{{{rng.randint(2, 50)}}}",
        lambda: f"\\{{{rng.randint(1, 9)}, {rng.randint(10, 99)}\\}}",
        lambda: f"x^2 + {rng.randint(2, 9)}x + {rng.randint(1, 9)}",
    )
    answers = [rng.choice(kinds)() for _ in range(count)]
    return [(f"It is \\boxed{{{answer}}}.", answer) for answer in answers]


def plain(answer: str) -> str:
    """Without thousands separators and in parentheses where it needs them, so that it can be a factor."""
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", answer)
    return text if re.fullmatch(r"[\d.]+", text) else f"({text})"


FORMS = (
    "\\${}", "{} \\text{{ dollars}}", "{} apples", "x = {}", "\\text{{Total}} = {}", "{}\\%", "{}^\\circ", "\\({}\\)",
    "The answer is {}.", "**{}**", "{} \\text{{ cm}}^2", "{} km/h", "AB = BC = {}",
)  # fmt: skip


def dressed(answer: str, place: int) -> str:
    """The answer as models write it, each in one of the forms; whole numbers with separators and decimals too."""
    if re.fullmatch(r"\d+", answer) and place % 3 == 0:
        answer = f"{int(answer):,}" if place % 2 else f"{answer}.00"
    return FORMS[place % len(FORMS)].format(answer)


def one_off(answer: str) -> str:
    """The answer with its last number moved by one."""
    places = list(re.finditer(r"\d+(?:,\d{3})*", answer))
    if not places:
        return answer + " + 1"
    last = places[-1]
    return answer[: last.start()] + str(int(last[0].replace(",", "")) + 1) + answer[last.end() :]


async def measure(name: str, responses: list[tuple[str, str]], right: bool, verifier: MathVerifier, parallel: int):
    slots, seconds = asyncio.Semaphore(parallel), []

    async def one(response: str, gold: str):
        async with slots:
            start = time.perf_counter()
            verdict = await verifier.verify(f"<think>so</think>{response}", gold, {})
            seconds.append(time.perf_counter() - start)
            return verdict

    start = time.perf_counter()
    jobs = [asyncio.ensure_future(one(*pair)) for pair in responses]
    for job in tqdm(asyncio.as_completed(jobs), total=len(jobs), desc=name, leave=False, disable=None):
        await job
    wall = time.perf_counter() - start
    verdicts = [job.result() for job in jobs]
    asked = sum(v.score == float(right) and not v.failed for v in verdicts)
    failed = sum(v.failed for v in verdicts)
    p50, p99 = (np.quantile(seconds, q) * 1e3 for q in (0.5, 0.99))
    print(
        f"{name:<34} {len(responses):>6} {asked:>6} {failed:>6} {len(responses) / wall:>9.0f} {p50:>8.2f} {p99:>8.2f} "
        f"{max(seconds) * 1e3:>8.1f}",
        flush=True,
    )
    for (response, gold), verdict in zip(responses, verdicts, strict=True):
        if verdict.score != float(right) or verdict.failed:
            print(f"    gold {gold}, response ends {response[-60:]!r}: {verdict}")


async def run(args) -> None:
    verifier = MathVerifier(args.time_limit, args.workers)
    await verifier.verify(r"\boxed{2/4}", "1/2", {})  # workers load their libraries
    sets = {path.stem: read(path) for path in args.data} or {"made up": made_up(args.count, args.seed)}
    print(f"{'':<34} {'n':>6} {'as due':>6} {'failed':>6} {'per s':>9} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8}")
    for name, pairs in sets.items():
        forms = {
            "as it is": ([(text, gold) for text, gold in pairs], True),
            "times one": ([(f"\\boxed{{{gold}}}", f"1 \\cdot {plain(gold)}") for _, gold in pairs], True),
            "as models write": (
                [(f"\\boxed{{{dressed(gold, place)}}}", gold) for place, (_, gold) in enumerate(pairs)],
                True,
            ),
            "one off": ([(f"\\boxed{{{one_off(gold)}}}", gold) for _, gold in pairs], False),
        }
        for form, (responses, right) in forms.items():
            if form == "times one" and any("{" in gold and "\\{" in gold for _, gold in pairs):
                responses = [pair for pair in responses if "\\{" not in pair[0]]  # a set has no product
            await measure(f"{name}, {form}", responses, right, verifier, args.parallel)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", default=[])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--parallel", type=int, default=64, help="responses judged at once")
    parser.add_argument("--time-limit", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(f"{platform.machine()} CPU, {os.cpu_count()} cores, {args.workers} workers, {args.time_limit:g} s limit")
    asyncio.run(run(args))
