"""The bank: window of whole groups, guard, bad rows, domains, and a state that is read back bit by bit."""

import pytest
import torch

from probe import ProbeBank, ProbeSettings


def test_predictions_come_from_earlier_updates_only(layout, step_rows):
    bank = ProbeBank(ProbeSettings(min_rows=8), layout)
    x_RF, reward_R, group_R = step_rows()
    assert bank.predict(x_RF).value_R.isnan().all()
    first = bank.update(x_RF, reward_R, group_R, step=1)
    assert "correlation" not in first  # there was no prediction to score
    value_R = bank.predict(x_RF).value_R
    assert value_R.isfinite().all() and value_R.min() >= 0 and value_R.max() <= 1
    second = bank.update(*step_rows(seed=1), step=2)
    assert {"correlation", "mae", "brier_skill"} <= set(second)


def test_the_guard_prefers_what_has_the_smaller_error(layout, step_rows):
    informed, noise = (ProbeBank(ProbeSettings(min_rows=8), layout) for _ in range(2))
    for step in range(8):
        x_RF, reward_R, group_R = step_rows(seed=step, noise=0.05)
        good = informed.update(x_RF, reward_R, group_R, step=step)
        # the siblings agree fully, and the states tell nothing: RLOO cannot be beaten
        bad = noise.update(torch.randn(64, 13), reward_R[::2].repeat_interleave(2), group_R, step=step)
    assert good["error_probe"] < good["error_rloo"] and informed.predict(x_RF).weight_R3[:, 0].min() > 0.5
    assert bad["error_rloo"] == 0.0
    torch.testing.assert_close(noise.predict(x_RF).weight_R3, torch.tensor([[0.0, 1.0, 0.0]]).expand(64, 3))


def test_the_probe_finds_the_pass_rate(layout, step_rows):
    bank = ProbeBank(ProbeSettings(), layout)
    for step in range(10):
        metrics = bank.update(*step_rows(prompts=64, seed=step, noise=0.05), step=step)
    assert metrics["correlation"] > 0.4 and metrics["brier_skill"] > 0.1


def test_window_keeps_whole_groups_and_its_limits(layout, step_rows):
    bank = ProbeBank(ProbeSettings(window_rows=100, min_rows=8, max_age=3), layout)
    for step in range(5):
        bank.update(*step_rows(seed=step), step=step)
        window = bank.probes[0].window
        assert len(window) <= 100
        assert (torch.unique(window.group[window.order], return_counts=True)[1] == 2).all()
    assert window.step[window.order].min() > 4 - 3
    assert len(window) == 100


def test_bad_rows_are_left_out_and_counted(layout, step_rows):
    bank = ProbeBank(ProbeSettings(min_rows=8), layout)
    x_RF, reward_R, group_R = step_rows()
    x_RF[0, 0], x_RF[2, 5], reward_R[4], group_R[6] = float("nan"), float("inf"), float("nan"), 99
    metrics = bank.update(x_RF, reward_R, group_R, step=0)
    # row 5 has lost its sibling's reward; rows 6 and 7 are no longer siblings
    assert (metrics["left_out_features"], metrics["left_out_reward"], metrics["left_out_alone"]) == (2, 1, 3)
    assert metrics["window_rows"] == 64 - 6
    value_R = bank.predict(x_RF).value_R
    assert value_R[0].isnan() and value_R[2].isnan() and value_R[1:2].isfinite().all()


def test_empty_step_equal_rewards_and_too_few_rows(layout, step_rows):
    bank = ProbeBank(ProbeSettings(min_rows=8), layout)
    empty = torch.empty(0)
    assert bank.update(torch.empty(0, 13), empty, empty.long(), step=0)["window_rows"] == 0
    assert bank.predict(torch.zeros(1, 13)).constant_R.isnan().all()
    x_RF, _, group_R = step_rows()
    metrics = bank.update(x_RF, torch.ones(64), group_R, step=1)
    assert metrics["error_rloo"] == 0.0
    torch.testing.assert_close(bank.predict(x_RF).value_R, torch.ones(64))
    few = ProbeBank(ProbeSettings(min_rows=100), layout)
    few.update(*step_rows(), step=0)
    assert few.predict(x_RF).value_R.isnan().all()


def test_rewards_outside_the_unit_interval_widen_the_range(layout, step_rows):
    bank = ProbeBank(ProbeSettings(min_rows=8), layout)
    x_RF, reward_R, group_R = step_rows(noise=0.05)
    bank.update(x_RF, reward_R * 10 - 5, group_R, step=0)
    assert bank.predict(x_RF).value_R.min() < -0.5


