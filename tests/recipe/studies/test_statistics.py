"""The statistics of the studies of gradients and values, against what was planted."""

import numpy as np
import pytest
import torch

from recipe.poise.studies.gradient_report import answers, pooled
from recipe.poise.studies.gradient_statistics import Groups, draw_prompts, moments, quotient
from recipe.poise.studies.value_scores import noise_ceiling, over_seeds, score

K, P = 24, 64


def planted(rng, groups=1, scale=1.0, shared=0.0, noise=None, prompts=P):
    """Groups of variance `scale^2` about a mean gradient of squared norm `scale^2`, each with one counted token; a
    share of the noise is of the prompts, which all groups of a prompt have in common."""
    noise = rng.normal(size=(prompts, groups, K)) if noise is None else noise
    own, common = noise * np.sqrt(1 - shared), rng.normal(size=(prompts, 1, K)) * np.sqrt(shared)
    total_POK = scale * (1.0 + own + common)
    ones = np.ones((prompts, groups))
    return Groups(total_POK, (total_POK**2).mean(2), ones, ones)


@pytest.mark.parametrize(("groups", "shared"), [(1, 0.0), (4, 0.5)])
def test_variance_and_signal_are_unbiased_where_groups_share_prompts(groups, shared):
    rng = np.random.default_rng(0)
    found = [moments(planted(rng, groups, 2.0, shared), draw_prompts(P, rng, 1)) for _ in range(400)]
    assert np.mean([item.variance for item in found]) == pytest.approx(4.0, rel=0.03)
    assert np.mean([item.signal for item in found]) == pytest.approx(4.0, rel=0.03)


def test_a_batch_pays_for_what_it_does_not_count():
    """Half of the groups are thrown away: the mean gradient stays, and a batch costs twice as much."""
    rng = np.random.default_rng(4)
    whole = planted(rng, prompts=4000)
    half_PO = (np.arange(4000) % 2 == 0).astype(float)[:, None]
    kept = Groups(whole.total_POK * half_PO[..., None], whole.square_PO * half_PO, half_PO, whole.paid_PO)
    drawn = draw_prompts(4000, rng, 10)
    assert moments(kept, drawn).signal == pytest.approx(1.0, rel=0.05)
    assert moments(kept, drawn).variance == pytest.approx(2 * moments(whole, drawn).variance, rel=0.05)


def test_what_lengths_add_through_the_denominator():
    """Groups whose gradient is in proportion to their tokens have no variance at all under the token mean."""
    rng = np.random.default_rng(5)
    tokens_PO = rng.integers(1, 20, (50, 1)).astype(float)
    total_POK = tokens_PO[..., None] * np.ones(K)
    item = moments(Groups(total_POK, (total_POK**2).mean(2), tokens_PO, tokens_PO), draw_prompts(50, rng, 10))
    assert item.variance == pytest.approx(0.0, abs=1e-9) and item.signal == pytest.approx(1.0, rel=0.02)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Of the variance, the signal, and of the paired ratio of two estimators on the same prompts: half of the noise of
    the second is the first's, so the true ratio is 0.5 / 1."""
    rng = np.random.default_rng(1)
    held, widths = {"variance": 0, "signal": 0, "quotient": 0}, []
    for _ in range(100):
        noise = rng.normal(size=(P, 1, K)) * rng.gamma(2.0, 0.5, size=(P, 1, 1)) ** 0.5
        drawn = draw_prompts(P, rng, 200)
        item, other = moments(planted(rng, noise=noise), drawn), moments(planted(rng, noise=noise * 0.5**0.5), drawn)
        for name in ("variance", "signal"):
            part = item.intervals(1.0)[name]
            held[name] += part.low <= 1.0 <= part.high
        share = quotient(other, item, relative=False)
        held["quotient"] += share.low <= 0.5 + 1e-9 and share.high >= 0.5 - 1e-9
        widths.append((share.high - share.low) / 0.5)
    assert all(85 <= count <= 100 for count in held.values()), held
    assert np.mean(widths) < 0.01  # the same noise but for its scale: pairing takes all of it out


def test_a_paired_ratio_covers_and_is_narrower_than_an_unpaired_one():
    rng = np.random.default_rng(6)
    held, narrower = 0, 0
    for _ in range(100):
        noise, own = rng.normal(size=(P, 1, K)) * rng.gamma(1.0, 1.0, size=(P, 1, 1)) ** 0.5, rng.normal(size=(P, 1, K))
        drawn, apart = draw_prompts(P, rng, 200), draw_prompts(P, rng, 200)
        other = planted(rng, noise=0.8 * noise + 0.6 * own)  # variance 0.64 + 0.36
        item = moments(planted(rng, noise=noise), drawn)
        share, unpaired = quotient(moments(other, drawn), item, False), quotient(moments(other, apart), item, False)
        held += share.low <= 1.0 <= share.high
        narrower += share.high - share.low < unpaired.high - unpaired.low
    assert 85 <= held <= 100 and narrower >= 95


def test_the_scale_of_advantages_cancels_in_the_ratio():
    rng = np.random.default_rng(2)
    drawn = draw_prompts(P, rng)
    plain, scaled = moments(planted(rng), drawn), moments(planted(rng, scale=3.0), drawn)
    relative = quotient(scaled, plain, relative=True)
    assert relative.low < 1.0 < relative.high and quotient(scaled, plain, relative=False).low > 4.0


def ratio(value, low, high):
    return {"value": value, "low": low, "high": high}


def test_seeds_are_pooled_by_their_logarithms():
    assert pooled([ratio(0.5, 0.4, 0.6)]) == pytest.approx((0.5, 0.4, 0.6, 0.5, 0.5))
    mean, low, high, lowest, highest = pooled([ratio(0.5, 0.25, 1.0), ratio(2.0, 1.0, 4.0)])
    assert (mean, lowest, highest) == pytest.approx((1.0, 0.5, 2.0))
    assert (low, high) == pytest.approx((2 ** -(0.5**0.5), 2 ** (0.5**0.5)))  # the interval of one over sqrt(2)
    assert np.isnan(pooled([ratio(float("inf"), 1.0, float("inf"))])[0])


def test_the_claims_are_answered_in_a_line_each():
    names = (
        "POISE, fresh, energy, n=2", "POISE, lagged, uniform, n=2", "energy-weighted constant, n=1",
        "prompt probe, fresh, energy, n=1",
    )  # fmt: skip
    shares = {"over_rloo": ratio(0.2, 0.18, 0.22), "over_constant": ratio(1.3, 1.2, 1.4)}
    shares["over_constant_2"] = shares["over_weighted"] = shares["over_constant"]
    lines = answers([{"label": "middle", "results": dict.fromkeys(names, shares)}])
    assert (
        "middle: POISE, fresh, energy, n=2 beside RLOO, n=8, equal tokens: variance is lower: 0.20 (0.18 to 0.22) times"
        in lines
    )
    assert any("beside energy-weighted constant, n=1, equal tokens: variance is higher: 1.30" in line for line in lines)
    even = {key: ratio(1.0, 0.9, 1.1) for key in shares}
    assert all("is not told apart" in line for line in answers([{"label": "a", "results": dict.fromkeys(names, even)}]))


def test_too_few_prompts_are_refused():
    with pytest.raises(ValueError, match="1 prompts with 1 counted"):
        moments(planted(np.random.default_rng(0), prompts=1), np.ones((2, 1)))


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
