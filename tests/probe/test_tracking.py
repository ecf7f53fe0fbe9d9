"""Following a window step by step gives what a fit on the window gives, also after thousands of steps."""

import pytest
import torch

from probe import FeatureLayout
from probe.estimators import Logistic, SubspaceRidge
from probe.refresh import Refresh
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
    world, tracked = World(0.0), make(Logistic, penalties=(0.01, 0.1), refresh_share=0.5)
    window = follow(tracked, world, steps=200)
    batch = make(Logistic, penalties=(0.01, 0.1)).fit(*in_order(window))
    fresh = world.step()[0]
    torch.testing.assert_close(tracked.predict(fresh), batch.predict(fresh), atol=0.03, rtol=0)


# ---- a refresh in parts


def worked(monkeypatch):
    """Rows that a refresh under way sums or projects, counted; the list that a caller appends to is its first."""
    rows = [0]
    for name in ("_sum", "_project"):
        plain = getattr(Refresh, name)

        def counted(self, window, slots, *rest, plain=plain):
            rows[-1] += len(slots)
            plain(self, window, slots, *rest)

        monkeypatch.setattr(Refresh, name, counted)
    return rows


def test_each_step_does_its_part_of_a_refresh(monkeypatch):
    rows, tracked, world = worked(monkeypatch), make(), World(0.0)
    window, bases = follow(tracked, world, steps=30), []
    rows.clear()
    for step in range(30, 60):
        rows.append(0)
        learn(tracked, window, *world.step(), step)
        bases.append(tracked.basis_)
    # two times 160 rows in ten steps, 16 of which arrive in each
    assert max(rows) <= 2 * 16 + 16 and min(rows) >= 16
    assert len({id(basis) for basis in bases}) == 4  # a whole window later each


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("parts", [[1.0], [0.2, 0.5, 0.7, 1.0], [k / 17 for k in range(1, 18)]])
def test_parts_are_one_iteration_with_the_windows_own_moments(parts, weighted):
    tracked, window = make(), SlidingWindow(160, FEATURES)
    world, generator = World(0.05), torch.Generator().manual_seed(1)

    def step(number):
        x_RF, reward_R = world.step()
        weight_R = 0.1 + torch.rand(16, generator=generator) ** 3 * 9 if weighted else None
        order = torch.arange(16) // 2
        return window.push(x_RF, reward_R, reward_R, reward_R, order, number, target_weight_R=weight_R)

    for number in range(12):
        tracked.follow(window, step(number))
    tracked.refresh.stop()
    nothing = torch.empty(0, dtype=torch.int64)
    done = [tracked.refresh.advance(window, tracked.projected_, nothing, share) for share in parts]
    assert done == [False] * (len(parts) - 1) + [True]
    coming, order = tracked.refresh.coming, window.order
    x_NF, w_N = window.feature[order].double(), window.target_weight[order].double()
    mean = (w_N @ x_NF) / w_N.sum()
    deviation = ((w_N @ (x_NF - mean).square()) / w_N.sum()).sqrt()
    torch.testing.assert_close(coming.mean_.double(), mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(coming.scale_.double(), 1 / deviation, rtol=1e-4, atol=0)
    z_NP = ((x_NF - mean) / deviation)[:, :-1]
    directions = tracked.basis_.double() * (tracked.scale_.double() * deviation)[:-1].unsqueeze(1)  # of raw features
    expected = torch.linalg.qr(z_NP.T @ (w_N.unsqueeze(1) * (z_NP @ directions)))[0]
    cosines = torch.linalg.svdvals(expected.T @ coming.basis_.double())
    torch.testing.assert_close(cosines, torch.ones(RANK).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(tracked.refresh.projected[order], coming.project(window.feature[order]))


def test_rows_that_come_and_go_while_a_refresh_is_under_way_are_in_it():
    """After the first half the moments are those of the window as it is; after the second all rows are projected."""
    tracked, world = make(), World(0.01)
    window = follow(tracked, world, steps=20)
    half = whole = 0
    for step in range(20, 80):
        before, basis = tracked.refresh.projected, tracked.basis_
        learn(tracked, window, *world.step(), step)
        x_NF = window.feature[window.order]
        if before is None and tracked.refresh.projected is not None:
            mean = tracked.refresh.coming.mean_
            torch.testing.assert_close(mean, x_NF.mean(dim=0), rtol=0, atol=1e-5)
            half += 1
        if tracked.basis_ is not basis:
            torch.testing.assert_close(tracked.projected_[window.order], tracked.subspace.project(x_NF))
            whole += 1
    assert half >= 5 and whole >= 5


@pytest.mark.parametrize("factor", [1e6, 1e12, 1e25])
def test_rows_of_huge_numbers_do_not_stay(factor):
    """They stand out, so the subspace is refreshed at once, and again when they have left."""
    tracked, world = make(), World(0.0)
    window = follow(tracked, world, steps=20)
    for step in range(20, 60):
        x_RF, reward_R = world.step()
        learn(tracked, window, x_RF * (factor if step == 24 else 1.0), reward_R, step)
        assert tracked.predict(x_RF).isfinite().all()
    assert tracked.scale_[:-1].min() > 0.1


def test_an_image_that_overflowed_is_not_used():
    tracked, world = make(), World(0.0)
    window = follow(tracked, world, steps=22)
    assert tracked.refresh.image is not None
    tracked.refresh.image[0, 0] = float("inf")
    for step in range(22, 40):
        learn(tracked, window, *world.step(), step)
        assert tracked.basis_.isfinite().all()
    assert tracked.predict(world.step()[0]).std() > 0.1


def test_a_feature_that_begins_to_vary_takes_part():
    tracked, world = make(), World(0.0)
    window = SlidingWindow(160, FEATURES)
    for step in range(60):
        x_RF, reward_R = world.step()
        if step < 20:
            x_RF[:, 3] = 2.0
        learn(tracked, window, x_RF, reward_R, step)
        if step == 15:
            assert tracked.scale_[3] == 0
    assert tracked.scale_[3] > 0 and tracked.basis_[3].abs().max() > 1e-3
