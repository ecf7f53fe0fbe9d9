"""Rollouts go where they lower the variance most, and add up to the budget."""

import itertools

import pytest
import torch

from recipe.poise.choose.budget import allocate, openness
from recipe.poise.choose.chooser import Chooser
from recipe.poise.choose.rule import FLOOR, Judgement
from recipe.poise.choose.settings import SelectSettings

NAN = float("nan")


@pytest.mark.parametrize("total", [4, 7, 8, 12])
def test_no_other_allocation_has_a_smaller_variance(total):
    variance = torch.tensor([0.25, 0.09, 0.01, 0.2]).double()
    given = allocate(variance, total, 4)
    assert int(given.sum()) == total and given.min() >= 1 and given.max() <= 4
    others = [
        sum(v / n for v, n in zip(variance.tolist(), counts, strict=True))
        for counts in itertools.product(range(1, 5), repeat=4)
        if sum(counts) == total
    ]
    assert float((variance / given).sum()) == pytest.approx(min(others))


def test_where_nothing_is_known_all_get_as_many():
    assert allocate(torch.full((6,), NAN), 12, 8).tolist() == [2] * 6
    assert allocate(torch.tensor([0.25, NAN, 0.25, NAN]), 8, 8).tolist() == [2] * 4


@pytest.mark.parametrize("total", [3, 17])
def test_a_budget_that_does_not_fit_is_refused(total):
    with pytest.raises(ValueError, match="cannot be given to 4 prompts"):
        allocate(torch.ones(4), total, 4)


def test_clear_prompts_get_one():
    rate = torch.tensor([0.5, 0.999, 0.5, 0.0, NAN], dtype=torch.float64)
    said = Judgement(rate, rate * 0, rate * NAN, rate * NAN)
    assert openness(said).tolist() == pytest.approx([0.25, 0.000999, 0.25, FLOOR, NAN], nan_ok=True)
    given = allocate(openness(said), 10, 8)
    assert given.tolist() == [3, 1, 3, 1, 2]


def test_the_chooser_gives_the_whole_budget_to_the_batch():
    rates = torch.rand(300, generator=torch.Generator().manual_seed(9)).double()
    chooser = Chooser(SelectSettings(candidates=1), 300, 8, rollouts=2)
    places = chooser.candidates()
    assert len(places) == 8
    rate = rates[torch.tensor(places)]
    metrics = chooser.choose(Judgement(rate, rate * 0, rate * NAN, rate * NAN), 1)
    asked = chooser.take(8)
    given = chooser.given(asked)
    assert sorted(asked) == sorted(places) and sum(given) == 16
    ranked = sorted(zip(((rates[place] - 0.5).abs().item() for place in asked), given, strict=True))
    assert [count for _, count in ranked] == sorted(given, reverse=True)  # the more open, the more
    assert metrics["select_single_share"] == given.count(1) / 8
    assert chooser.given(chooser.take(2)) == [2, 2]  # unjudged
    assert Chooser(SelectSettings(candidates=2), 300, 8).given([1]) is None
