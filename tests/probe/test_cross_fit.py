"""Cross-fitted values against refits without the prompt, and the bank that says them."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge

from probe import Crossing, FeatureLayout, ProbeBank, ProbeSettings
from probe.cross_fit import FIRST_PENALTY, left_out_mean, left_out_values
from probe.estimators import make_estimator
from probe.fold_fit import FOLDS
from probe.step import prepare

LAYOUT = FeatureLayout(("prompt", "response", "entropy"), (6, 6, 1))
SMALL = {"min_rows": 8, "exact_features": 4, "rank": 4, "window_rows": 200}


def bank(crossing=None, layout=LAYOUT, **changes):
    crossing = crossing or Crossing("energy", None, "fresh", ("prompt",))
    return ProbeBank(ProbeSettings(**SMALL | changes), layout, crossing=crossing)


@pytest.fixture
def rows(step_rows):
    """Rows of a step and their weights: failures weigh more. Prompt states are the prompt's own."""

    def make(seed=0, prompts=32):
        x_RF, reward_R, group_R = step_rows(prompts=prompts, seed=seed)
        x_RF[1::2, :6] = x_RF[::2, :6]
        spread_R = torch.rand(2 * prompts, generator=torch.Generator().manual_seed(seed))
        return x_RF, reward_R, group_R, (0.1 + spread_R) * torch.where(reward_R > 0, 1.0, 9.0)

    return make


@pytest.mark.parametrize("columns", [4, 60])  # fewer and more than rows
@pytest.mark.parametrize("size", [1, 2, 3])
def test_left_out_values_are_those_of_refits(columns, size):
    generator = torch.Generator().manual_seed(0)
    rows, earlier = 6 * size, 11
    a = torch.randn(rows + earlier, columns, generator=generator).double() + 2
    y, weight = (torch.rand(rows + earlier, generator=generator).double() for _ in range(2))
    weight[1], y[1] = 0.0, float("nan")  # not in the fit, but it gets its value
    group_R = torch.arange(rows) // size
    strength_R = 0.3 + group_R.double()  # of each prompt's own
    found_R = left_out_values(
        (a[:rows], y[:rows], weight[:rows]), group_R, (a[rows:], y[rows:], weight[rows:]), strength_R
    )
    for prompt in range(6):
        out = torch.cat([group_R == prompt, torch.zeros(earlier, dtype=torch.bool)])
        fit = ~out & (weight > 0)
        peer = SklearnRidge(alpha=0.3 + prompt).fit(a[fit].numpy(), y[fit].numpy(), sample_weight=weight[fit].numpy())
        assert found_R[group_R == prompt].numpy() == pytest.approx(peer.predict(a[out].numpy()), rel=1e-9)


def test_one_prompt_alone_has_no_value():
    a, group_R = torch.randn(3, 2).double(), torch.zeros(3, dtype=torch.int64)
    nothing = (torch.empty(0, 2).double(), torch.empty(0), torch.empty(0))
    step = (a, torch.rand(3), torch.ones(3))
    assert left_out_values(step, group_R, nothing, torch.ones(3)).isnan().all()
    assert left_out_mean(torch.rand(3), torch.ones(3), group_R, *nothing[1:]).isnan().all()


