"""Variance and signal of batch gradients, unbiased, with bootstrap intervals.

A pass is a set of batches that share no prompt; batches of different passes may (with other rollouts of the prompt), so
only pairs of one pass are compared:

    variance = mean over pairs of |g_i - g_j|^2 / 2        signal = mean over pairs of g_i . g_j  (= |E g|^2)

Both are U-statistics. A bootstrap sample draws batches with replacement within each pass and leaves out pairs of a
batch with itself, which would pull the variance down and push the signal up.

Shapes: B batches of a pass, K directions.
"""

from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000


@dataclass(frozen=True)
class Interval:
    """A number with its 95% interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, resampled: np.ndarray) -> "Interval":
        low, high = np.quantile(resampled, [0.025, 0.975])
        return cls(value, float(low), float(high))

    def __format__(self, form: str) -> str:
        return f"{self.value:{form}} ({self.low:{form}} to {self.high:{form}})"


@dataclass(frozen=True)
class Moments:
    """Variance and signal: of the sample, and of each bootstrap sample (RESAMPLES,)."""

    variance: float
    signal: float
    variances: np.ndarray
    signals: np.ndarray

    @property
    def ratio(self) -> float:
        """Variance over signal: what an estimator's scale of advantages does not change; inf without signal."""
        return self.variance / self.signal if self.signal > 0 else float("inf")

    @property
    def ratios(self) -> np.ndarray:
        return np.where(self.signals > 0, self.variances / np.maximum(self.signals, 1e-300), np.inf)

    def intervals(self) -> dict[str, Interval]:
        return {
            "variance": Interval.of(self.variance, self.variances),
            "signal": Interval.of(self.signal, self.signals),
            "ratio": Interval.of(self.ratio, self.ratios),
        }


def _pairs(weight_B: np.ndarray, gram_BB: np.ndarray) -> tuple[float, float, float]:
    """Sums over pairs of distinct batches: of weights, of weighted variances, of weighted dot products."""
    pair_BB = np.outer(weight_B, weight_B)
    np.fill_diagonal(pair_BB, 0.0)
    square_B = np.diagonal(gram_BB)
    distance_BB = square_B[:, None] + square_B[None, :] - 2 * gram_BB
    return pair_BB.sum(), float((pair_BB * distance_BB).sum()) / 2, float((pair_BB * gram_BB).sum())


def moments(passes: list[np.ndarray], rng: np.random.Generator, resamples: int = RESAMPLES) -> Moments:
    """Of the gradient whose projections onto random signs are given, one (B, K) array per pass.

    Raises:
        ValueError: no pass has two batches.
    """
    passes = [part for part in passes if len(part) > 1]
    if not passes:
        raise ValueError("no pass has two batches: take more prompts, or smaller batches")
    # the mean over directions of a product of projections is the product of the vectors
    grams = [part @ part.T / part.shape[1] for part in passes]

    def both(weights: list[np.ndarray]) -> tuple[float, float]:
        count, variance, signal = np.sum([_pairs(w, g) for w, g in zip(weights, grams, strict=True)], axis=0)
        return variance / count, signal / count

    def draw() -> list[np.ndarray]:
        while True:
            found = [rng.multinomial(len(g), np.full(len(g), 1 / len(g))).astype(float) for g in grams]
            if any((weights > 0).sum() > 1 for weights in found):
                return found

    resampled = np.array([both(draw()) for _ in range(resamples)])
    variance, signal = both([np.ones(len(gram)) for gram in grams])
    return Moments(variance, signal, resampled[:, 0], resampled[:, 1])


def quotient(a: Moments, b: Moments, relative: bool) -> Interval:
    """Variance of a over that of b (relative: each over its own signal), with the interval of independent samples."""
    if relative:
        with np.errstate(invalid="ignore"):
            return Interval.of(a.ratio / b.ratio, np.nan_to_num(a.ratios / b.ratios, nan=np.inf))
    return Interval.of(a.variance / b.variance, a.variances / b.variances)
