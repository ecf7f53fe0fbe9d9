"""Settings of the value probe and the layout of its features."""

import math
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

GUARDS = ("auto", "off")
DEFAULT_DOMAIN = "default"


@dataclass(frozen=True)
class ProbeSettings:
    """One probe per domain, fitted on a sliding window.

    Attributes:
        window_rows: rows kept per domain; whole prompt groups enter and leave (paper: 4,096).
        max_age: steps after which rows leave, None for no limit.
        min_rows: rows needed before the first fit; until then every baseline is RLOO's.
        rank: dimensions of the subspace that the states are projected to, where they are not fitted exactly.
        exact_features: up to so many features the ridge is exact, without a subspace.
        power_iterations: iterations from scratch for the subspace; later fits track it with one.
        penalties: grid of ridge penalties in units of the rows' mean squared feature norm per dimension; the one with
            the smallest leave-one-prompt-out error is used.
        guard: "auto" uses the probe only where its out-of-prompt error is below RLOO's; "off" as soon as it is fitted.
        domains: name -> pattern over data_source (fnmatch); the first match wins, other rows go to "default".
    """

    window_rows: int = 4096
    max_age: int | None = None
    min_rows: int = 64
    rank: int = 96
    exact_features: int = 512
    power_iterations: int = 3
    penalties: tuple[float, ...] = tuple(10.0 ** (half / 2) for half in range(-8, 9))
    guard: str = "auto"
    domains: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        for name in ("window_rows", "min_rows", "rank", "exact_features", "power_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"probe {name}={getattr(self, name)}: want at least 1")
        if self.min_rows > self.window_rows:
            raise ValueError(f"probe min_rows={self.min_rows} is more than window_rows={self.window_rows} can hold")
        if self.max_age is not None and self.max_age < 1:
            raise ValueError(f"probe max_age={self.max_age}: want at least 1 step, or null")
        if not self.penalties or not all(p > 0 and math.isfinite(p) for p in self.penalties):
            raise ValueError(f"probe penalties={self.penalties}: want positive numbers")
        if self.guard not in GUARDS:
            raise ValueError(f"probe guard={self.guard!r}: choose from {GUARDS}")
        if DEFAULT_DOMAIN in self.domains:
            raise ValueError(f"probe domains: {DEFAULT_DOMAIN!r} is the name for rows that match no pattern")

    @property
    def domain_names(self) -> tuple[str, ...]:
        return (*self.domains, DEFAULT_DOMAIN)

    def domain_index(self, source: str) -> int:
        """Index in `domain_names` of a row's data source."""
        matches = (i for i, pattern in enumerate(self.domains.values()) if fnmatchcase(source, pattern))
        return next(matches, len(self.domains))


@dataclass(frozen=True)
class FeatureLayout:
    """Names and sizes of the blocks that a feature row consists of, in order: states first, then scalars (size 1)."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def __post_init__(self):
        if len(self.names) != len(self.sizes) or len(set(self.names)) != len(self.names) or not self.names:
            raise ValueError(f"feature layout needs one size per distinct name: {self.names}, {self.sizes}")

    @property
    def num_features(self) -> int:
        return sum(self.sizes)

    @property
    def num_state_features(self) -> int:
        """Features of blocks larger than one number; scalars are kept apart from the subspace."""
        return sum(size for size in self.sizes if size > 1)
