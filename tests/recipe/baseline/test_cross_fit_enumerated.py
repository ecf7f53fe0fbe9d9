"""Weighted and cross-fitted baselines by enumeration: over all outcomes of a step of several prompts the mean of the
estimated gradient is the exact one, from the first step on; each way in which a row's own outcome could leak is seen.
"""

import copy
import itertools
from dataclasses import replace

import pytest
import torch

from probe import Crossing, FeatureLayout, ProbeBank, ProbeSettings
from probe.cross_fit import cross_fit
from probe.estimators import MLP
from probe.step import EarlierRows, prepare
from recipe.poise.baseline.advantage import compute_advantages

PROMPT_ONLY = FeatureLayout(("prompt",), (3,))
STATES = FeatureLayout(("prompt", "response", "length", "reward"), (3, 2, 1, 1))


class World:
    """Prompts, each with a softmax over three responses. A response has a reward, an energy (what its row weighs,
    hundredfold from one to the other) and a state."""

    def __init__(self, prompts, responses=3, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.layout = STATES
        shape = (prompts, responses)
        self.probability = torch.randn(shape, generator=generator).double().softmax(1)
        self.reward = torch.rand(shape, generator=generator).double().round(decimals=2)
        self.energy = 10.0 ** (4 * torch.rand(shape, generator=generator) - 2)
        self.prompt = torch.randn(prompts, 3, generator=generator)
        self.response = torch.randn(*shape, 2, generator=generator) + self.reward.unsqueeze(2).float()

    def rows(self, outcome, n, layout):
        """Features, rewards, groups and weights of the rollouts `outcome`, n of each prompt."""
        group_R, y_R = torch.arange(len(outcome)) // n, torch.tensor(outcome)
        reward_R, energy_R = self.reward[group_R, y_R].float(), self.energy[group_R, y_R]
        columns = [self.prompt[group_R]]
        if layout is STATES:
            columns += [self.response[group_R, y_R], energy_R.log().unsqueeze(1), reward_R.unsqueeze(1)]
        return torch.cat(columns, dim=1), reward_R, group_R, energy_R

    def exact_gradient(self):
        mean_P1 = (self.probability * self.reward).sum(1, keepdim=True)
        return self.probability * (self.reward - mean_P1)

    def expected_gradient(self, n, layout, advantages):
        """Mean over all outcomes of the step's sum of advantage x score / n, by prompt."""
        prompts, responses = self.probability.shape
        total = torch.zeros_like(self.probability)
        eye = torch.eye(responses).double()
        for outcome in itertools.product(range(responses), repeat=prompts * n):
            rows = self.rows(outcome, n, layout)
            group_R, y_R = rows[2], torch.tensor(outcome)
            score_RY = eye[y_R] - self.probability[group_R]
            chance = self.probability[group_R, y_R].prod()
            total.index_add_(0, group_R, chance * advantages(*rows).double().unsqueeze(1) * score_RY / n)
        return total


def make_bank(layout, n, earlier, kind="subspace_ridge", **changes):
    """A bank that has learned `earlier` steps of other prompts' rollouts: of another world with the same layout."""
    shape = {"min_rows": 2, "kind": kind, "exact_features": 3, "rank": 3, "window_rows": 200}
    crossing = Crossing("energy", changes.pop("weight_cap", 0.9), "fresh", ("prompt",))
    bank = ProbeBank(ProbeSettings(**shape | changes), layout, self_target=layout is PROMPT_ONLY, crossing=crossing)
    generator = torch.Generator().manual_seed(7)
    for step in range(earlier):
        world = World(12, seed=10 + step)
        outcome = torch.randint(0, 3, (12 * n,), generator=generator).tolist()
        x_RF, reward_R, group_R, weight_R = world.rows(outcome, n, layout)
        bank.update(x_RF, reward_R, group_R, step=step, weight_R=weight_R)
    return bank


def advantage_of(said, reward_R, group_R, n, row_weight_R=None):
    return compute_advantages(
        reward_R,
        group_R,
        said.value_R,
        said.weight_R3,
        said.constant_R,
        own_value=n == 1,
        row_weight_B=said.row_weight_R if row_weight_R is None else row_weight_R,
    ).advantage_B


def fresh(bank, n):
    def advantages(x_RF, reward_R, group_R, weight_R):
        said = bank.cross_fit(x_RF, reward_R, group_R, weight_R=weight_R)
        return advantage_of(said, reward_R, group_R, n)

    return advantages


def lagged(bank, n):
    def advantages(x_RF, reward_R, group_R, weight_R):
        return advantage_of(bank.predict(x_RF, weight_R=weight_R), reward_R, group_R, n)

    return advantages


def small(n):
    """At most 81 outcomes."""
    return World({1: 4, 2: 2, 3: 2}[n], responses=2 if n == 3 else 3)


def gap_of(n, advantages, world=None):
    world = world or small(n)
    layout = PROMPT_ONLY if n == 1 else STATES
    return (world.expected_gradient(n, layout, advantages) - world.exact_gradient()).abs().max()


@pytest.mark.parametrize("earlier", [0, 3])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_fresh_and_weighted_is_exact(n, earlier):
    bank, world = make_bank(PROMPT_ONLY if n == 1 else STATES, n, earlier), World({1: 4, 2: 3, 3: 2}[n])
    assert gap_of(n, fresh(bank, n), world) < 1e-6
    # and it is the cross-fitted probe that is at work, mixed with the others once there is a guard
    rows = world.rows([0, 1, 2, 1, 0, 2][: len(world.reward) * n], n, bank.layout)
    said = bank.cross_fit(*rows[:3], weight_R=rows[3])
    assert said.value_R.isfinite().all() and said.value_R.std() > 1e-3 and said.constant_R.isfinite().all()
    assert said.weight_R3[0].tolist() == [1.0, 0.0, 0.0] if not earlier else said.weight_R3[0, 0] > 0.05
    if earlier:  # the present step takes part, and the cap is at work
        assert (said.value_R - bank.predict(rows[0]).value_R).abs().max() > 1e-3
        assert bank.probes[0].cap(0.9) < world.energy.max()


@pytest.mark.parametrize("kind", ["ridge", "pca_ridge"])
@pytest.mark.parametrize("guard", ["off", "switch"])
def test_the_other_closed_forms_and_guards_are_exact(kind, guard):
    assert gap_of(2, fresh(make_bank(STATES, 2, 3, kind, guard=guard), 2)) < 1e-6


@pytest.mark.parametrize("kind", ["subspace_ridge", "pca_ridge"])
@pytest.mark.parametrize("n", [1, 2])
def test_weights_in_the_regression_are_exact(n, kind):
    layout = PROMPT_ONLY if n == 1 else STATES
    assert gap_of(n, fresh(make_bank(layout, n, 3, kind, guard="off", weighted="fit"), n)) < 1e-6


@pytest.mark.parametrize("earlier", [0, 3])
def test_the_constant_alone_is_exact_with_one_rollout(earlier):
    bank = make_bank(PROMPT_ONLY, 1, earlier, guard="constant")
    assert gap_of(1, fresh(bank, 1)) < 1e-6


@pytest.mark.parametrize("earlier", [0, 2])
@pytest.mark.parametrize("kind", ["logistic", "mlp"])
@pytest.mark.parametrize("n", [1, 2])
def test_folds_are_exact(kind, n, earlier):
    """Also of a first step, which the probe of n = 1 has to itself; a fit that holds the own prompt is not exact."""
    layout = PROMPT_ONLY if n == 1 else STATES
    bank = make_bank(layout, n, earlier, kind, guard="off")
    estimator = bank.probes[0].estimator
    if isinstance(estimator, MLP):
        estimator.steps = 3
    world = World(3 if n == 1 else 2, responses=2, seed=3)
    rows = world.rows([0, 1, 1, 0][: len(world.reward) * n], n, layout)
    said = bank.cross_fit(*rows[:3], weight_R=rows[3])
    assert said.value_R.isfinite().all()
    assert said.weight_R3[0].tolist() == ([1.0, 0.0, 0.0] if earlier or n == 1 else [0.0, 1.0, 0.0])
    assert gap_of(n, fresh(bank, n), world) < 1e-6

    def own_prompt_in(x_RF, reward_R, group_R, weight_R):
        step = prepare(x_RF, reward_R, group_R, weight_R, layout is PROMPT_ONLY)
        fit = copy.deepcopy(estimator).fit(x_RF, step.target_R, group_R, step.counts_R(of_targets=True))
        said = bank.cross_fit(x_RF, reward_R, group_R, weight_R=weight_R)
        said = replace(said, value_R=fit.predict(x_RF), weight_R3=torch.tensor([1.0, 0.0, 0.0]).expand(len(x_RF), 3))
        return advantage_of(said, reward_R, group_R, n)

    assert gap_of(n, own_prompt_in, world) > 1e-4


@pytest.mark.parametrize("weights", [(0.2, 0.5, 0.3), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
@pytest.mark.parametrize("n", [2, 3])
def test_every_mixture_is_exact(n, weights):
    """RLOO weighted by the siblings' energies, and the left-out constant, each alone and together."""
    bank = make_bank(STATES, n, 3)

    def advantages(x_RF, reward_R, group_R, weight_R):
        said = bank.cross_fit(x_RF, reward_R, group_R, weight_R=weight_R)
        said.weight_R3[:] = torch.tensor(weights)
        return advantage_of(said, reward_R, group_R, n)

    assert gap_of(n, advantages) < 1e-6


@pytest.mark.parametrize("n", [1, 2, 3])
def test_lagged_and_weighted_is_exact(n):
    bank = make_bank(PROMPT_ONLY if n == 1 else STATES, n, 3)
    assert gap_of(n, lagged(bank, n)) < 1e-6


def test_without_prompt_states_the_first_step_is_weighted_rloo():
    layout = FeatureLayout(("response", "length", "reward"), (2, 1, 1))
    bank = ProbeBank(ProbeSettings(min_rows=2), layout, crossing=Crossing("energy", None, "fresh", ()))

    def advantages(x_RF, reward_R, group_R, weight_R):
        said = bank.cross_fit(x_RF[:, 3:], reward_R, group_R, weight_R=weight_R)
        assert said.value_R.isnan().all() and said.weight_R3[0].tolist() == [0.0, 1.0, 0.0]
        return advantage_of(said, reward_R, group_R, 2)

    assert gap_of(2, advantages) < 1e-6


# ---- what leaks is seen


def learned(bank, rows):
    """The bank after it has learned the present rows, from the start: directions are those of the present rows too."""
    after = copy.deepcopy(bank)
    after.probes[0].estimator.lose_track()
    after.update(*rows[:3], step=9, weight_R=rows[3])
    return after


def own_prompt_left_in(bank, n):
    def advantages(*rows):
        after = learned(bank, rows)
        return advantage_of(after.predict(rows[0], weight_R=rows[3]), rows[1], rows[2], n)

    return advantages


def form_of_the_present_rows(bank, n, names):
    """Left out in closed form, but with parts of the fit that has seen the present rows."""

    def advantages(*rows):
        x_RF, reward_R, group_R, weight_R = rows
        said = bank.cross_fit(x_RF, reward_R, group_R, weight_R=weight_R)
        fitted, after = copy.deepcopy(bank.probes[0].estimator), learned(bank, rows).probes[0].estimator
        for name in names:
            setattr(fitted, name, getattr(after, name))
        window, order = bank.probes[0].window, bank.probes[0].window.order
        columns = (window.feature, window.target, window.target_weight, window.group)
        earlier = EarlierRows(*(column[order] for column in columns))
        step = prepare(x_RF, reward_R, group_R, said.row_weight_R, bank.self_target)
        said.value_R.copy_(cross_fit(fitted, earlier, step, 2, None))
        said.weight_R3[:] = torch.tensor([1.0, 0.0, 0.0])
        return advantage_of(said, reward_R, group_R, n)

    return advantages


def guard_of_the_present_rows(bank, n):
    def advantages(*rows):
        said = bank.cross_fit(*rows[:3], weight_R=rows[3])
        said.weight_R3[:] = torch.tensor(learned(bank, rows).probes[0].verdict.weight_E)
        return advantage_of(said, rows[1], rows[2], n)

    return advantages


def constant_of_the_present_rows(bank, n):
    def advantages(*rows):
        said = bank.cross_fit(*rows[:3], weight_R=rows[3])
        said.constant_R.fill_(learned(bank, rows).probes[0].constant)
        said.weight_R3[:] = torch.tensor([0.0, 0.0, 1.0])
        return advantage_of(said, rows[1], rows[2], n)

    return advantages


def cap_of_the_present_rows(bank, n):
    """The mean of the present weights as the cap of all: it decides between the other two of three siblings."""

    def advantages(*rows):
        said = bank.cross_fit(*rows[:3], weight_R=rows[3])
        said.weight_R3[:] = torch.tensor([0.0, 1.0, 0.0])
        return advantage_of(said, rows[1], rows[2], n, rows[3].clamp(max=float(rows[3].mean())))

    return advantages


def own_weight_in_the_siblings_mean(bank, n):
    def advantages(x_RF, reward_R, group_R, weight_R):
        total_R = torch.zeros(len(x_RF)).index_add_(0, group_R, weight_R)[group_R]
        sum_R = torch.zeros(len(x_RF)).index_add_(0, group_R, weight_R * reward_R)[group_R]
        # of n siblings' sum without the own reward, divided by all weights
        return reward_R - (sum_R - weight_R * reward_R) / total_R

    return advantages


LEAKS = {
    "own prompt left in, n=1": (1, own_prompt_left_in),
    "own prompt left in, n=2": (2, own_prompt_left_in),
    "basis": (2, lambda b, n: form_of_the_present_rows(b, n, ("center_", "scale_", "basis_", "gain_"))),
    "penalty": (2, lambda b, n: form_of_the_present_rows(b, n, ("strength_",))),
    "link": (2, lambda b, n: form_of_the_present_rows(b, n, ("slope_", "offset_"))),
    "guard": (2, guard_of_the_present_rows),
    "constant": (2, constant_of_the_present_rows),
    "cap": (3, cap_of_the_present_rows),
    "own weight": (2, own_weight_in_the_siblings_mean),
}


@pytest.mark.parametrize("weighted", ["fit", "link"])
@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_is_seen(leak, weighted):
    n, make = LEAKS[leak]
    # a link that rises, so that something hangs on the regression, takes a few steps
    earlier = 3 if weighted == "link" and leak in ("basis", "penalty", "link") else 1
    layout = PROMPT_ONLY if n == 1 else STATES
    bank = make_bank(layout, n, earlier, penalties=(1e-4, 1e-2, 1.0), weighted=weighted)
    gap = gap_of(n, make(bank, n))
    assert gap > 1e-5
    assert gap_of(n, form_of_the_present_rows(bank, n, ())) < 1e-6  # the same way, with nothing leaking


def test_a_first_basis_of_the_responses_would_leak():
    """What the first step may not do: standardise and project what depends on the responses."""
    bank = make_bank(STATES, 2, 0)
    bank._prompt_F[:] = True
    gap = gap_of(2, fresh(bank, 2))
    assert gap > 1e-5
