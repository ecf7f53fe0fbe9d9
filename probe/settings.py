"""Settings of the value probe and the layout of its features."""

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Annotated, Literal, get_args

from probe.checked import DISTINCT, NOT_EMPTY, Range, SettingError, checked, settle

Kind = Literal["subspace_ridge", "ridge", "pca_ridge", "logistic", "mlp", "ensemble"]
KINDS: tuple[str, ...] = get_args(Kind)
Weights = Literal["uniform", "length", "energy"]
Fit = Literal["lagged", "fresh"]
Weighted = Literal["link", "fit"]
Guard = Literal["combine", "switch", "off", "rloo", "constant"]
DEFAULT_DOMAIN = "default"

Count = Annotated[int, Range(1)]
Rows = Annotated[int, Range(1, 10_000_000)]  # with states of 2,560 numbers, 205 GB
Text = Annotated[str, NOT_EMPTY]
Penalties = Annotated[tuple[Annotated[float, Range(above=0)], ...], NOT_EMPTY]


@dataclass(frozen=True)
class ProbeSettings:
    """One probe per domain, fitted on a sliding window. Raises SettingError, a ValueError, for values that cannot work.

    Attributes:
        kind: the estimator, see `probe.estimators`. "subspace_ridge" follows the window at the cost of its new rows;
            the others are refitted on the whole window.
        window_rows: rows kept per domain; whole prompt groups enter and leave (paper: 4,096).
        domain_rows: name -> rows kept of this domain in place of `window_rows` (paper: 4,096 of math, 3,072 of code).
        max_age: steps after which rows leave, None for no limit.
        min_rows: rows needed before the first fit; until then baselines are made of rewards alone: RLOO's, or the
            constant where it is known and a row has one or two siblings.
        min_updates: updates whose baseline is RLOO's whatever was fitted (paper: 16).
        rank: dimensions of the subspace that the states are projected to, where they are not used as they are.
        exact_features: up to so many features there is no subspace.
        penalties: grid of ridge penalties in units of the mean squared singular value; the one with the smallest
            leave-one-prompt-out error is used. "pca_ridge" has one penalty, in units of its own: the only one of a grid
            of one, else the paper's 100.
        weighted: where the weights of rows enter a linear probe. "link": rows count alike in the regression, which so
            learns pass rates, and by weight in the link, which makes the weighted mean reward of a pass rate. Weights
            are heavy-tailed: two numbers stand on them then, not one for each direction. "fit": in all of it.
        guard: "combine" mixes probe, RLOO and constant by their out-of-prompt errors; "switch" takes the best of them;
            "off" takes the probe as soon as it is fitted; "rloo" and "constant" take that one from the start, which is
            what a probe has to be compared with.
        domains: name -> pattern over data_source (fnmatch); the first match wins, other rows go to "default".
        borrow_rows: with several domains, a domain of fewer rows gives its own probe the weight rows / borrow_rows,
            and the rest to a probe that all domains share; 0: domains do not borrow.
    """

    kind: Kind = "subspace_ridge"
    window_rows: Rows = 4096
    domain_rows: dict[Text, Rows] = field(default_factory=dict)
    max_age: Count | None = None
    min_rows: Rows = 64
    min_updates: Annotated[int, Range(0)] = 0
    rank: Count = 96
    exact_features: Count = 512
    penalties: Penalties = tuple(10.0 ** (half / 2) for half in range(-8, 9))
    weighted: Weighted = "link"
    guard: Guard = "combine"
    domains: dict[Text, Text] = field(default_factory=dict)
    borrow_rows: Annotated[int, Range(0)] = 256

    def __post_init__(self):
        settle(self)
        if DEFAULT_DOMAIN in self.domains:
            raise SettingError("domains", self.domains, f"names other than {DEFAULT_DOMAIN}, where other rows go")
        for name in self.domain_rows:
            if name not in self.domain_names:
                known = ", ".join(self.domain_names)
                raise SettingError(f"domain_rows.{name}", self.domain_rows[name], f"a domain that there is ({known})")
        windows = {"window_rows": self.window_rows} | {f"domain_rows.{n}": rows for n, rows in self.domain_rows.items()}
        for name, rows in windows.items():
            if rows < self.min_rows:
                raise SettingError(name, rows, f"at least min_rows={self.min_rows}, rows needed for a fit")

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


@dataclass(frozen=True)
class Crossing:
    """What rows weigh, and which rows a value is fitted on. Raises SettingError for values that cannot work.

    Attributes:
        weights: what the weights that rows come with are: rows of one state must weigh alike.
        weight_cap: a row weighs at most this quantile of what earlier rows of its domain weighed; None: no limit.
        fit: "lagged": on earlier steps; "fresh": on the step's other prompts too.
        coherence, surprise: what energies were made with, for the same reason; None for other weights.
        prompt_blocks: names of feature blocks that depend on the prompt alone: what a fresh fit starts with.
    """

    weights: Weights = "uniform"
    weight_cap: Annotated[float, Range(above=0, high=1)] | None = None
    fit: Fit = "lagged"
    prompt_blocks: tuple[Text, ...] = ()
    coherence: Annotated[float, Range(0, 1)] | None = None
    surprise: Annotated[float, Range(0, 4)] | None = None

    def __post_init__(self):
        settle(self)


def check_penalties(penalties) -> None:
    """Raises SettingError unless there are penalties, positive and finite."""
    checked(penalties, Penalties, "penalties")


@dataclass(frozen=True)
class FeatureLayout:
    """Names and sizes of the blocks that a feature row consists of, in order: states first, then scalars (size 1).
    Without blocks there is no probe, and baselines are made of rewards alone."""

    names: Annotated[tuple[Text, ...], DISTINCT]
    sizes: tuple[Count, ...]

    def __post_init__(self):
        settle(self)
        if len(self.names) != len(self.sizes):
            raise ValueError(f"feature layout needs one size per name: {self.names}, {self.sizes}")
        if list(self.sizes) != sorted(self.sizes, key=lambda size: size == 1):
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
