"""Settings of the value probe and the layout of its features."""

import math
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

KINDS = ("subspace_ridge", "ridge", "pca_ridge", "logistic", "mlp", "ensemble")
GUARDS = ("combine", "switch", "off")
DEFAULT_DOMAIN = "default"


@dataclass(frozen=True)
class ProbeSettings:
    """One probe per domain, fitted on a sliding window.

    Attributes:
        kind: the estimator, see `probe.estimators`. "subspace_ridge" follows the window at the cost of its new rows;
            the others are refitted on the whole window.
        window_rows: rows kept per domain; whole prompt groups enter and leave (paper: 4,096).
        domain_rows: name -> rows kept of this domain in place of `window_rows` (paper: 4,096 of math, 3,072 of code).
        max_age: steps after which rows leave, None for no limit.
        min_rows: rows needed before the first fit; until then every baseline is RLOO's.
        rank: dimensions of the subspace that the states are projected to, where they are not used as they are.
        exact_features: up to so many features there is no subspace.
        penalties: grid of ridge penalties in units of the mean squared singular value; the one with the smallest
            leave-one-prompt-out error is used.
        guard: "combine" mixes probe, RLOO and constant by their out-of-prompt errors; "switch" takes the best of them;
            "off" takes the probe as soon as it is fitted.
        domains: name -> pattern over data_source (fnmatch); the first match wins, other rows go to "default".
        borrow_rows: with several domains, a domain of fewer rows gives its own probe the weight rows / borrow_rows,
            and the rest to a probe that all domains share; 0: domains do not borrow.
    """

    kind: str = "subspace_ridge"
    window_rows: int = 4096
    domain_rows: dict[str, int] = field(default_factory=dict)
    max_age: int | None = None
    min_rows: int = 64
    rank: int = 96
    exact_features: int = 512
    penalties: tuple[float, ...] = tuple(10.0 ** (half / 2) for half in range(-8, 9))
    guard: str = "combine"
    domains: dict[str, str] = field(default_factory=dict)
    borrow_rows: int = 256

    def __post_init__(self):
        for name in ("window_rows", "min_rows", "rank", "exact_features"):
            if getattr(self, name) < 1:
                raise ValueError(f"probe {name}={getattr(self, name)}: want at least 1")
        if self.kind not in KINDS:
            raise ValueError(f"probe kind={self.kind!r}: choose from {KINDS}")
        if self.min_rows > self.window_rows:
            raise ValueError(f"probe min_rows={self.min_rows} is more than window_rows={self.window_rows} can hold")
        for name, rows in self.domain_rows.items():
            if name not in self.domain_names:
                raise ValueError(f"probe domain_rows.{name}: there is no such domain, only {self.domain_names}")
            if rows < self.min_rows:
                raise ValueError(f"probe domain_rows.{name}={rows}: want at least min_rows={self.min_rows}")
        if self.max_age is not None and self.max_age < 1:
            raise ValueError(f"probe max_age={self.max_age}: want at least 1 step, or null")
        if self.borrow_rows < 0:
            raise ValueError(f"probe borrow_rows={self.borrow_rows}: want 0 (do not borrow) or more")
        check_penalties(self.penalties)
        if self.guard not in GUARDS:
            raise ValueError(f"probe guard={self.guard!r}: choose from {GUARDS}")
        if DEFAULT_DOMAIN in self.domains:
            raise ValueError(f"probe domains: {DEFAULT_DOMAIN!r} is the name for rows that match no pattern")

    @property
    def domain_names(self) -> tuple[str, ...]:
        return (*self.domains, DEFAULT_DOMAIN)

    def rows_of(self, domain: str) -> int:
        """Rows that the domain's window keeps."""
        return self.domain_rows.get(domain, self.window_rows)

    def domain_index(self, source: str) -> int:
        """Index in `domain_names` of a row's data source."""
        matches = (i for i, pattern in enumerate(self.domains.values()) if fnmatchcase(source, pattern))
        return next(matches, len(self.domains))


def check_penalties(penalties) -> None:
    """Raises ValueError unless there are penalties, positive and finite."""
    if not penalties or not all(p > 0 and math.isfinite(p) for p in penalties):
        raise ValueError(f"probe penalties={penalties}: want positive numbers")


@dataclass(frozen=True)
class FeatureLayout:
    """Names and sizes of the blocks that a feature row consists of, in order: states first, then scalars (size 1)."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def __post_init__(self):
        if len(self.names) != len(self.sizes) or len(set(self.names)) != len(self.names) or not self.names:
            raise ValueError(f"feature layout needs one size per distinct name: {self.names}, {self.sizes}")
        if min(self.sizes) < 1 or list(self.sizes) != sorted(self.sizes, key=lambda size: size == 1):
            raise ValueError(f"feature layout has states first, then scalars of size 1: {self.names}, {self.sizes}")

    @property
    def num_features(self) -> int:
        return sum(self.sizes)

    @property
    def num_state_features(self) -> int:
        """Features of blocks larger than one number; scalars are kept apart from the subspace."""
        return sum(size for size in self.sizes if size > 1)

    @property
    def slices(self) -> dict[str, slice]:
        """Where each block stands in a row."""
        ends = [sum(self.sizes[: i + 1]) for i in range(len(self.sizes))]
        return {name: slice(end - size, end) for name, size, end in zip(self.names, self.sizes, ends, strict=True)}
