"""The estimator's statistics, by enumeration, and its fallbacks row by row."""

import itertools

import pytest
import torch

from recipe.poise.baseline.advantage import CONSTANT, NONE, PROBE, RLOO, compute_advantages

NAN = float("nan")


class Policy:
    """A softmax over a handful of responses with known rewards; `value` is what a probe says on seeing a response."""

    def __init__(self, count=5, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.logits = torch.randn(count, generator=generator, dtype=torch.float64)
        self.reward = torch.rand(count, generator=generator, dtype=torch.float64).round(decimals=2)
        self.value = torch.rand(count, generator=generator, dtype=torch.float64)
        self.probability = self.logits.softmax(0)

    def score(self, response):
        """Gradient of log pi(response) in the logits."""
        return torch.eye(len(self.logits), dtype=torch.float64)[response] - self.probability

    def exact_gradient(self):
        """Gradient of the expected reward."""
        return self.probability * (self.reward - (self.probability * self.reward).sum())

    def expected_gradient(self, n, advantages):
        """Expectation over all n-tuples of responses of the mean of advantage x score."""
        total = torch.zeros_like(self.logits)
        for responses in itertools.product(range(len(self.logits)), repeat=n):
            weight = self.probability[list(responses)].prod()
            advantage = advantages(torch.tensor(responses))
            total += weight * sum(a * self.score(y) for a, y in zip(advantage, responses, strict=True)) / n
        return total


def poise(policy, with_reward, own_value=False, weights=(1.0, 0.0, 0.0)):
    def advantages(response_B):
        reward_B = policy.reward[response_B]
        value_B = policy.value[response_B] + (0.4 * reward_B if with_reward else 0.0)
        n = len(response_B)
        return compute_advantages(
            reward_B.float(),
            torch.zeros(n, dtype=torch.int64),
            value_B.float(),
            torch.tensor(weights).expand(n, 3),
            torch.full((n,), 0.5),
            own_value=own_value,
        ).advantage_B.double()

    return advantages


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.5, 0.3, 0.2)])
@pytest.mark.parametrize("with_reward", [False, True])
@pytest.mark.parametrize("n", [2, 3])
def test_expected_gradient_is_exact(n, with_reward, weights):
    policy = Policy()
    gap = policy.expected_gradient(n, poise(policy, with_reward, weights=weights)) - policy.exact_gradient()
    assert gap.abs().max() < 1e-6


def test_a_self_baseline_is_biased():
    """The enumeration can fail: a baseline from the rollout's own states does not give the exact gradient."""
    policy = Policy()
    gap = policy.expected_gradient(2, poise(policy, with_reward=True, own_value=True)) - policy.exact_gradient()
    assert gap.abs().max() > 1e-3


def test_a_prompt_only_value_is_unbiased_with_one_rollout():
    policy = Policy()
    policy.value = torch.full_like(policy.value, 0.3)  # reads nothing of the response
    gap = policy.expected_gradient(1, poise(policy, False, own_value=True)) - policy.exact_gradient()
    assert gap.abs().max() < 1e-6


def advantages_of(reward, group, value, weights=(1.0, 0.0, 0.0), constant=NAN):
    count = len(reward)
    return compute_advantages(
        torch.tensor(reward),
        torch.tensor(group),
        torch.tensor(value),
        torch.tensor(weights).expand(count, 3),
        torch.full((count,), constant),
    )


def test_pairs_take_each_others_value():
    result = advantages_of([1.0, 0.0, 0.0, 1.0], [7, 3, 7, 3], [0.25, 0.5, 0.75, 0.125])
    assert result.advantage_B.tolist() == [0.25, -0.125, -0.25, 0.5]
    assert result.source_B.tolist() == [PROBE] * 4


def test_until_the_probe_has_weight_the_baseline_is_rloo():
    result = advantages_of([1.0, 0.0, 0.0], [0, 0, 0], [0.9, 0.9, 0.9], weights=(0.0, 1.0, 0.0))
    assert result.advantage_B.tolist() == [1.0, -0.5, -0.5]
    assert result.source_B.tolist() == [RLOO] * 3
    assert result.metrics()["poise/share_rloo"] == 1.0


def test_baselines_are_mixed_by_weight():
    result = advantages_of([1.0, 0.0], [0, 0], [0.25, 0.5], weights=(0.5, 0.25, 0.25), constant=0.5)
    assert result.baseline_B.tolist() == [0.25 + 0.0 + 0.125, 0.125 + 0.25 + 0.125]
    assert result.source_B.tolist() == [PROBE] * 2
    # without a sibling only the constant is left, and takes all the weight
    alone = advantages_of([1.0], [0], [0.25], weights=(0.5, 0.25, 0.25), constant=0.5)
    assert (alone.baseline_B.tolist(), alone.source_B.tolist()) == ([0.5], [CONSTANT])


