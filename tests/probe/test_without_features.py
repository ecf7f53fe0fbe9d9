"""A bank without features: baselines of rewards alone, by the same way as with a probe."""

import pytest
import torch

from probe import Crossing, FeatureLayout, ProbeBank, ProbeSettings
from probe import weights as row_weights

NOTHING = FeatureLayout((), ())


def bank_of(guard, fit="fresh", **crossing):
    return ProbeBank(
        ProbeSettings(guard=guard, min_rows=8),
        NOTHING,
        crossing=Crossing(**{"weights": "energy", "fit": fit} | crossing),
    )


def rows(step, prompts=12, spread=3.0):
    """Pairs of rollouts of prompts that are easy or hard."""
    noise = torch.Generator().manual_seed(step)
    group_R = torch.arange(prompts).repeat_interleave(2)
    rate_G = (spread * torch.randn(prompts, generator=noise)).sigmoid()
    reward_R = (torch.rand(2 * prompts, generator=noise) < rate_G[group_R]).float()
    return torch.empty(2 * prompts, 0), reward_R, group_R, torch.rand(2 * prompts, generator=noise) + 0.1


def learn(bank, steps, **kwargs):
    for step in range(steps):
        x_RF, reward_R, group_R, weight_R = rows(step, **kwargs)
        metrics = bank.update(x_RF, reward_R, group_R, step=step, weight_R=weight_R)
    return metrics


@pytest.mark.parametrize("fit", ["fresh", "lagged"])
@pytest.mark.parametrize(("guard", "weights"), [("rloo", [0.0, 1.0, 0.0]), ("constant", [0.0, 0.0, 1.0])])
def test_one_of_the_two_always(guard, weights, fit):
    bank = bank_of(guard, fit)
    learn(bank, 3)
    x_RF, reward_R, group_R, weight_R = rows(9)
    said = bank.cross_fit(x_RF, reward_R, group_R, weight_R=weight_R) if fit == "fresh" else bank.predict(x_RF)
    assert said.weight_R3.tolist() == [weights] * len(x_RF)
    assert said.value_R.isnan().all() and said.constant_R.isfinite().all()


def test_both_are_mixed_by_their_errors_and_no_weight_goes_to_a_probe_that_is_not_there():
    """Where siblings agree RLOO knows more than the constant; where prompts are alike, the constant does."""
    shares = {}
    for spread in (0.0, 30.0):
        bank = bank_of("combine")
        metrics = learn(bank, 8, spread=spread)
        assert metrics["error_probe"] != metrics["error_probe"]  # NaN, not a perfect 0
        weights = bank.probes[0].verdict.weight_E
        assert weights[0] == 0.0 and sum(weights) == pytest.approx(1.0)
        shares[spread] = weights[1]
    assert shares[0.0] < 0.2 < 0.8 < shares[30.0]


@pytest.mark.parametrize("guard", ["rloo", "combine"])
def test_what_is_saved_goes_on(guard, tmp_path):
    bank = bank_of(guard)
    learn(bank, 3)
    bank.save(tmp_path / "state")
    other = bank_of(guard)
    other.load(tmp_path / "state")
    tables = []
    for one in (bank, other):
        x_RF, reward_R, group_R, weight_R = rows(5)
        tables.append(one.cross_fit(x_RF, reward_R, group_R, weight_R=weight_R).table_R6)
        one.update(x_RF, reward_R, group_R, step=5, weight_R=weight_R)
        tables.append(one.predict(x_RF).table_R6)
    for first, second in ((0, 2), (1, 3)):
        torch.testing.assert_close(tables[first], tables[second], rtol=0, atol=0, equal_nan=True)


def test_the_probe_alone_is_refused():
    with pytest.raises(ValueError, match="guard='off': want combine, switch, rloo or constant"):
        bank_of("off")


def test_a_mean_over_nothing_is_no_zero():
    assert row_weights.mean(torch.empty(0), torch.empty(0)).isnan()
    assert row_weights.mean(torch.ones(2, 3), torch.zeros(2)).isnan().tolist() == [True] * 3