@pytest.mark.parametrize("weighted", ["link", "fit"])
@pytest.mark.parametrize("kind", ["subspace_ridge", "ridge", "pca_ridge"])
def test_values_are_those_of_a_fit_without_the_prompt_in_the_form_of_earlier_steps(kind, weighted, rows):
    """Row by row, with scikit-learn, and through the link."""
    learned = bank(kind=kind, penalties=(0.1,), weighted=weighted)
    for step in range(3):
        x_RF, reward_R, group_R, weight_R = rows(step)
        learned.update(x_RF, reward_R, group_R, step=step, weight_R=weight_R)
    x_RF, reward_R, group_R, weight_R = rows(9)
    weight_R[4], reward_R[6] = 0.0, float("nan")  # a row that counts nothing, and one whose verifier failed
    said = learned.cross_fit(x_RF, reward_R, group_R, weight_R=weight_R)
    probe, new = learned.probes[0], prepare(x_RF, reward_R, group_R, weight_R, False)
    window, order, form = probe.window, probe.window.order, probe.estimator
    assert new.good_R.sum() == 64 - 3  # row 5 has no sibling that counts, rows 6 and 7 none with a reward
    unit = window.target_weight[order].double().mean()
    a = torch.cat([form.coordinates(window.feature[order]), form.coordinates(x_RF[new.good_R])]).double().numpy()
    y = torch.cat([window.target[order], new.target_R[new.good_R]]).double().numpy()
    w = torch.cat([window.target_weight[order], new.target_weight_R[new.good_R]]).double().numpy()
    if weighted == "link":
        unit, w = 1.0, np.ones_like(w)
        assert form.slope_ > 0
    group = torch.cat([torch.full((len(order),), -1), group_R[new.good_R]]).numpy()
    assert form.strength_ > 0 and said.value_R.isfinite().all()
    for row in range(0, 64, 7):
        inside = group != int(group_R[row])
        peer = SklearnRidge(alpha=form.strength_ * float(unit)).fit(a[inside], y[inside], sample_weight=w[inside])
        linear = torch.from_numpy(peer.predict(form.coordinates(x_RF[row : row + 1]).double().numpy()))
        expected = form.linked(linear).clamp(form.low_, form.high_)
        assert float(said.value_R[row]) == pytest.approx(float(expected), abs=2e-5)
    rewarded = new.good_R & (group_R != 0)
    count = torch.cat([window.weight[order], weight_R[rewarded]]).double()
    constant = (count @ torch.cat([window.reward[order], reward_R[rewarded]]).double()) / count.sum()
    assert float(said.constant_R[0]) == pytest.approx(float(constant), rel=1e-6)


def test_the_first_step_stands_on_prompt_states_with_a_stiff_penalty(rows):
    x_RF, reward_R, group_R, weight_R = rows()
    said = bank().cross_fit(x_RF, reward_R, group_R, weight_R=weight_R)
    z = x_RF[:, :6].double()
    z = ((z - z.mean(0)) / z.std(0, correction=0)).numpy()
    new = prepare(x_RF, reward_R, group_R, weight_R, False)
    y, w = new.target_R.double().numpy(), new.target_weight_R.double().numpy()
    for row in (0, 31, 63):
        inside = (group_R != group_R[row]).numpy()
        alpha = FIRST_PENALTY * 64 * w[inside].mean()
        peer = SklearnRidge(alpha=alpha).fit(z[inside], y[inside], sample_weight=w[inside])
        assert float(said.value_R[row]) == pytest.approx(float(peer.predict(z[row : row + 1])[0]), abs=1e-5)
    # what the responses say does not matter yet
    x_RF[:, 6:] = 7.0
    again = bank().cross_fit(x_RF, reward_R, group_R, weight_R=weight_R)
    torch.testing.assert_close(again.value_R, said.value_R)


def test_nothing_is_learned_by_saying(rows):
    first, second = bank(), bank()
    for step in range(3):
        x_RF, reward_R, group_R, weight_R = rows(step)
        for _ in range(3):
            said = first.cross_fit(x_RF, reward_R, group_R, weight_R=weight_R)
        metrics = [
            first.update(x_RF, reward_R, group_R, step=step, weight_R=weight_R, said=said),
            second.update(x_RF, reward_R, group_R, step=step, weight_R=weight_R),
        ]
        for name, value in metrics[0].items():
            assert "time" in name or metrics[1][name] == pytest.approx(value, nan_ok=True), name
        assert "mae" in metrics[0]  # what was said is honest from the first step on, and scored
    x_RF = rows(5)[0]
    assert torch.equal(first.predict(x_RF).value_R, second.predict(x_RF).value_R)