def test_a_bad_row_is_left_out_and_its_sibling_unharmed():
    result = advantages_of([NAN, 1.0, 1.0, 0.0], [0, 0, 1, 1], [0.5, 0.25, NAN, 0.75], constant=0.625)
    assert result.source_B.tolist() == [NONE, PROBE, PROBE, CONSTANT]
    # row 1 takes row 0's value: the state is good, only its reward is missing; row 3 cannot take row 2's NaN value
    assert result.advantage_B.tolist() == [0.0, 0.5, 0.25, -0.625]


@pytest.mark.parametrize(("rows", "source"), [(2, CONSTANT), (3, CONSTANT), (4, RLOO), (8, RLOO)])
def test_without_a_probe_few_siblings_count_less_than_all_other_prompts(rows, source):
    """Counted are those that have a reward; without a constant, few siblings are better than nothing."""
    rewards, nothing = [1.0, 0.0, NAN] + [1.0] * (rows - 2), [NAN] * (rows + 1)
    known = advantages_of(rewards, [0] * (rows + 1), nothing, constant=0.5)
    assert [x for x in known.source_B.tolist() if x != NONE] == [source] * rows
    unknown = advantages_of(rewards, [0] * (rows + 1), nothing)
    assert [x for x in unknown.source_B.tolist() if x != NONE] == [RLOO] * rows


def test_missing_siblings_fall_back_to_the_constant_then_to_nothing():
    assert advantages_of([1.0], [0], [0.9], constant=0.25).advantage_B.tolist() == [0.75]
    assert advantages_of([1.0], [0], [0.9], constant=0.25).source_B.tolist() == [CONSTANT]
    alone = advantages_of([1.0], [0], [0.9])
    assert (alone.advantage_B.tolist(), alone.source_B.tolist()) == ([0.0], [NONE])


def test_equal_rewards_give_a_signal_beside_rloo_none():
    result = advantages_of([1.0, 1.0, 0.0, 0.0], [0, 0, 1, 1], [0.75, 0.5, 0.25, 0.5])
    assert result.advantage_B.abs().min() > 0
    metrics = result.metrics()
    assert metrics["poise/advantage_variance_rloo"] == 0.0
    assert "poise/advantage_variance_ratio" not in metrics  # nothing to divide by


def test_order_of_rows_does_not_matter():
    generator = torch.Generator().manual_seed(1)
    reward_B, value_B = torch.rand(30, generator=generator), torch.rand(30, generator=generator)
    group_B = torch.arange(30) // 3
    weight_B3, constant_B = torch.tensor([0.5, 0.3, 0.2]).expand(30, 3), torch.zeros(30)
    order = torch.randperm(30, generator=generator)
    plain = compute_advantages(reward_B, group_B, value_B, weight_B3, constant_B).advantage_B
    mixed = compute_advantages(reward_B[order], group_B[order], value_B[order], weight_B3, constant_B).advantage_B
    torch.testing.assert_close(mixed, plain[order])


def test_siblings_count_by_their_weights_and_never_by_the_own():
    reward_B, weight_B = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0]), torch.tensor([5.0, 3.0, 1.0, 2.0, NAN])
    group_B, value_B = torch.tensor([0, 0, 0, 1, 1]), torch.full((5,), NAN)
    rloo_B3 = torch.tensor([0.0, 1.0, 0.0]).expand(5, 3)
    constant_B, energy_B = torch.full((5,), 0.25), torch.tensor([4.0, 2.0, 1.0, NAN, 3.0])
    result = compute_advantages(
        reward_B, group_B, value_B, rloo_B3, constant_B, row_weight_B=weight_B, energy_B=energy_B
    )
    # row 3's sibling counts nothing: the constant
    torch.testing.assert_close(result.baseline_B, torch.tensor([1 / 4, 1.0, 5 / 8, 0.25, 1.0]))
    assert result.source_B.tolist() == [RLOO, RLOO, RLOO, CONSTANT, RLOO]
    # beside RLOO as it is known, all siblings alike
    error = 4 * (3 / 4) ** 2 + 2 * 1.0 + 1 * (3 / 8) ** 2 + 3 * 1.0
    rloo = 4 * (1 / 2) ** 2 + 2 * 1.0 + 1 * (1 / 2) ** 2 + 3 * 1.0
    assert result.metrics()["poise/gradient_variance_ratio"] == pytest.approx(error / rloo)
    same = compute_advantages(reward_B, group_B, value_B, rloo_B3, constant_B, row_weight_B=torch.ones(5))
    torch.testing.assert_close(
        same.advantage_B, compute_advantages(reward_B, group_B, value_B, rloo_B3, constant_B).advantage_B
    )
