"""The probe's step on the device and on its CPU: three domains with full windows, each form that a run can take.

A step says values of the new rows (`predict`, or `cross_fit` where it is fresh), then learns them (`update`).
"""

import cProfile
import pstats
import statistics
import time
from dataclasses import dataclass
from io import StringIO

import torch

from benchmarks.gpu.timing import Deadline
from probe import Crossing, ProbeBank, ProbeSettings
from probe.planted import PlantedRows, PlantedWorld

WARM_UP = 5
FORMS = [(fit, weights) for fit in ("lagged", "fresh") for weights in ("uniform", "energy")]


@dataclass(frozen=True)
class Sizes:
    """Features of a state, rows of each of three windows, new rows of a step, steps."""

    state: int
    window: int
    rows: int
    steps: int


FULL = Sizes(2560, 4096, 512, 60)
SMALL = Sizes(64, 128, 24, 4)


class Step:
    """A bank with full windows, and what it is given: planted rows, energies with heavy tails."""

    def __init__(self, sizes: Sizes, world: PlantedWorld, fit: str, weights: str, device: str):
        self.device, self.weighted = device, weights != "uniform"
        settings = ProbeSettings(domains={"math": "math*", "code": "code*"}, window_rows=sizes.window)
        crossing = Crossing(weights=weights, fit=fit, prompt_blocks=("prompt",))
        self.bank = ProbeBank(settings, world.layout(), device=device, crossing=crossing)
        self.say = self.bank.predict if fit == "lagged" else self.bank.cross_fit

    def run(self, rows: PlantedRows, weight_R, domain_R, number: int) -> tuple[float, float, float]:
        """Seconds to say, to learn, and of those in the bank's own solve."""
        group = (rows.reward_N, rows.group_N)
        weight_R = weight_R if self.weighted else None
        asked = (domain_R, weight_R) if self.say == self.bank.predict else (*group, domain_R, weight_R)
        start = self._now()
        said = self.say(rows.x_NF, *asked)
        middle = self._now()
        metrics = self.bank.update(rows.x_NF, *group, domain_R, number, weight_R, said)
        return middle - start, self._now() - middle, metrics["time_solve_s"]

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def drawn(world: PlantedWorld, count: int):
    """Rows, their weights, their domains in equal parts."""
    rows = world.draw(count)
    weight_R = torch.randn(count, generator=world.generator).exp()
    return rows, weight_R, torch.arange(count) * 3 // count


def probe_steps(devices: tuple[str, ...], sizes: Sizes, deadline: Deadline) -> list[dict]:
    """Milliseconds of a step by device and form: median, mean, largest, per phase; fewer steps where time is short."""
    world = PlantedWorld(sizes.state, 0)
    full = drawn(world, sizes.window * 3)
    new = [drawn(world, sizes.rows // 6 * 6) for _ in range(WARM_UP + sizes.steps)]
    table, budget = [], max(30.0, deadline.left() - 30) / (len(devices) * len(FORMS))
    for device in devices:
        move = [tuple(to(part, device) for part in step) for step in (full, *new)]
        for fit, weights in FORMS:
            step, times, start = Step(sizes, world, fit, weights, device), [], time.perf_counter()
            step.run(*move[0], 0)
            for number, rows in enumerate(move[1:], start=1):
                if number > WARM_UP + 3 and time.perf_counter() - start > budget:
                    break
                times.append(step.run(*rows, number))
            table.append(summary(times[WARM_UP:], device, fit, weights) | {"slowest calls": profiled(step, move[-1])})
            print(f"  probe on {device}, {fit}, {weights}: {table[-1]['median ms']:.1f} ms", flush=True)
    return table


def to(part, device: str):
    if isinstance(part, PlantedRows):
        return PlantedRows(*(getattr(part, name).to(device) for name in ("x_NF", "target_N", "value_N", "group_N")))
    return part.to(device)


def summary(times: list[tuple[float, float, float]], device: str, fit: str, weights: str) -> dict:
    totals = [say + learn for say, learn, _ in times]
    say, learn, solve = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
    return {
        **{"device": device, "fit": fit, "weights": weights, "median ms": statistics.median(totals) * 1e3},
        **{"mean ms": statistics.mean(totals) * 1e3, "max ms": max(totals) * 1e3, "say ms": say, "learn ms": learn},
        **{"of it solve ms": solve, "steps": len(times), "threads": torch.get_num_threads()},
        "all ms": [round(total * 1e3, 3) for total in totals],
    }


def profiled(step: Step, rows) -> list[str]:
    """Where the host's time goes in three further steps: the functions of most own time."""
    profile = cProfile.Profile()
    profile.enable()
    for number in range(1000, 1003):
        step.run(*rows, number)
    profile.disable()
    text = StringIO()
    pstats.Stats(profile, stream=text).sort_stats("tottime").print_stats(8)
    lines = [line.split(maxsplit=5) for line in text.getvalue().splitlines() if line.strip()[:1].isdigit()]
    return [f"{words[1]} s, {words[0]} calls: {words[5].rpartition('/')[2]}" for words in lines if len(words) == 6]