def test_a_small_domain_borrows_and_a_large_one_stands_alone(layout, step_rows):
    settings = ProbeSettings(min_rows=8, domains={"code": "code*"}, borrow_rows=100)
    bank = ProbeBank(settings, layout)
    for step in range(4):
        x_RF, reward_R, group_R = step_rows(prompts=64, seed=step, noise=0.05)
        domain_R = (group_R >= 2).long()  # four rows of code a step
        metrics = bank.update(x_RF, reward_R, group_R, domain_R, step=step)
    assert (metrics["code/window_rows"], metrics["code/own_share"], metrics["default/own_share"]) == (16, 0.16, 1.0)
    small, alone = bank.probes[0], bank.predict(x_RF, torch.zeros_like(group_R)).value_R
    own_R, shared_R = small.estimator.predict(x_RF), bank.shared.predict(x_RF)
    torch.testing.assert_close(alone, 0.16 * own_R + 0.84 * shared_R)
    fresh_RF, fresh_reward_R, _ = step_rows(prompts=500, seed=99, noise=0.05)
    borrowed = bank.predict(fresh_RF, torch.zeros(1000)).value_R
    own = small.estimator.predict(fresh_RF)
    error_borrowed, error_own = ((v - fresh_reward_R).square().mean() for v in (borrowed, own))
    assert error_borrowed < error_own


def test_a_window_of_its_own_size_per_domain(layout, step_rows):
    settings = ProbeSettings(min_rows=8, domains={"code": "code*"}, window_rows=40, domain_rows={"code": 12})
    bank = ProbeBank(settings, layout)
    for step in range(3):
        x_RF, reward_R, group_R = step_rows(seed=step)
        metrics = bank.update(x_RF, reward_R, group_R, group_R % 2, step=step)
    assert (metrics["code/window_rows"], metrics["default/window_rows"]) == (12, 40)


def test_a_domain_without_rows_waits(layout, step_rows):
    bank = ProbeBank(ProbeSettings(min_rows=8, domains={"code": "code*"}), layout)
    x_RF, reward_R, group_R = step_rows()
    bank.update(x_RF, reward_R, group_R, torch.ones_like(group_R), step=0)
    waiting = bank.predict(x_RF, torch.zeros_like(group_R))
    assert waiting.constant_R.isnan().all()
    assert (waiting.weight_R3 == torch.tensor([0.0, 1.0, 0.0])).all()  # RLOO, until it has rows to be judged on


def test_a_window_that_runs_dry_starts_again(layout, step_rows):
    bank = ProbeBank(ProbeSettings(min_rows=8, max_age=2, exact_features=4, rank=4), layout)
    empty = torch.empty(0, 13), torch.empty(0), torch.empty(0, dtype=torch.int64)
    bank.update(*step_rows(), step=0)
    for step in (1, 2, 3):
        metrics = bank.update(*empty, step=step)
    assert metrics["window_rows"] == 0
    assert bank.predict(step_rows()[0]).weight_R3[0].tolist() == [0.0, 1.0, 0.0]
    bank.update(*step_rows(seed=1), step=4)
    again = ProbeBank(bank.settings, layout)
    again.update(*step_rows(seed=1), step=4)
    torch.testing.assert_close(bank.predict(step_rows()[0]).value_R, again.predict(step_rows()[0]).value_R)


def test_domains_do_not_see_each_other(layout, step_rows):
    settings = ProbeSettings(min_rows=8, domains={"code": "code*"}, borrow_rows=0)
    assert [settings.domain_index(source) for source in ("code_x", "math")] == [0, 1]
    bank = ProbeBank(settings, layout)
    x_RF, reward_R, group_R = step_rows()
    domain_R = group_R % 2
    bank.update(x_RF, reward_R, group_R, domain_R, step=0)
    alone = ProbeBank(ProbeSettings(min_rows=8), layout)
    rows = domain_R == 1
    alone.update(x_RF[rows], reward_R[rows], group_R[rows], step=0)
    torch.testing.assert_close(bank.predict(x_RF, domain_R).value_R[rows], alone.predict(x_RF[rows]).value_R)


def test_order_of_rows_does_not_matter(layout, step_rows):
    x_RF, reward_R, group_R = step_rows()
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    plain, mixed = (ProbeBank(ProbeSettings(min_rows=8), layout) for _ in range(2))
    plain.update(x_RF, reward_R, group_R)
    mixed.update(x_RF[order], reward_R[order], group_R[order])
    torch.testing.assert_close(mixed.predict(x_RF).value_R, plain.predict(x_RF).value_R, rtol=1e-5, atol=1e-5)


def test_rows_of_another_width_are_refused(layout):
    with pytest.raises(ValueError, match="do not fit the layout of 13 features"):
        ProbeBank(ProbeSettings(), layout).predict(torch.zeros(1, 12))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank=0"),
        ({"guard": "on"}, "guard='on'"),
        ({"penalties": (0.0,)}, "penalties"),
        ({"min_rows": 9, "window_rows": 8}, "window_rows=8: want at least min_rows=9"),
        ({"max_age": 0}, "max_age=0"),
        ({"domains": {"default": "*"}}, "default"),
        ({"kind": "forest"}, "kind='forest'"),
        ({"borrow_rows": -1}, "borrow_rows=-1"),
        ({"domain_rows": {"code": 100}}, r"domain_rows.code=100: want a domain that there is \(default\)"),
        ({"domain_rows": {"default": 10}}, "domain_rows.default=10"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        ProbeSettings(**settings)
