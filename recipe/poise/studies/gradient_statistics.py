"""Variance and signal of a batch's gradient, from what single prompts add to it; paired bootstrap over prompts.

A batch's gradient is sum_p x_p / sum_p c_p: x_p is what prompt p's group adds, c_p what the loss divides by (its
tokens, or its rows). Groups are independent, so to first order in 1 / batch

    variance of a batch = variance of (x_p - mu c_p) / (groups E[c]^2),      mu = E[x] / E[c]

and a batch that may pay T generated tokens has T / E[tokens paid for a group] groups. All estimators stand on the same
prompts, and a bootstrap sample draws prompts, for all of them the same: ratios of two are known far better than either.

A prompt of the pool has several groups of its own (8 / n), from rollouts that no other group has; they are averaged.
They are not independent of each other, and count as one prompt in the bootstrap.

Shapes: P prompts, O groups per prompt, K directions, B bootstrap samples.
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
        low, high = np.quantile(resampled, [0.025, 0.975], method="nearest")  # some may be infinite
        return cls(value, float(low), float(high))

    def __format__(self, form: str) -> str:
        return f"{self.value:{form}} ({self.low:{form}} to {self.high:{form}})"


@dataclass(frozen=True)
class Groups:
    """What groups add to a batch.

    Attributes:
        total_POK: projections of x. square_PO: |x|^2. counted_PO: what the loss divides by. paid_PO: generated tokens,
            those of rows that are thrown away among them.
    """

    total_POK: np.ndarray
    square_PO: np.ndarray
    counted_PO: np.ndarray
    paid_PO: np.ndarray


@dataclass(frozen=True)
class Moments:
    """Of the sample, and of each bootstrap sample (B,): the variance of a batch that pays one token (a batch of T
    tokens has 1 / T of it), and the signal, the squared norm of the mean gradient."""

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

    def intervals(self, tokens: float) -> dict[str, Interval]:
        """For batches that pay `tokens`."""
        return {
            "variance": Interval.of(self.variance / tokens, self.variances / tokens),
            "signal": Interval.of(self.signal, self.signals),
            "ratio": Interval.of(self.ratio / tokens, self.ratios / tokens),
        }


def draw_prompts(prompts: int, rng: np.random.Generator, resamples: int = RESAMPLES) -> np.ndarray:
    """(B, P) how often each prompt is in each bootstrap sample."""
    return rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples).astype(np.float64)


def moments(groups: Groups, drawn_BP: np.ndarray) -> Moments:
    """Of an estimator; `drawn_BP` is the same for all that are to be compared.

    Raises:
        ValueError: fewer than two prompts, or no group that counts.
    """
    prompts = len(groups.square_PO)
    if prompts < 2 or not groups.counted_PO.any():
        raise ValueError(
            f"{prompts} prompts with {groups.counted_PO.sum():.0f} counted tokens or rows: nothing to compare"
        )
    mean_PK, counted_P, paid_P = groups.total_POK.mean(1), groups.counted_PO.mean(1), groups.paid_PO.mean(1)
    mu_K = mean_PK.mean(0) / counted_P.mean()
    # the mean over directions of a product of projections is the product of the vectors
    along_PO = groups.total_POK @ mu_K / len(mu_K)
    centred_PO = groups.square_PO - 2 * groups.counted_PO * along_PO + groups.counted_PO**2 * (mu_K @ mu_K) / len(mu_K)
    square_P = centred_PO.mean(1) * prompts / (prompts - 1)
    own_P = (mean_PK**2).mean(1)

    def both(weight_BP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size_B, pairs_B = weight_BP.sum(1), weight_BP.sum(1) ** 2 - (weight_BP**2).sum(1)
        counted_B, paid_B = weight_BP @ counted_P / size_B, weight_BP @ paid_P / size_B
        variance_B = weight_BP @ square_P / size_B * paid_B / counted_B**2
        # pairs of a prompt with itself are left out: they would push the signal up
        crossed_B = ((weight_BP @ mean_PK) ** 2).mean(1) - (weight_BP**2) @ own_P
        return variance_B, crossed_B / pairs_B / counted_B**2

    variance_1, signal_1 = both(np.ones((1, prompts)))
    variances, signals = both(drawn_BP)
    return Moments(float(variance_1[0]), float(signal_1[0]), variances, signals)


def quotient(a: Moments, b: Moments, relative: bool) -> Interval:
    """Variance of a over that of b (relative: each over its own signal), with the paired interval."""
    if relative:
        with np.errstate(invalid="ignore"):
            return Interval.of(a.ratio / b.ratio, np.nan_to_num(a.ratios / b.ratios, nan=np.inf))
    return Interval.of(a.variance / b.variance, a.variances / b.variances)
