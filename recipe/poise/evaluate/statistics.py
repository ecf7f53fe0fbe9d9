"""avg@k and pass@k with confidence intervals. Pure: numpy only.

Legend: P problems, K samples of one problem, R resamples.
"""

from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its bootstrap interval; `count` problems took part."""

    value: float
    low: float
    high: float
    count: int


def pass_at(n: int, correct: int, k: int) -> float:
    """Probability that at least one of k samples is right, drawn without replacement from n of which `correct` are.

    The unbiased estimator 1 - C(n - correct, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374), as a product so that no
    binomial overflows.

    Raises:
        ValueError: k is not in 1..n, or `correct` not in 0..n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} from {n} samples")
    if not 0 <= correct <= n:
        raise ValueError(f"{correct} of {n} samples are right")
    if n - correct < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - correct + 1, n + 1)))


def powers_up_to(k: int) -> list[int]:
    """1, 2, 4, ... and k itself."""
    return sorted({2**i for i in range(k.bit_length())} | {k})


def resampled_means(v_P: np.ndarray, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Means of `resamples` draws of P problems with replacement: (R,)."""
    rng = np.random.default_rng(seed)
    count = len(v_P)
    # Counts of each problem in a resample are multinomial: (R, P) numbers at most a block at a time.
    block = max(1, 4_000_000 // count)
    parts = []
    for start in range(0, resamples, block):
        weights = rng.multinomial(count, np.full(count, 1 / count), size=min(block, resamples - start))
        parts.append(weights @ v_P / count)
    return np.concatenate(parts)


def interval(means_R: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Percentile interval."""
    low, high = np.quantile(means_R, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def estimate(v_P: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Mean over problems; the interval says how far another draw of as many problems would move it.

    Raises:
        ValueError: no problem, or a value that is not finite.
    """
    v_P = np.asarray(v_P, dtype=float)
    if not len(v_P):
        raise ValueError("an estimate over no problem")
    if not np.isfinite(v_P).all():
        raise ValueError("an estimate over values that are not finite")
    return Estimate(float(v_P.mean()), *interval(resampled_means(v_P, seed, resamples)), len(v_P))


def estimate_of_suites(suites: list[np.ndarray], seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Plain mean of the suites' means; problems are resampled within each suite."""
    if not suites:
        raise ValueError("an estimate over no suite")
    means_R = np.mean([resampled_means(np.asarray(v_P, float), seed + i, resamples) for i, v_P in enumerate(suites)], 0)
    value = float(np.mean([np.mean(v_P) for v_P in suites]))
    return Estimate(value, *interval(means_R), sum(len(v_P) for v_P in suites))
