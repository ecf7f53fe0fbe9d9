"""Weights of probe, RLOO and constant."""

import numpy as np
import pytest
import torch

from probe import Crossing, FeatureLayout, ProbeBank, ProbeSettings
from probe.guard import judge
from probe.pairing import sibling_mean, sibling_mean_numpy


def rows(prompts=2000, seed=0):
    """Rewards of two rollouts per prompt, and the pass rate."""
    generator = torch.Generator().manual_seed(seed)
    rate_N = torch.rand(prompts, generator=generator).repeat_interleave(2).double()
    reward_N = (torch.rand(2 * prompts, generator=generator) < rate_N).double()
    return rate_N, reward_N, torch.arange(2 * prompts) // 2


def noisy(rate_N, scale, seed=1):
    return rate_N + scale * torch.randn(len(rate_N), generator=torch.Generator().manual_seed(seed)).double()


def test_a_perfect_probe_takes_all_and_a_useless_one_nothing():
    rate_N, reward_N, group_N = rows()
    perfect = judge("combine", rate_N, reward_N, group_N)
    assert perfect.weight_E[0] > 0.9
    useless = judge("combine", noisy(torch.full_like(rate_N, 0.5), 0.5), reward_N, group_N)
    assert useless.weight_E[0] < 0.05
    # neither of the other two knows everything: the sibling tells of the prompt, the mean has no noise
    assert min(useless.weight_E[1:]) > 0.2


def test_the_mixture_is_better_than_each():
    rate_N, reward_N, group_N = rows()
    verdict = judge("combine", noisy(rate_N, 0.4), reward_N, group_N)
    fresh_rate_N, fresh_N, _ = rows(seed=7)
    columns = torch.stack(
        [noisy(fresh_rate_N, 0.4, seed=8).view(-1, 2).flip(1).flatten(), fresh_N.view(-1, 2).flip(1).flatten(),
         torch.full_like(fresh_N, 0.5)], dim=1,
    )  # fmt: skip
    mixed = (fresh_N - columns @ torch.tensor(verdict.weight_E).double()).square().mean()
    assert mixed < min((fresh_N - column).square().mean() for column in columns.unbind(1))


def test_switch_takes_the_best_and_off_the_probe():
    rate_N, reward_N, group_N = rows()
    assert judge("switch", rate_N, reward_N, group_N).weight_E == (1.0, 0.0, 0.0)
    assert judge("switch", noisy(rate_N, 2.0), reward_N, group_N).weight_E == (0.0, 0.0, 1.0)
    same_N = reward_N[::2].repeat_interleave(2)
    assert judge("switch", noisy(rate_N, 2.0), same_N, group_N).weight_E == (0.0, 1.0, 0.0)
    assert judge("off", noisy(rate_N, 2.0), reward_N, group_N).weight_E == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(("guard", "place"), [("rloo", 1), ("constant", 2)])
@pytest.mark.parametrize("fit", ["lagged", "fresh"])
def test_a_baseline_can_be_taken_always(guard, place, fit, step_rows):
    """From the first step, whatever the probe is worth, and its error is told all the same."""
    layout = FeatureLayout(("prompt", "response", "entropy"), (6, 6, 1))
    crossing = Crossing("uniform", None, fit, ("prompt",))
    bank = ProbeBank(ProbeSettings(min_rows=8, guard=guard), layout, crossing=crossing)
    for step in range(3):
        x_RF, reward_R, group_R = step_rows(prompts=32, seed=step)
        said = bank.cross_fit(x_RF, reward_R, group_R) if fit == "fresh" else bank.predict(x_RF)
        assert (said.weight_R3[:, place] == 1.0).all() and (said.weight_R3.sum(1) == 1.0).all()
        assert said.constant_R.isfinite().all() == (fit == "fresh" or step > 0)
        metrics = bank.update(x_RF, reward_R, group_R, step=step, said=said)
        assert metrics["error_probe"] > 0 and metrics[f"weight_{guard}"] == 1.0


def test_errors_are_those_of_the_baselines():
    reward_N, value_N = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([0.5, 0.25, 1.0, 0.5])
    error_E = judge("off", value_N, reward_N, torch.tensor([0, 0, 1, 1])).error_E
    probe = ((1 - 0.25) ** 2 + (0 - 0.5) ** 2 + (1 - 0.5) ** 2 + 0) / 4
    constant = (0 + 1 + 0.25 + 0.25) / 4  # the mean of the other prompt's rewards
    assert error_E == pytest.approx((probe, 0.5, constant))


@pytest.mark.parametrize("mode", ["combine", "switch"])
def test_without_siblings_or_predictions_the_rest_is_judged(mode):
    rate_N, reward_N, _ = rows(100)
    alone = judge(mode, rate_N, reward_N, torch.arange(200))  # prompt-only probe, one rollout each
    assert alone.weight_E[1] == 0.0 and alone.weight_E[0] > 0.5
    unknown = judge(mode, torch.full_like(rate_N, float("nan")), reward_N, torch.arange(200) // 2)
    assert unknown.weight_E[0] == 0.0 and sum(unknown.weight_E) == pytest.approx(1.0)


def test_one_prompt_alone():
    verdict = judge("combine", torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]), torch.tensor([3, 3]))
    assert sum(verdict.weight_E) == pytest.approx(1.0) and verdict.weight_E[2] == 0.0


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_sibling_means_on_the_host_are_those_of_torch(size, weighted):
    generator = np.random.default_rng(size)
    x_N, group_N = generator.random(60), generator.permutation(np.arange(60) // size)
    x_N[generator.random(60) < 0.2] = np.nan
    weight_N = generator.random(60) * (generator.random(60) < 0.7) if weighted else None
    x, group, weight = (None if column is None else torch.from_numpy(column) for column in (x_N, group_N, weight_N))
    expected_N = sibling_mean(x, group, weight).numpy()
    np.testing.assert_allclose(sibling_mean_numpy(x_N, group_N, weight_N), expected_N, rtol=1e-12)
