"""One checker for all settings: what it takes, what it refuses, and what it says."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Literal

import numpy as np
import pytest
from omegaconf import OmegaConf

from probe import FeatureLayout, ProbeSettings
from probe.checked import DISTINCT, NOT_EMPTY, Range, SettingError, checked, read, settle

NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Inner:
    rate: Annotated[float, Range(above=0, below=1)] = 0.5

    def __post_init__(self):
        settle(self)


@dataclass(frozen=True)
class Outer:
    count: Annotated[int, Range(1, 1000)] = 64
    share: float = 1.0
    flag: bool = False
    name: Annotated[str, NOT_EMPTY] = "a"
    maybe: Annotated[int, Range(0)] | None = None
    colour: Literal["red", "green"] = "red"
    numbers: Annotated[tuple[float, ...], NOT_EMPTY] = (0.5,)
    words: Annotated[tuple[str, ...], DISTINCT] = ("x", "y")
    table: dict[str, Annotated[int, Range(1)]] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self):
        settle(self)


REFUSED = [
    # a whole number
    ("count", 1e3, "run.count=1000.0: want a whole number of at least 1 and at most 1,000, for instance 1000"),
    ("count", 64.5, "run.count=64.5: want a whole number of at least 1 and at most 1,000, for instance 64"),
    ("count", NAN, "run.count=nan: want a whole number"),
    ("count", INF, "run.count=inf: want a whole number"),
    ("count", True, "run.count=true: want a whole number"),
    ("count", "5", "run.count='5': want a whole number"),
    ("count", None, "run.count=null: want a whole number"),
    ("count", [5], r"run.count=\[5\]: want a whole number"),
    ("count", np.int64(5), "want a whole number"),
    ("count", 0, "run.count=0: want a whole number of at least 1"),
    ("count", 10**12, "run.count=1000000000000: want a whole number of at least 1 and at most 1,000"),
    ("maybe", 1.0, "run.maybe=1.0: want a whole number of at least 0 or null, for instance 1"),
    ("maybe", 10**30, "want a whole number of at least 0 or null"),
    # a number
    ("share", NAN, "run.share=nan: want a finite number, for instance 1.0"),
    ("share", -INF, "run.share=-inf: want a finite number"),
    ("share", 10**400, "want a finite number"),
    ("share", False, "run.share=false: want a finite number"),
    ("share", "1e-3", "run.share='1e-3': want a finite number"),
    ("inner", {"rate": 1}, r"run.inner.rate=1: want a finite number above 0 and below 1, for instance 0.5"),
    # the rest
    ("flag", "maybe", "run.flag='maybe': want true or false, for instance false"),
    ("flag", 2, "run.flag=2: want true or false"),
    ("flag", None, "run.flag=null: want true or false"),
    ("name", "", "run.name='': want text, not empty, for instance 'a'"),
    ("name", " ", "run.name=' ': want text, not empty"),
    ("name", 5, "run.name=5: want text"),
    ("colour", "blue", "run.colour='blue': want one of red, green$"),
    ("colour", ["red"], r"run.colour=\['red'\]: want one of red, green$"),
    ("numbers", 1.0, r"run.numbers=1.0: want a list, not empty, each of it a finite number, for instance \[1.0\]"),
    ("numbers", [], r"run.numbers=\[\]: want a list, not empty"),
    ("numbers", [1, "2"], r"run.numbers\[1\]='2': want a finite number$"),
    ("words", "prompt", r"run.words='prompt': want a list, no value twice, each of it text, for instance \['prompt'\]"),
    ("words", None, "run.words=null: want a list"),
    ("words", ["x", "y", "x"], r"run.words=\['x', 'y', 'x'\]: want .* no value twice.* for instance \['x', 'y'\]"),
    ("words", {"x": 1}, "run.words={x: 1}: want a list"),
    ("table", {"a": None}, "run.table.a=null: want a whole number"),
    ("table", {1: 1}, "a name in run.table=1: want text|run.a name in table=1: want text"),
    ("table", [1], r"run.table=\[1\]: want a mapping"),
    ("inner", None, "run.inner=null: want a mapping with the keys rate"),
    ("inner", {"rat": 1}, "unknown setting run.inner.rat=1; known there: rate"),
    ("blok", 3, "unknown setting run.blok=3; known there: colour, count"),
]


@pytest.mark.parametrize(("key", "value", "message"), REFUSED)
def test_refused_with_path_value_and_remedy(key, value, message):
    with pytest.raises(SettingError, match=message) as caught:
        read(Outer, {key: value}, "run")
    assert str(copy.copy(caught.value)) == str(caught.value)  # Ray sends it to the driver


def test_what_is_right_is_taken_in_one_form():
    values = {"numbers": [1, 2.5], "words": ("b",), "table": {"a": 1}, "inner": {"rate": 0.25}, "maybe": 0}
    plain, omega = read(Outer, values), read(Outer, OmegaConf.create(values))
    assert plain == omega and hash(plain.numbers) == hash((1.0, 2.5)) and type(plain.numbers[0]) is float
    for made in (plain, omega):
        assert isinstance(made.words, tuple) and type(made.table) is dict and made.inner == Inner(0.25)
    assert Outer(words=["b"], inner={"rate": 0.25}, numbers=[1, 2.5], table={"a": 1}, maybe=0) == plain


def test_an_optional_number_keeps_its_kind():
    kind = Annotated[int, Range(0)] | Annotated[float, Range(0, below=1)]
    assert [type(checked(value, kind, "block")) for value in (0, 3, 0.5)] == [int, int, float]
    with pytest.raises(SettingError, match="whole number of at least 0 or a finite number of at least 0 and below 1"):
        checked(1.5, kind, "block")


@pytest.mark.parametrize("cls", [ProbeSettings, FeatureLayout])
def test_no_field_of_any_settings_takes_what_is_nothing(cls):
    """Also fields that will be added: each is of a type that refuses an arbitrary object, and a number that is none."""
    values = {"names": ("a",), "sizes": (1,)} if cls is FeatureLayout else {}
    for entry in fields(cls):
        for wrong in (object(), NAN, INF):
            with pytest.raises(SettingError, match=entry.name):
                cls(**values | {entry.name: wrong})


def test_containers_of_omegaconf_are_what_the_checker_takes_them_for():
    assert isinstance(OmegaConf.create([1]), Sequence) and isinstance(OmegaConf.create({"a": 1}), Mapping)
