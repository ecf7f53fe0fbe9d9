"""Advantages of the gradient study's estimators against small cases by hand and against verl's own functions."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from verl.trainer.ppo import core_algos

from probe import FeatureLayout
from recipe.poise.studies import advantages as adv
from recipe.poise.studies import estimators as menu
from recipe.poise.studies.gradient_statistics import draw_prompts, moments
from recipe.poise.studies.rollout_pool import Pool
from recipe.poise.studies.scores import Scores

REWARD = torch.tensor([1.0, 0.0, 1.0, 1.0]).double()  # two groups of two, or one of four
WEIGHT = torch.tensor([1.0, 3.0, 2.0, 2.0]).double()


def test_estimators_by_hand():
    assert adv.rloo(REWARD, 2).tolist() == [1.0, -1.0, 0.0, 0.0]
    assert adv.rloo(REWARD, 4).tolist() == pytest.approx([1 / 3, -1.0, 1 / 3, 1 / 3])
    assert adv.rloo(REWARD, 4, WEIGHT).tolist() == pytest.approx([1 - 4 / 7, -1.0, 1 - 3 / 6, 1 - 3 / 6])
    # siblings that weigh nothing count alike
    assert adv.rloo(REWARD, 2, torch.zeros(4).double()).tolist() == [1.0, -1.0, 0.0, 0.0]
    assert adv.opo(REWARD, WEIGHT, 4).tolist() == pytest.approx([3 / 8, -5 / 8, 3 / 8, 3 / 8])
    # each prompt has the weighted mean of the other
    assert adv.constant(REWARD, 2, WEIGHT).tolist() == pytest.approx([0.0, -1.0, 0.75, 0.75])
    assert adv.grpo(REWARD, 4).tolist() == pytest.approx([0.5, -1.5, 0.5, 0.5], rel=1e-5)
    assert adv.kept_by_dapo(REWARD, 2).tolist() == [True, True, False, False]


def token_rows(seed=0, rows=12, longest=6):
    generator = torch.Generator().manual_seed(seed)
    length_R = torch.randint(1, longest + 1, (rows,), generator=generator)
    mask_RT = torch.arange(longest) < length_R.unsqueeze(1)
    reward_R = torch.randint(0, 2, (rows,), generator=generator).float()
    log_prob_RT = -torch.rand(rows, longest, generator=generator) * 3
    sum_pi_squared_RT = log_prob_RT.mul(2).exp() + 0.1
    reward_RT = torch.zeros(rows, longest)
    reward_RT[torch.arange(rows), length_R - 1] = reward_R
    return reward_R, length_R, mask_RT, log_prob_RT, sum_pi_squared_RT, reward_RT


@pytest.mark.parametrize("n", [2, 4])
def test_groups_agree_with_verls_functions(n):
    reward_R, length_R, mask_RT, *_, reward_RT = token_rows()
    index = np.repeat(np.arange(12 // n), n)
    ours = {
        "compute_rloo_outcome_advantage": adv.rloo(reward_R, n),
        "compute_grpo_outcome_advantage": adv.grpo(reward_R, n),
        "compute_opo_outcome_advantage": adv.opo(reward_R.double(), length_R.double(), n).float(),
    }
    for name, advantage_R in ours.items():
        expected_RT, _ = getattr(core_algos, name)(reward_RT.clone(), mask_RT.float(), index)
        torch.testing.assert_close(advantage_R.unsqueeze(1) * mask_RT, expected_RT, rtol=1e-4, atol=1e-5)


def test_the_token_baseline_is_verls_by_hand():
    """B_t = sum_i G_i W_it / sum_i W_it over the rows that have a token t, W the sum of 1 - 2 pi + sum pi^2 up to t."""
    reward_R, length_R, mask_RT, log_prob_RT, sum_pi_squared_RT, _ = token_rows()
    found_RT = adv.token_baseline(reward_R, 4, log_prob_RT, sum_pi_squared_RT, mask_RT)
    weight_RT = ((1 - 2 * log_prob_RT.exp() + sum_pi_squared_RT) * mask_RT).cumsum(1) * mask_RT
    for first in range(0, 12, 4):
        rows = slice(first, first + 4)
        second, longest = sorted(length_R[rows].tolist())[-2:]
        for row in range(first, first + 4):
            for t in range(int(length_R[row])):
                weights = weight_RT[rows, t]
                baseline = float((weights * reward_R[rows]).sum() / weights.sum())
                if longest > second and t >= second:
                    baseline = 0.0  # nobody to compare with
                assert float(found_RT[row, t]) == pytest.approx(float(reward_R[row]) - baseline, abs=1e-5)
    assert not found_RT[~mask_RT].any()


def planted(prompts=300, n=8, directions=6, seed=0):
    """A pool whose scores are those of one Bernoulli per prompt, y - p, in a random direction: right ones are
    rewarded."""
    generator = torch.Generator().manual_seed(seed)
    rate = torch.rand(prompts, generator=generator).repeat_interleave(n)
    reward_R = (torch.rand(prompts * n, generator=generator) < rate).float()
    length_R = torch.randint(3, 12, (prompts * n,), generator=generator)
    direction_PK = torch.randn(prompts, directions, generator=generator).repeat_interleave(n, 0) + 1.0
    score_RK = ((reward_R - rate).unsqueeze(1) * direction_PK).double()
    noise = torch.randn(len(reward_R), 2, generator=generator)
    feature_RF = torch.cat([rate.unsqueeze(1), noise], 1)
    layout, prompt_R = FeatureLayout(("prompt", "noise"), (2, 1)), torch.arange(prompts).repeat_interleave(n)
    pool = Pool([torch.zeros(1)] * len(reward_R), length_R, reward_R, feature_RF, prompt_R, layout, n)
    return pool, Scores(score_RK, score_RK.square().mean(1))


def material(pool, scores, mode="token-mean"):
    energy = {"e": scores.norm_R + 1e-6, menu.TRUE: scores.norm_R}
    return menu.Material(pool, pool, scores, scores, energy, {"e": energy["e"]}, mode)


def batch_gradient(made, method, rows):
    """As the loss has it, of the rows of one batch."""
    index = torch.from_numpy(rows)
    kept = torch.ones(len(rows)).double() if method.kept_R is None else method.kept_R[index].double()
    total = ((method.advantage_R[index] * kept).unsqueeze(1) * made.scores.projected_RK[index]).sum(0)
    counted = made.pool.length_R[index].double() if made.mode == "token-mean" else torch.ones(len(rows)).double()
    return (total / (counted * kept).sum()).numpy()


@pytest.mark.parametrize("mode", menu.AGGREGATIONS)
@pytest.mark.parametrize("name", ["no baseline, n=1", "batch mean, n=1", "RLOO, n=2", "RLOO, n=8", "DAPO, n=8"])
def test_variance_per_prompt_is_that_of_batches(name, mode):
    """Many batches of whole groups drawn at random from the pool, at the same number of generated tokens."""
    pool, scores = planted()
    made = material(pool, scores, mode)
    args = Namespace(rollouts=64, weight_cap=None)
    method = next(m for m in menu.methods(made, "e", args, 0, {}) if m.name == name)
    rng = np.random.default_rng(0)
    item = moments(menu.groups(made, method), draw_prompts(300, rng, 10))
    size, draws = 600 // method.n, 3000
    first = np.arange(0, len(pool.reward_R), method.n)
    gradients, paid = [], []
    for _ in range(draws):
        rows = (rng.choice(first, size)[:, None] + np.arange(method.n)).ravel()
        gradients.append(batch_gradient(made, method, rows))
        paid.append(float(pool.length_R[rows].sum()))
    variance = np.var(gradients, axis=0, ddof=1).mean() * np.mean(paid)
    assert variance == pytest.approx(item.variance, rel=0.06)
    mean = np.mean(gradients, axis=0)
    assert item.signal == pytest.approx((mean**2).mean(), rel=0.12)


def test_other_gradients_are_compared_by_their_scale_free_variance():
    """Twice RLOO's advantages, called another gradient: as good as RLOO, whose signal is taken from the constant."""
    pool, scores = planted()
    made, drawn = material(pool, scores), draw_prompts(300, np.random.default_rng(0), 50)
    advantage_R = adv.rloo(pool.reward_R.double(), 8)
    every = {
        name: menu.Method(name, 8, "yes", advantage_R) for name in menu.COMPARED.values()
    } | {"twice": menu.Method("twice", 8, menu.SCALE, 2 * advantage_R)}  # fmt: skip
    found = {name: (method, moments(menu.groups(made, method), drawn)) for name, method in every.items()}
    entry = menu.numbers(found, 100.0)["twice"]
    assert entry["over_rloo"] == pytest.approx({"value": 1.0, "low": 1.0, "high": 1.0})
    assert entry["variance"]["value"] == pytest.approx(4 * found[menu.RLOO_8][1].variance / 100)
    assert entry["ratio"]["value"] == pytest.approx(found[menu.RLOO_8][1].ratio / 100)


