"""What one method has over another: areas, costs and intervals against numbers known by hand, and their coverage."""

import math
import statistics

import numpy as np
import pytest

from recipe.poise.compare import contrast, summary
from recipe.poise.compare.contrast import Horizon
from recipe.poise.compare.measures import Curve


def methods_of(records):
    return {method.name: method for method in summary.group([record.run for record in records])}


def test_the_area_is_the_mean_height_to_the_horizon():
    curve = Curve(np.array([0.0, 2.0, 4.0]), np.array([0.0, 1.0, 1.0]))
    assert curve.mean_to(4) == pytest.approx(0.75)
    assert curve.mean_to(1) == pytest.approx(0.25)  # between two points
    assert curve.mean_to(2) == pytest.approx(0.5)
    assert curve.mean_to(4.1) is None, "a curve is not continued"
    assert Curve(np.array([1.0, 2.0]), np.array([1.0, 1.0])).mean_to(2) is None, "nothing is known before the first"
    assert Curve(np.empty(0), np.empty(0)).mean_to(1) is None


def test_students_intervals():
    """Against the tables."""
    for freedom, value in ((1, 12.7062), (2, 4.3027), (5, 2.5706), (10, 2.2281), (30, 2.0423)):
        values = [float(number) for number in range(freedom + 1)]
        found = contrast.mean_of(values)
        half = value * statistics.stdev(values) / math.sqrt(freedom + 1)
        assert (found.center, found.high - found.center) == pytest.approx((freedom / 2, half), rel=2e-5)
        assert found.center - found.low == pytest.approx(half, rel=2e-5)
    assert math.isnan(contrast.mean_of([1.0]).low) and contrast.mean_of([]) is None


def test_the_interval_of_the_median_is_one_of_order_statistics():
    six = contrast.median_of([5.0, 1.0, 3.0, 2.0, 4.0, math.inf])
    assert (six.center, six.low, six.high) == (3.5, 1.0, math.inf) and six.level == pytest.approx(1 - 2 / 64)
    three = contrast.median_of([1.0, 2.0, 3.0])
    assert (three.low, three.high, three.level) == (1.0, 3.0, 0.75)
    nine = contrast.median_of([float(value) for value in range(9)])
    assert (nine.low, nine.high) == (1.0, 7.0) and nine.level == pytest.approx(1 - 2 * 10 / 512)
    assert contrast.median_of([1.0, math.inf, math.inf]).center == math.inf
    assert contrast.median_of([]) is None


@pytest.mark.parametrize("count", [6, 9, 12])
def test_the_median_is_in_its_interval_as_often_as_is_said(count):
    draws = np.random.default_rng(0).lognormal(size=(4000, count))  # whose median is 1
    found = [contrast.median_of(list(values)) for values in draws]
    share = np.mean([item.low <= 1 <= item.high for item in found])
    assert share == pytest.approx(found[0].level, abs=0.015) and found[0].level >= 0.95


def test_costs_are_those_of_the_same_seeds_baseline(made):
    records = [made("fast", 0, 0.8), made("fast", 1, 0.4), made("fast", 2, 0.8)]
    records += [made("dapo", 0, 0.5, tokens=4000, seconds=20.0), made("dapo", 1, 0.5, tokens=4000)]
    found = methods_of(records)
    # to 0.5 on the way to 0.8: half of 8 updates, of 1000 tokens where DAPO paid 32000
    assert contrast.costs(found["fast"], found["dapo"], "tokens") == pytest.approx({0: 4000 / 32000, 1: math.inf})
    assert contrast.costs(found["fast"], found["dapo"], "seconds")[0] == pytest.approx(40 / 160)
    assert contrast.costs(found["fast"], found["dapo"], "updates")[0] == pytest.approx(0.5)


def test_differences_and_wins_are_paired(made):
    records = [made("a", seed, final) for seed, final in enumerate((0.6, 0.4, 0.8))]
    records += [made("b", seed, final) for seed, final in enumerate((0.5, 0.5, 0.5, 0.5))]
    found = methods_of(records)
    horizon = Horizon.of([record.run for record in records])
    assert (horizon.updates, horizon.tokens) == (8, 8000)
    final = contrast.differences(found["a"], found["b"], "final", horizon)
    assert final == pytest.approx({0: 0.1, 1: -0.1, 2: 0.3})
    area = contrast.differences(found["a"], found["b"], "area_over_tokens", horizon)
    assert area == pytest.approx({0: 0.05, 1: -0.05, 2: 0.15})  # straight lines from one start
    assert contrast.differences(found["a"], found["b"], "gain", horizon) == pytest.approx(final)
    assert contrast.wins(found["a"], found["b"], horizon) == (2, 3)


def test_a_dear_method_is_judged_to_where_all_have_tokens(made):
    """Area over tokens ends where the cheapest run does: half of the dear one's curve."""
    records = [made("cheap", 0, 0.6), made("dear", 0, 0.6, tokens=2000)]
    found = methods_of(records)
    horizon = Horizon.of([record.run for record in records])
    assert horizon.tokens == 8000
    assert contrast.scores(found["cheap"], "area_over_tokens", horizon)[0] == pytest.approx(0.4)
    assert contrast.scores(found["dear"], "area_over_tokens", horizon)[0] == pytest.approx(0.3)
    assert contrast.scores(found["dear"], "area_over_updates", horizon)[0] == pytest.approx(0.4)
