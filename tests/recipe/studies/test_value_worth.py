"""What values could gain, where it is known: planted rates of prompts, with equal and with unequal weights."""

import numpy as np
import pytest
import torch

from probe import FeatureLayout
from recipe.poise.studies.gradient_statistics import draw_prompts
from recipe.poise.studies.rollout_pool import Pool
from recipe.poise.studies.value_worth import between_prompts, by_outcome, worth

N = 8


def planted(prompts, seed, wrong=1.0, spread=0.0):
    """Rates, rewards and weights (a wrong one weighs `wrong` times as much, lognormal about it), and the true share of
    the weighted variance that lies between prompts."""
    rng = np.random.default_rng(seed)
    rate_P = rng.beta(0.8, 0.8, prompts)
    reward_PN = (rng.random((prompts, N)) < rate_P[:, None]).astype(float)
    noise_PN = np.exp(rng.normal(0, spread, (prompts, N)) - spread**2 / 2)
    weight_PN = np.where(reward_PN > 0.5, 1.0, wrong) * noise_PN
    right, all_ = rate_P, rate_P + (1 - rate_P) * wrong
    level = right.sum() / all_.sum()
    whole = (right * (1 - level) ** 2 + (1 - rate_P) * wrong * level**2).mean()
    return rate_P, reward_PN, weight_PN, ((right - level * all_) ** 2 / all_).mean() / whole


def share(reward_PN, weight_PN):
    level = (weight_PN * reward_PN).sum() / weight_PN.sum()
    return between_prompts(reward_PN, weight_PN, level).mean() / (weight_PN * (reward_PN - level) ** 2).mean()


def test_with_equal_weights_it_is_the_analysis_of_variance():
    found, truths = zip(*((share(*planted(400, s)[1:3]), planted(400, s)[3]) for s in range(20)), strict=True)
    assert np.mean(found) == pytest.approx(np.mean(truths), abs=0.01)
    _, reward_PN, weight_PN, _ = planted(400, 0)
    within = reward_PN.var(axis=1, ddof=1).mean()
    between = reward_PN.mean(1).var() - within * (1 - 1 / len(reward_PN)) / N + within / reward_PN.size
    whole = reward_PN.var()
    assert share(reward_PN, weight_PN) == pytest.approx(between / whole, abs=2e-3)


@pytest.mark.parametrize(("wrong", "spread"), [(5.0, 0.5), (20.0, 1.0)])
def test_with_unequal_weights_it_is_an_upper_bound_that_is_not_far(wrong, spread):
    pairs = [(share(*made[1:3]), made[3]) for made in (planted(400, s, wrong, spread) for s in range(20))]
    found, truth = np.mean(pairs, axis=0)
    assert truth - 0.01 < found < truth + 0.12


def test_siblings_outcomes_are_looked_up_in_the_other_half():
    x = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0])
    reward = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0]).double()
    weight = torch.tensor([1.0, 3.0, 1.0, 1.0, 1.0, 1.0, 3.0, 1.0]).double()
    # prompts of two rows: 0 and 2 for 1 and 3, and the other way round
    found = by_outcome(x, reward, weight, 2, 1).tolist()
    assert found[4:6] == pytest.approx([float("nan")] * 2, nan_ok=True)  # the odd prompts have no outcome 0
    assert found[2:4] == pytest.approx([float("nan")] * 2, nan_ok=True)  # and the even ones no outcome 1
    x[4:6], x[2:4] = 1.0, 0.0
    assert by_outcome(x, reward, weight, 2, 1)[4:6].tolist() == pytest.approx([0.75, 0.75])


def test_what_is_told_is_at_most_what_there_is_and_states_tell_it():
    """The prompt's state is its rate: the probe gets nearly all that there is; a state of noise gets nothing."""

    def pool(prompts, seed, n, informed):
        rate_P, reward_PN, *_ = planted(prompts, seed)
        generator = torch.Generator().manual_seed(seed)
        state = torch.from_numpy(rate_P).float().repeat_interleave(n).unsqueeze(1) * informed
        state = torch.cat([state, torch.randn(len(state), 3, generator=generator)], dim=1)
        layout = FeatureLayout(("prompt", "response"), (2, 2))
        reward_R = torch.from_numpy(reward_PN[:, :n]).float().flatten()
        return Pool([], torch.ones(len(state)), reward_R, state, torch.arange(prompts).repeat_interleave(n), layout, n)

    drawn = draw_prompts(300, np.random.default_rng(0), 100)
    ones = torch.ones(300 * N).double()
    told = worth(pool(400, 1, 2, 1.0), pool(300, 2, N, 1.0), None, ones, ones, drawn, seed=0)
    most = told["the prompt, at most"]
    assert told["the prompt's state"].value == pytest.approx(most.value, abs=0.04)
    assert 0.5 * most.value < told["rewards of 7 siblings"].value < most.value
    assert 0 < told["a sibling's reward"].value < told["rewards of 7 siblings"].value
    blind = worth(pool(400, 1, 2, 0.0), pool(300, 2, N, 0.0), None, ones, ones, drawn, seed=0)
    assert abs(blind["the prompt's state"].value) < 0.03 and abs(blind["a sibling's states"].value) < 0.03
    assert blind["the prompt's state"].low < 0.01