def test_what_dapo_throws_away_is_paid_for():
    pool, scores = planted()
    made = material(pool, scores)
    equal_R = ~adv.kept_by_dapo(pool.reward_R, 8)
    assert equal_R.any()
    kept = menu.Method("DAPO", 8, menu.SCALE, adv.grpo(pool.reward_R.double(), 8), ~equal_R)
    found = menu.groups(made, kept)
    dropped_P = equal_R.view(-1, 8)[:, 0].numpy()
    assert (found.counted_PO[dropped_P] == 0).all() and (found.paid_PO[dropped_P] > 0).all()
    assert (found.square_PO[dropped_P] == 0).all()


def test_the_probe_is_asked_in_steps_and_says_nothing_of_its_own_prompt():
    """Each row is in one step; the baseline of a row does not change with its own reward, and does with another's."""
    pool, scores = planted(prompts=96)
    assert sorted(torch.cat(adv.steps(pool, 2, 64)).tolist()) == list(range(len(pool.reward_R)))
    assert all(len(part) % 2 == 0 and len(part) <= 64 for part in adv.steps(pool, 2, 64))
    weighted = [adv.ProbeForm(True, "fresh", alone, where) for alone in (False, True) for where in ("fit", "link")]
    for form in (*weighted, adv.ProbeForm(False, "lagged"), adv.ProbeForm(False, "fresh")):
        n = 1 if form.prompt_only else 2
        run = adv.ProbeRun(form, pool, scores.norm_R + 0.1, n, 64, None, 0)
        baseline_R = pool.reward_R - run.advantages(pool, scores.norm_R + 0.1)[0]
        reward_R = pool.reward_R.clone()
        reward_R[0] = 1.0 - reward_R[0]
        changed = Pool(pool.ids, pool.length_R, reward_R, pool.feature_RF, pool.prompt_R, pool.layout, pool.n)
        other_R = changed.reward_R - run.advantages(changed, scores.norm_R + 0.1)[0]
        assert float(other_R[0]) == pytest.approx(float(baseline_R[0]), abs=1e-6)
        in_step = adv.steps(pool, n, 64)[0]
        differs = not torch.allclose(other_R[in_step[n:]], baseline_R[in_step[n:]], atol=1e-7)
        # of one Bernoulli the best baseline is 1 - p, which no rising link says: it is a constant of earlier steps here
        falls = form.weighted and form.where == "link"
        assert differs == (form.fit == "fresh" and not falls)
        assert not falls or run.bank.probes[0].estimator.slope_ == 0.0
        assert torch.allclose(other_R[in_step[-1] + 8 :], baseline_R[in_step[-1] + 8 :], atol=1e-6)
