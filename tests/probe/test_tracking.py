"""Following a window step by step gives what a fit on the window gives, also after thousands of steps."""

import pytest
import torch

from probe import FeatureLayout
from probe.estimators import Logistic, SubspaceRidge
from probe.ridge_path import ridge_path
from probe.window import SlidingWindow

FEATURES, RANK = 60, 8
LAYOUT = FeatureLayout(("state", "entropy"), (FEATURES - 1, 1))


def make(kind=SubspaceRidge, **changes):
    return kind(LAYOUT, rank=RANK, exact_features=4, **changes)


class World:
    """Rows of a low-rank signal that turns slowly from step to step."""

    def __init__(self, turn, seed=0):
        self.generator, self.turn = torch.Generator().manual_seed(seed), turn
        self.basis = torch.linalg.qr(torch.randn(FEATURES - 1, RANK, generator=self.generator))[0]

    def step(self, prompts=8):
        self.basis += self.turn * torch.randn(self.basis.shape, generator=self.generator)
        self.basis = torch.linalg.qr(self.basis)[0]
        latent = torch.randn(prompts, RANK, generator=self.generator).repeat_interleave(2, 0)
        latent = latent + 0.3 * torch.randn(latent.shape, generator=self.generator)
        state = latent @ self.basis.T + 0.1 * torch.randn(len(latent), FEATURES - 1, generator=self.generator) + 5.0
        reward = (torch.rand(len(latent), generator=self.generator) < (3 * latent[:, 0]).sigmoid()).float()
        return torch.cat([state, torch.rand(len(latent), 1, generator=self.generator)], dim=1), reward


def learn(estimator, window, x_RF, reward_R, step):
    target_R = reward_R.view(-1, 2).flip(1).flatten()
    change = window.push(x_RF, reward_R, target_R, target_R, torch.arange(len(x_RF)) // 2, step)
    estimator.follow(window, change)


def follow(estimator, world, steps, window=None):
    window = window or SlidingWindow(160, FEATURES)
    for step in range(steps):
        learn(estimator, window, *world.step(), step)
    return window


def in_order(window):
    return window.feature[window.order], window.target[window.order], window.group[window.order]


@pytest.mark.parametrize("turn", [0.0, 0.01])
def test_after_thousands_of_steps_it_is_the_batch_fit(turn):
    world, tracked = World(turn), make()
    window = follow(tracked, world, steps=3000)
    batch = make().fit(*in_order(window))
    fresh = torch.cat([world.step()[0] for _ in range(20)])
    difference = (tracked.predict(fresh) - batch.predict(fresh)).square().mean().sqrt()
    assert difference < (0.01 if turn == 0.0 else 0.06)


def test_between_refreshes_it_is_the_fit_in_the_same_subspace():
    tracked = make(link="clip")
    window = follow(tracked, World(0.0), steps=102)
    x_NF, y_N, group_N = in_order(window)
    assert 0 < tracked.changed_  # not refreshed in the last step
    a_NK = tracked.subspace.project(x_NF)
    torch.testing.assert_close(tracked.projected_[window.order], a_NK, rtol=1e-5, atol=1e-5)
    solution = ridge_path(a_NK, y_N, group_N, tracked.penalties)
    assert tracked.penalty_ == solution.penalty
    torch.testing.assert_close(
        tracked.weight_, tracked.subspace.unproject(solution.coefficient_K), rtol=1e-4, atol=1e-6
    )


def test_the_basis_is_refreshed_when_half_of_the_window_is_new_and_not_before():
    tracked, world = make(refresh_share=0.5), World(0.0)
    window = follow(tracked, world, steps=10)  # full: 160 rows
    refreshes = []
    for step in range(10, 40):
        before = tracked.basis_
        learn(tracked, window, *world.step(), step)
        refreshes.append(tracked.basis_ is not before)
    # 16 rows come and 16 go in a step: more than 80 have changed after three
    assert refreshes[3:] == (refreshes[:3] * 10)[3:] and sum(refreshes) == 10


def test_rows_that_stand_out_of_the_subspace_refresh_it_at_once():
    tracked = make(refresh_share=100.0)
    window = follow(tracked, World(0.0), steps=10)
    before = tracked.basis_
    learn(tracked, window, *World(0.0).step(), 10)
    assert tracked.basis_ is before
    learn(tracked, window, *World(0.0, seed=5).step(), 11)  # another signal altogether
    assert tracked.basis_ is not before


def test_a_drifting_signal_is_followed():
    world, tracked, frozen = World(0.02), make(), make(refresh_share=1e9, refresh_energy=0.0)
    window = follow(tracked, world, steps=20)
    other = follow(frozen, World(0.02), steps=20)
    errors = []
    for step in range(20, 300):
        x_RF, reward_R = world.step()
        errors.append([(e.predict(x_RF) - reward_R).square().mean() for e in (tracked, frozen)])  # before it is learned
        for estimator, rows in ((tracked, window), (frozen, other)):
            learn(estimator, rows, x_RF, reward_R, step)
    error_tracked, error_frozen = torch.tensor(errors)[100:].mean(dim=0)
    assert error_tracked < 0.9 * error_frozen


def test_logistic_follows_too():
    world, tracked = World(0.0), make(Logistic, penalties=(0.01, 0.1))
    window = follow(tracked, world, steps=200)
    batch = make(Logistic, penalties=(0.01, 0.1)).fit(*in_order(window))
    fresh = world.step()[0]
    torch.testing.assert_close(tracked.predict(fresh), batch.predict(fresh), atol=0.03, rtol=0)
