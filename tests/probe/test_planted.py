"""Planted worlds: their true values are what means over many draws tend to, and the first one stays as it is."""

import pytest
import torch

from probe.planted import PlantedWorld, WeightedWorld

GOLDEN_ROW, GOLDEN_VALUE = [-10.31291, 1.93548, -11.52085], [0.7107, 0.61166, 0.20228]
GOLDEN_TARGET = [1.0, 1.0, 0.0, 1.0, 1.0, 1.0]


def test_the_plain_world_draws_what_it_always_drew():
    rows = PlantedWorld(8, seed=3).draw(6)
    # golden numbers: benchmarks of different days are about the same rows
    torch.testing.assert_close(rows.x_NF[0, :3], torch.tensor(GOLDEN_ROW), rtol=0, atol=1e-5)
    torch.testing.assert_close(rows.value_N[:3], torch.tensor(GOLDEN_VALUE), rtol=0, atol=1e-5)
    assert rows.target_N.tolist() == GOLDEN_TARGET


def means(world, draws, rows=20_000):
    """By tenths of b*: sum e r / sum e, the mean of b* weighted by E[e], sum e over sum E[e]."""
    parts = [world.draw(rows) for _ in range(draws)]
    value, energy, reward, mean = (
        torch.cat([getattr(part, name) for part in parts]).double()
        for name in ("value_N", "target_weight_N", "target_N", "mean_weight_N")
    )
    tenths = value.argsort().tensor_split(10)
    return torch.tensor(
        [
            [
                float((energy * reward)[t].sum() / energy[t].sum()),
                float((mean * value)[t].sum() / mean[t].sum()),
                float(energy[t].sum() / mean[t].sum()),
            ]
            for t in tenths
        ]
    )


def test_the_weighted_value_is_what_energy_weighted_rewards_tend_to():
    """b* and E[e] in closed form against draws; lognormal energies need many."""
    found = means(WeightedWorld(4, seed=0), 20)
    torch.testing.assert_close(found[:, 0], found[:, 1], rtol=0.1, atol=0.003)
    torch.testing.assert_close(found[:, 2], torch.ones(10), rtol=0.05, atol=0)
    assert found[0, 1] < 0.03 and found[-1, 1] > 0.3  # prompts differ


def test_failed_rows_carry_ten_to_forty_times_the_energy():
    rows = WeightedWorld(4, seed=0, tail=0.0).draw(4000)
    scale = rows.mean_weight_N / (rows.rate_N + (1 - rows.rate_N) * _factor(rows))
    torch.testing.assert_close(rows.target_weight_N / scale, torch.where(rows.target_N > 0, 1.0, _factor(rows)))
    factor = _factor(rows)
    assert 9.99 < factor.min() < 15 and 30 < factor.max() < 40.01
    assert 0.65 < rows.target_N.mean() < 0.8
    assert (rows.rate_N - rows.value_N).mean() > 0.4  # far from the pass rate


def _factor(rows):
    """k, from b* = p / (p + (1 - p) k)."""
    p, b = rows.rate_N.double(), rows.value_N.double()
    return (p * (1 - b) / (b * (1 - p))).float()


def test_own_rewards_and_energies_are_the_siblings_targets():
    rows = WeightedWorld(4, seed=1).draw(8)
    assert torch.equal(rows.weight_N[::2], rows.target_weight_N[1::2])
    assert torch.equal(rows.reward_N[1::2], rows.target_N[::2])


def test_tails_are_heavy():
    energy = WeightedWorld(4, seed=0).draw(100_000).target_weight_N.sort(descending=True).values
    assert 0.06 < energy[:1000].sum() / energy.sum() < 0.25


@pytest.mark.parametrize("world", [PlantedWorld, WeightedWorld])
def test_rows_come_in_pairs_and_the_seed_decides(world):
    with pytest.raises(ValueError, match="rows=3: rows come in pairs"):
        world(4).draw(3)
    first, second, other = (world(4, seed).draw(10).x_NF for seed in (0, 0, 1))
    assert torch.equal(first, second) and not torch.equal(first, other)