def test_order_of_rows_does_not_matter(rows):
    x_RF, reward_R, group_R, weight_R = rows(5)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    for earlier in (0, 2):
        learned = bank(Crossing("energy", 0.9, "fresh", ("prompt",)))
        for step in range(earlier):
            before = rows(step)
            learned.update(*before[:3], step=step, weight_R=before[3])
        plain = learned.cross_fit(x_RF, reward_R, group_R, weight_R=weight_R).table_R6
        mixed = learned.cross_fit(x_RF[order], reward_R[order], group_R[order], weight_R=weight_R[order]).table_R6
        torch.testing.assert_close(mixed, plain[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["subspace_ridge", "ridge", "pca_ridge"])
def test_it_goes_on_from_disk_bit_by_bit(kind, rows, tmp_path):
    crossing = Crossing("energy", 0.9, "fresh", ("prompt",))
    config = {"kind": kind, "domains": {"code": "code*"}, "borrow_rows": 30}
    first, second = bank(crossing, **config), bank(crossing, **config)
    for step in range(6):
        x_RF, reward_R, group_R, weight_R = rows(step)
        domain_R = group_R % 4 // 3
        said = first.cross_fit(x_RF, reward_R, group_R, domain_R, weight_R)
        assert said.value_R.isfinite().all()
        if step > 3:
            again = second.cross_fit(x_RF, reward_R, group_R, domain_R, weight_R)
            assert torch.equal(again.table_R6, said.table_R6)
            second.update(x_RF, reward_R, group_R, domain_R, step, weight_R)
        first.update(x_RF, reward_R, group_R, domain_R, step, weight_R)
        if step == 3:
            first.save(tmp_path / "probe")
            second.load(tmp_path / "probe")


def test_a_small_domain_borrows_a_cross_fitted_value(rows):
    """Half its own and half the shared one's; both without the row's prompt."""
    learned = bank(domains={"code": "code*"}, borrow_rows=40, min_rows=4)
    for step in range(4):
        x_RF, reward_R, group_R, weight_R = rows(step)
        learned.update(x_RF, reward_R, group_R, (group_R >= 2).long(), step, weight_R)
    assert learned.probes[0].own_share == 16 / 40
    x_RF, reward_R, group_R, weight_R = rows(9)
    domain_R = (group_R >= 2).long()
    said = learned.cross_fit(x_RF, reward_R, group_R, domain_R, weight_R)
    changed_R = reward_R.clone()
    changed_R[:2] = 1 - changed_R[:2]  # prompt 0 of the small domain
    again = learned.cross_fit(x_RF, changed_R, group_R, domain_R, weight_R)
    torch.testing.assert_close(again.value_R[:2], said.value_R[:2], rtol=0, atol=1e-6)
    assert (again.value_R[2:4] - said.value_R[2:4]).abs().min() > 1e-4
    # rows of the large domain do not see it
    assert torch.equal(again.value_R[4:], said.value_R[4:])
    own_R, _ = learned.probes[0].cross_fit(prepare(x_RF[:4], reward_R[:4], group_R[:4], weight_R[:4], False), None)
    assert (own_R - said.value_R[:4]).abs().max() > 1e-3


def test_it_is_better_than_the_lagged_fit_while_the_policy_improves(rows):
    """Rewards rise from step to step: what was fitted earlier says too little."""
    generator = torch.Generator().manual_seed(0)
    fresh, late = [], []
    learned = bank()
    for step in range(8):
        x_RF, _, group_R, _ = rows(step, prompts=64)
        rate_R = torch.full((128,), 0.1 * (step + 1))
        reward_R = (torch.rand(128, generator=generator) < rate_R).float()
        weight_R = torch.ones(128)
        if step > 1:
            said = learned.cross_fit(x_RF, reward_R, group_R, weight_R=weight_R)
            fresh.append(float((said.value_R - rate_R).mean()))
            late.append(float((learned.predict(x_RF).value_R - rate_R).mean()))
        learned.update(x_RF, reward_R, group_R, step=step, weight_R=weight_R)
    assert np.mean(late) < 1.4 * np.mean(fresh) < 0


def test_weights_are_capped_by_what_earlier_rows_weighed(rows):
    learned = bank(Crossing("energy", 0.5, "lagged", ()))
    x_RF, reward_R, group_R, weight_R = rows()
    for step, scale in enumerate([1.0, 100.0, 100.0, 100.0]):
        cap = learned.probes[0].cap(0.5)
        said = learned.predict(x_RF, weight_R=scale * weight_R)
        torch.testing.assert_close(said.row_weight_R, (scale * weight_R).clamp(max=cap))
        learned.update(x_RF, reward_R, group_R, step=step, weight_R=scale * weight_R)
    window = learned.probes[0].window
    weight_N, step_N = window.weight[window.order], window.step[window.order]
    torch.testing.assert_close(weight_N[step_N == 1], (100 * weight_R).clamp(max=float(weight_R.quantile(0.5))))
    # what was cut does not hold the cap down for ever
    assert weight_N[step_N == 3].max() > 20 * weight_N[step_N == 1].max()
    assert bank(Crossing("energy", 0.5)).probes[0].cap(0.5) == float("inf")  # nothing earlier: no cap
    # a weight that is not finite is no heavy one
    weight_R[3] = float("inf")
    assert learned.update(x_RF, reward_R, group_R, step=5, weight_R=weight_R)["left_out_reward"] == 1


def test_the_first_updates_can_be_rloos(rows):
    learned = bank(Crossing("uniform", None, "lagged", ()), min_updates=2, guard="off")
    for step in range(3):
        x_RF, reward_R, group_R, _ = rows(step)
        expected = [0.0, 1.0, 0.0] if step < 2 else [1.0, 0.0, 0.0]
        assert learned.predict(x_RF).weight_R3.tolist() == [expected] * 64
        learned.update(x_RF, reward_R, group_R, step=step)


@pytest.mark.parametrize("kind", ["logistic", "mlp"])
def test_folds_say_what_fits_without_them_say(rows, kind):
    learned = bank(kind=kind)
    for step in range(2):
        x_RF, reward_R, group_R, weight_R = rows(step)
        learned.update(x_RF, reward_R, group_R, step=step, weight_R=weight_R)
    x_RF, reward_R, group_R, weight_R = rows(2)
    x_RF[5, 0] = float("nan")  # its sibling is alone then
    said = learned.cross_fit(x_RF, reward_R, group_R, weight_R=weight_R)
    assert said.value_R.isnan().nonzero().flatten().tolist() == [5]
    step = prepare(x_RF, reward_R, group_R, said.row_weight_R, False)
    window = learned.probes[0].window
    out_R = torch.unique(group_R, return_inverse=True)[1] % FOLDS == 1
    inside_R = ~out_R & step.good_R
    columns = zip((x_RF, step.target_R, group_R + 10**6, step.target_weight_R),
                  (window.feature, window.target, window.group, window.target_weight), strict=True)  # fmt: skip
    joined = [torch.cat([now[inside_R], before[window.order]]) for now, before in columns]
    expected_R = make_estimator(learned.settings, learned.layout).fit(*joined).predict(x_RF[out_R])
    torch.testing.assert_close(said.value_R[out_R], expected_R, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_a_state_of_other_weights_is_refused(rows, tmp_path):
    x_RF, reward_R, group_R, weight_R = rows()
    learned = bank()
    learned.update(x_RF, reward_R, group_R, weight_R=weight_R)
    learned.save(tmp_path / "probe")
    with pytest.raises(ValueError, match="crossing.weights: this run uniform, checkpoint energy"):
        bank(Crossing("uniform", None, "fresh", ("prompt",))).load(tmp_path / "probe")
