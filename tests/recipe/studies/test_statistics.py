"""The statistics of the studies of gradients and values, against what was planted."""

import numpy as np
import pytest
import torch

from recipe.poise.studies.gradient_report import answers
from recipe.poise.studies.gradient_statistics import moments, quotient
from recipe.poise.studies.gradient_variance import METHODS, batches, gradients
from recipe.poise.studies.rollout_pool import Pool
from recipe.poise.studies.value_scores import noise_ceiling, over_seeds, score

K, B = 24, 16


def planted(rng, passes=1, scale=1.0, shared=0.0):
    """Batches of variance `scale^2` about a mean gradient of squared norm `scale^2`; a share of the noise is of the
    prompts, which all passes have in common."""
    own = rng.normal(size=(passes, B, K)) * np.sqrt(1 - shared)
    common = rng.normal(size=(1, B, K)) * np.sqrt(shared)
    return [scale * (1.0 + part) for part in own + common]


@pytest.mark.parametrize(("passes", "shared"), [(1, 0.0), (4, 0.5)])
def test_variance_and_signal_are_unbiased_where_passes_share_prompts(passes, shared):
    rng = np.random.default_rng(0)
    found = [moments(planted(rng, passes, 2.0, shared), rng, resamples=1) for _ in range(400)]
    assert np.mean([item.variance for item in found]) == pytest.approx(4.0, rel=0.03)
    assert np.mean([item.signal for item in found]) == pytest.approx(4.0, rel=0.03)
    # batches of all passes thrown together would be told apart too little
    together = [np.concatenate(planted(rng, passes, 2.0, shared)).var(axis=0, ddof=1).mean() for _ in range(400)]
    assert (np.mean(together) < 3.95) == (passes > 1)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    held = {"variance": 0, "signal": 0, "ratio": 0}
    for _ in range(100):
        for name, part in moments(planted(rng), rng, resamples=200).intervals().items():
            held[name] += part.low <= 1.0 <= part.high
    assert all(85 <= count <= 100 for count in held.values()), held


def test_the_scale_of_advantages_cancels_in_the_ratio():
    rng = np.random.default_rng(2)
    plain, scaled = moments(planted(rng), rng), moments(planted(rng, scale=3.0), rng)
    relative = quotient(scaled, plain, relative=True)
    assert relative.low < 1.0 < relative.high and quotient(scaled, plain, relative=False).low > 4.0


def test_the_claim_is_answered_in_a_line():
    rng = np.random.default_rng(3)
    noisy, quiet = ([1.0 + scale * rng.normal(size=(64, K))] for scale in (5.0, 1.0))
    found = {"POISE, n=2": moments(quiet, rng), "GRPO, n=8": moments(noisy, rng)}
    (line,) = answers(found)
    assert line.startswith("POISE, n=2 beside GRPO, n=8, equal tokens: variance / signal is lower: 0.0")
    found = {"POISE, n=2": moments(noisy, rng), "RLOO, n=8": moments(quiet, rng)}
    assert "equal tokens: variance is higher: " in answers(found)[0]
    # three times the scale is no news beside GRPO, and is beside RLOO, which estimates the same gradient
    large, small = moments(planted(rng, scale=3.0), rng), moments(planted(rng), rng)
    assert "variance / signal is not told apart" in answers({"POISE, n=2": large, "GRPO, n=8": small})[0]
    assert "variance is higher" in answers({"POISE, n=2": large, "RLOO, n=8": small})[0]


def test_too_few_batches_are_refused():
    with pytest.raises(ValueError, match="no pass has two batches"):
        moments([np.ones((1, 3))], np.random.default_rng(0))


@pytest.fixture
def pool():
    generator = torch.Generator().manual_seed(0)
    prompts, n = 200, 8
    lengths = torch.randint(2, 12, (prompts * n,), generator=generator)
    rate = torch.rand(prompts, generator=generator).repeat_interleave(n)
    rate[: 40 * n] = 1.0  # a fifth of the prompts is solved: groups of equal rewards
    reward = (torch.rand(prompts * n, generator=generator) < rate).float()
    return Pool([torch.zeros(1)] * (prompts * n), lengths, reward, torch.zeros(0), rate, None, n)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [1, 2, 8])
def test_batches_have_the_budget_and_share_nothing_in_a_pass(pool, n):
    passes = batches(pool, n, 400.0, np.random.default_rng(0))
    assert len(passes) == 8 // n
    seen: set = set()
    for drawn in passes:
        rows = np.concatenate(drawn)
        assert len(set(rows)) == len(rows) and not seen & set(rows)
        seen |= set(rows)
        prompts = [set(batch // 8) for batch in drawn]
        assert sum(map(len, prompts)) == len(set.union(*prompts))
        tokens = [int(pool.length_R[batch].sum()) for batch in drawn]
        assert np.mean(tokens) == pytest.approx(400, rel=0.05)


def test_what_dapo_throws_away_is_paid_for(pool):
    """The same rows drawn; the equal groups' tokens are in the budget and not in the gradient's denominator."""
    methods = {method.name: method for method in METHODS}
    passes = batches(pool, 8, 400.0, np.random.default_rng(0))
    score_RK = torch.randn(len(pool.length_R), 3, generator=torch.Generator().manual_seed(1))
    value_R = torch.full((len(pool.length_R),), 0.5)
    grpo = gradients(methods["GRPO, n=8"], pool, score_RK, value_R, value_R, passes[0])
    dapo = gradients(methods["DAPO, n=8"], pool, score_RK, value_R, value_R, passes[0])
    for place, rows in enumerate(passes[0]):
        equal = np.repeat(pool.reward_R[rows].view(-1, 8).std(dim=1).numpy() == 0, 8)
        length = pool.length_R[rows].numpy()
        assert equal.any() and np.allclose(dapo[place] * length[~equal].sum(), grpo[place] * length.sum(), atol=1e-5)


def test_scores_of_values():
    rate_P = torch.tensor([0.0, 0.5, 1.0])
    perfect = score(rate_P.unsqueeze(1), rate_P, torch.tensor(0.5))
    assert (perfect["pearson"], perfect["mae"], perfect["skill"]) == pytest.approx((1.0, 0.0, 1.0))
    constant = score(torch.full((3, 1), 0.5), rate_P, torch.tensor(0.5))
    assert constant["pearson"] is None and (constant["mae"], constant["skill"]) == pytest.approx((1 / 3, 0.0))
    both = score(torch.stack([rate_P, 1 - rate_P], dim=1), rate_P, torch.tensor(0.5))
    assert both["mae"] == pytest.approx(1 / 3) and both["pearson"] == pytest.approx(0.0, abs=1e-9)


def test_the_ceiling_is_what_the_true_rate_scores():
    generator = torch.Generator().manual_seed(0)
    rate_P = torch.rand(20_000, generator=generator)
    reward_PK = (torch.rand(20_000, 8, generator=generator) < rate_P.unsqueeze(1)).float()
    ceiling, truth = noise_ceiling(reward_PK), score(rate_P.unsqueeze(1), reward_PK.mean(dim=1), torch.tensor(0.5))
    assert ceiling["pearson"] == pytest.approx(truth["pearson"], abs=0.01)
    assert ceiling["rmse"] == pytest.approx(truth["rmse"], abs=0.003)
    assert noise_ceiling(torch.ones(4, 8))["pearson"] == 0.0


def test_seeds_without_a_number_have_no_mean():
    assert over_seeds([1.0, 2.0, 6.0]) == (3.0, 1.0, 6.0)
    assert over_seeds([1.0, None]) is None and over_seeds([]) is None
