"""What is drawn in proportion to what, and chance where nothing is known."""

import math

import pytest
import torch

from recipe.poise.choose.rule import FLOOR, Judgement, ordered, scores

NAN = float("nan")


def said(rate, spread=0.0, value=NAN, energy=NAN):
    columns = [torch.as_tensor(x, dtype=torch.float64).expand(len(rate)) for x in (rate, spread, value, energy)]
    return Judgement(*columns)


def shares(score, power=1.0, random_share=0.0, trials=8000):
    """How often each candidate comes first, and its standard error."""
    score, noise = torch.tensor(score, dtype=torch.float64), torch.Generator().manual_seed(0)
    first = torch.zeros(len(score))
    for _ in range(trials):
        order = ordered(score, power, random_share, noise)
        assert sorted(order.tolist()) == list(range(len(score)))
        first[order[0]] += 1
    return (first / trials).tolist()


@pytest.mark.parametrize(
    ("score", "power", "random_share", "expected"),
    [
        ([1.0, 2.0, 5.0], 1.0, 0.0, [1 / 8, 2 / 8, 5 / 8]),
        ([1.0, 2.0, 5.0], 2.0, 0.0, [1 / 30, 4 / 30, 25 / 30]),
        ([1.0, 2.0, 5.0], 0.0, 0.0, [1 / 3] * 3),
        ([1.0, 2.0, 5.0], 1.0, 1.0, [1 / 3] * 3),
        ([1.0, 2.0, 5.0], 1.0, 0.4, [0.6 * p + 0.4 / 3 for p in (1 / 8, 2 / 8, 5 / 8)]),
        ([NAN] * 4, 1.0, 0.0, [0.25] * 4),
        ([1.0, NAN, 3.0], 1.0, 0.0, [1 / 6, 2 / 6, 3 / 6]),  # the mean score
    ],
)
def test_the_first_place_is_drawn_in_proportion(score, power, random_share, expected):
    trials = 8000
    for found, wanted in zip(shares(score, power, random_share, trials), expected, strict=True):
        assert abs(found - wanted) < 4.5 * math.sqrt(wanted * (1 - wanted) / trials)


def test_later_places_are_drawn_without_replacement():
    noise, pairs = torch.Generator().manual_seed(1), torch.zeros(3, 3)
    for _ in range(8000):
        first, second, _ = ordered(torch.tensor([1.0, 2.0, 5.0]).double(), 1.0, 0.0, noise).tolist()
        pairs[first, second] += 1
    assert abs(float(pairs[2, 1] / pairs[2].sum()) - 2 / 3) < 0.03


def test_the_rules():
    rate, noise = [0.0, 0.5, 1.0, 0.9], torch.Generator().manual_seed(0)
    found = scores("pass_rate", said(rate), noise)
    assert found.tolist() == pytest.approx([FLOOR, 0.25 + FLOOR, FLOOR, 0.09 + FLOOR])
    energy = scores("energy", said(rate, value=[0.0, 0.1, 0.5, NAN], energy=[1.0, 2.0, 4.0, 1.0]), noise)
    assert energy[:3].tolist() == pytest.approx([FLOOR, 2 * (0.09 + FLOOR), 4 * (0.25 + FLOOR)])
    assert math.isnan(energy[3])
    assert scores("random", said([NAN] * 3), noise).tolist() == [1.0] * 3
    assert scores("pass_rate", said([NAN] * 3), noise).isnan().all()


def test_the_energy_rule_is_the_variance_under_the_best_baseline():
    """m b (1 - b) = E[e (r - b)^2] with b = E[e r] / E[e], for any energies of right and wrong rollouts."""
    for p, right, wrong in ((0.3, 1.0, 1.0), (0.8, 0.5, 20.0), (0.05, 3.0, 1.0)):
        m = p * right + (1 - p) * wrong
        b = p * right / m
        variance = p * right * (1 - b) ** 2 + (1 - p) * wrong * b**2
        assert m * b * (1 - b) == pytest.approx(variance)
        if right == wrong:
            assert variance == pytest.approx(right * p * (1 - p))


def test_an_unsure_probe_may_find_a_prompt_open():
    noise = torch.Generator().manual_seed(0)
    sure, unsure = (scores("pass_rate", said([0.99] * 2000, spread), noise) for spread in (0.0, 0.3))
    assert sure.max() < 0.02 and (unsure > 0.1).double().mean() > 0.2 and unsure.max() <= 0.25 + FLOOR


def test_the_same_seed_gives_the_same_order():
    score = torch.rand(50).double()
    first, again = (ordered(score, 1.0, 0.2, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, ordered(score, 1.0, 0.2, torch.Generator().manual_seed(5)))


def test_a_judgement_of_a_table():
    table = torch.tensor([[0.5, 0.1, 0.2, 3.0, 0.8], [NAN, NAN, NAN, NAN, NAN]])
    judged = Judgement.of_table(table)
    assert judged.rate_C[0] == 0.5 and judged.rate_C[1].isnan() and judged.known == pytest.approx(0.8)
    assert Judgement.of_table(table[1:]).known == 0.0
