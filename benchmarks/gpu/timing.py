"""Interleaved repetitions of what is compared: times, ratios, peaks of memory."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

MB = 1e6


@dataclass
class Deadline:
    """When to stop: seconds since the epoch."""

    at: float

    def left(self) -> float:
        return self.at - time.time()


@dataclass
class Runs:
    """Seconds and peak bytes of each repetition of one variant; peaks are 0 on a CPU."""

    seconds: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def peak(self) -> int:
        return max(self.peaks)


def timed(function: Callable[[], object], device: str) -> tuple[float, int]:
    """Seconds of a call with all that it started on the device, and the peak of allocated bytes."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter() - start, torch.cuda.max_memory_allocated()
    return time.perf_counter() - start, 0


def compare(
    variants: dict[str, Callable[[], object]], repeat: int, device: str, seconds: float, warm_up: int = 1
) -> dict[str, Runs]:
    """Each variant once per repetition, the order turned around each time; fewer repetitions where `seconds` are over,
    but three at least."""
    for _ in range(warm_up):
        for function in variants.values():
            function()
    runs = {name: Runs() for name in variants}
    end = time.perf_counter() + seconds
    for repetition in range(repeat):
        if repetition >= 3 and time.perf_counter() > end:
            break
        for name in list(variants)[:: 1 if repetition % 2 else -1]:
            took, peak = timed(variants[name], device)
            runs[name].seconds.append(took)
            runs[name].peaks.append(peak)
    return runs


def against(base: Runs, other: Runs) -> dict[str, float | str | int]:
    """Columns of a table: the median ratio of neighbouring repetitions with its quartiles, and added memory."""
    ratios = [b / a for a, b in zip(base.seconds, other.seconds, strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    return {
        "s": other.median,
        "ratio": round(ratio, 4),
        "quartiles": f"{low:.4f}-{high:.4f}",
        "peak MB": other.peak / MB,
        "added MB": (other.peak - base.peak) / MB,
        "repetitions": len(ratios),
    }
