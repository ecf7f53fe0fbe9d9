"""The probe's step on the device and on its CPU: three domains with full windows, each form that a run can take.

A step says values of the new rows (`predict`, or `cross_fit` where it is fresh), then learns them (`update`).
"""

import cProfile
import pstats
import statistics
import time
import traceback
from dataclasses import dataclass
from io import StringIO

import torch

from benchmarks.gpu.timing import Deadline, timed
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

    def fill(self, rows: PlantedRows, weight_R, domain_R) -> None:
        """The windows, in one step."""
        weight_R = weight_R if self.weighted else None
        said = self.bank.predict(rows.x_NF, domain_R, weight_R)
        self.bank.update(rows.x_NF, rows.reward_N, rows.group_N, domain_R, 0, weight_R, said)

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
    table, forms = [], len(devices) * len(FORMS)
    for device in devices:
        move = [tuple(to(part, device) for part in step) for step in (full, *new)]
        for fit, weights in FORMS:
            budget = max(3.0, deadline.left() - 15) / (forms - len(table))
            row = {"device": device, "fit": fit, "weights": weights}
            try:
                row |= measured(Step(sizes, world, fit, weights, device), move, budget)
                print(f"  probe on {device}, {fit}, {weights}: {row['median ms']:.1f} ms", flush=True)
            except Exception as error:  # the other forms and devices are measured all the same
                traceback.print_exc()
                row |= {"failed": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
            table.append(row)
    return table


def reset_peak(device: str) -> int:
    """Bytes that are held now; the peak is counted from here."""
    if device != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def kernels(devices: tuple[str, ...]) -> list[dict]:
    """The small decompositions of a step: on the device, and by way of the CPU and back."""
    table = []
    for device in devices:
        generator = torch.Generator().manual_seed(0)
        square, pair = (torch.randn(n, n, generator=generator, dtype=torch.float64) for n in (99, 2))
        cases = {
            "eigh (99, 99) float64": (torch.linalg.eigh, square @ square.T),
            "pinv (2, 2) float64": (torch.linalg.pinv, pair @ pair.T),
            "qr (5120, 96) float32": (torch.linalg.qr, torch.randn(5120, 96, generator=generator)),
        }
        for name, (function, matrix) in cases.items():
            matrix = matrix.to(device)
            ways = {"there ms": matrix, "by way of the CPU ms": None}
            row = {"device": device, "decomposition": name}
            for way, there in ways.items():

                def once(there=there, function=function, matrix=matrix):
                    if there is not None:
                        return function(there)
                    done = function(matrix.cpu())
                    return [part.to(matrix.device) for part in (done if isinstance(done, tuple) else (done,))]

                row[way] = statistics.median(timed(once, device)[0] for _ in range(20)) * 1e3
            table.append(row)
    return table


def to(part, device: str):
    if isinstance(part, PlantedRows):
        return PlantedRows(*(getattr(part, name).to(device) for name in ("x_NF", "target_N", "value_N", "group_N")))
    return part.to(device)


def measured(step: Step, rows: list, budget: float) -> dict:
    """One form: windows filled with the first rows, then a step for each of the others."""
    times, start = [], time.perf_counter()
    step.fill(*rows[0])
    held = reset_peak(step.device)
    for number, new in enumerate(rows[1:], start=1):
        if number > WARM_UP + 3 and time.perf_counter() - start > budget:
            break
        times.append(step.run(*new, number))
    added = (torch.cuda.max_memory_allocated() - held) / 1e6 if step.device == "cuda" else 0
    return summary(times[WARM_UP:]) | {"added MB": added, "slowest calls": profiled(step, rows[-1])}


def summary(times: list[tuple[float, float, float]]) -> dict:
    totals = [say + learn for say, learn, _ in times]
    say, learn, solve = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
    return {
        **{"median ms": statistics.median(totals) * 1e3, "mean ms": statistics.mean(totals) * 1e3},
        **{"max ms": max(totals) * 1e3, "say ms": say, "learn ms": learn, "of it solve ms": solve},
        **{"steps": len(times), "threads": torch.get_num_threads()},
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
    return [f"{words[1]} s, {words[0]} calls: {words[5].rpartition('/')[2]}" for words in lines[1:] if len(words) == 6]
