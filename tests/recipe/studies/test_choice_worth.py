"""How open chosen prompts are, against prompts whose pass rates are known."""

import pytest
import torch

from recipe.poise.choose.rule import Judgement
from recipe.poise.choose.settings import SelectSettings
from recipe.poise.studies.choice_worth import BEST, CHANCE, choices, openness

NAN = float("nan")


@pytest.fixture(scope="module")
def task():
    """512 prompts, a tenth of which are open; 16 rollouts of each."""
    noise = torch.Generator().manual_seed(0)
    rate = torch.where(torch.rand(512, generator=noise) < 0.1, 0.5, (torch.rand(512, generator=noise) < 0.4).float())
    return rate.double(), torch.bernoulli(rate.unsqueeze(1).expand(-1, 16).contiguous(), generator=noise)


def judgement(rate, spread):
    nothing = torch.full_like(rate, NAN)
    return Judgement(rate, torch.full_like(rate, spread), nothing, nothing)


def test_openness_is_unbiased():
    rate = torch.tensor([0.1, 0.5, 0.9]).repeat_interleave(20_000)
    reward = torch.bernoulli(rate.unsqueeze(1).expand(-1, 3).contiguous(), generator=torch.Generator().manual_seed(1))
    found = openness(reward).view(3, -1).mean(1)
    assert found.tolist() == pytest.approx([0.09, 0.25, 0.09], abs=0.004)


def test_a_probe_that_knows_finds_the_open_ones(task):
    rate, reward = task
    found = choices(judgement(rate, 0.2), reward, SelectSettings(random_share=0.0), 16, seed=0)
    chance = float((rate * (1 - rate)).mean())
    assert found[CHANCE] == pytest.approx(chance, abs=0.003)
    # 32 places for about 51 open prompts
    assert found["power 16, as if sure"] == pytest.approx(0.25, abs=0.02)
    assert found[BEST] == pytest.approx(0.25, abs=0.02)
    # a doubted certainty looks as open as a coin
    assert chance < found["power 1"] < found["power 16"] < found["power 16, as if sure"]


def test_a_probe_that_knows_nothing_finds_what_chance_finds(task):
    rate, reward = task
    found = choices(judgement(torch.full_like(rate, NAN), NAN), reward, SelectSettings(), 4, seed=0, trials=400)
    assert found["power 16"] == pytest.approx(found[CHANCE], abs=0.002)
    assert found[BEST] > 3 * found[CHANCE]


def test_the_best_are_not_flattered():
    """Prompts that are all alike: choosing by what chance gave finds nothing in the other half."""
    reward = torch.bernoulli(torch.full((4096, 8), 0.3), generator=torch.Generator().manual_seed(2))
    found = choices(judgement(torch.full((4096,), 0.3).double(), 0.1), reward, SelectSettings(), 4, seed=0, trials=4)
    assert found[BEST] == pytest.approx(0.21, abs=0.01)


def test_too_few_rollouts_are_refused():
    with pytest.raises(ValueError, match="--k 4 or more"):
        choices(judgement(torch.full((8,), 0.5).double(), 0.1), torch.ones(8, 3), SelectSettings(), 4, seed=0)
