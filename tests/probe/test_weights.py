"""Weights of rows: like rows that are there several times, or not at all; in every place that judges errors."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.preprocessing import StandardScaler

from probe import FeatureLayout, ProbeBank, ProbeSettings
from probe.estimators import PCARidge, Ridge, SubspaceRidge, make_estimator
from probe.estimators.linear import fit_sigmoid
from probe.estimators.logistic import Logistic
from probe.guard import judge
from probe.metrics import advantage_variance, brier_skill, calibration_curve, mae, pearson, prediction_scores, rmse
from probe.pairing import sibling_mean
from probe.settings import KINDS
from probe.window import SlidingWindow

LAYOUT = FeatureLayout(("state", "entropy"), (12, 1))


def make(kind, **changes):
    settings = {"kind": kind, "exact_features": 4, "rank": 5, "weighted": "fit"}
    return make_estimator(ProbeSettings(**settings | changes), LAYOUT)


def rows(count=160, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rate_N = torch.rand(count // 2, generator=generator).repeat_interleave(2)
    x_NF = 0.5 * torch.randn(count, 13, generator=generator)
    x_NF[:, 2] += 3 * rate_N
    y_N = (torch.rand(count, generator=generator) < rate_N).float()
    weight_N = torch.randint(1, 5, (count,), generator=generator).float()
    return x_NF, y_N, torch.arange(count) // 2, weight_N


def repeated(weight_N, *columns):
    times = weight_N.long()
    return [column.repeat_interleave(times, dim=0) for column in columns]


def firsts(weight_N):
    """Where each row's first copy stands among the repeated ones."""
    times = weight_N.long()
    return times.cumsum(0) - times


WITHOUT_LINK = {
    "ridge": lambda: Ridge(LAYOUT, link="clip"),
    "subspace_ridge": lambda: SubspaceRidge(LAYOUT, rank=5, exact_features=4, link="clip"),
    "logistic": lambda: make("logistic"),
}


@pytest.mark.parametrize("count", [160, 10])  # more rows than features, and fewer: primal and dual
@pytest.mark.parametrize("kind", WITHOUT_LINK)
def test_a_whole_weight_is_as_many_rows_of_the_prompt(kind, count):
    x_NF, y_N, group_N, weight_N = rows(count)
    weighted = WITHOUT_LINK[kind]().fit(x_NF, y_N, group_N, weight_N)
    copied = WITHOUT_LINK[kind]().fit(*repeated(weight_N, x_NF, y_N, group_N))
    fresh_NF = rows(100, seed=1)[0]
    torch.testing.assert_close(weighted.predict(fresh_NF), copied.predict(fresh_NF), atol=1e-5, rtol=0)
    torch.testing.assert_close(weighted.left_out_, copied.left_out_[firsts(weight_N)], atol=1e-5, rtol=0)
    assert weighted.penalty_ == copied.penalty_
    plain = WITHOUT_LINK[kind]().fit(x_NF, y_N, group_N)
    assert (plain.predict(fresh_NF) - weighted.predict(fresh_NF)).abs().max() > 0.01  # weights matter


@pytest.mark.parametrize(
    ("kind", "atol"), [("subspace_ridge", 1e-4), ("ridge", 1e-4), ("mlp", 1e-2), ("ensemble", 1e-2)]
)
def test_so_nearly_where_something_does_not_grow_with_the_rows(kind, atol):
    """Platt's scaling holds on to a little; Adam's rounding grows."""
    x_NF, y_N, group_N, weight_N = rows()
    weighted = make(kind).fit(x_NF, y_N, group_N, weight_N)
    copied = make(kind).fit(*repeated(weight_N, x_NF, y_N, group_N))
    fresh_NF = rows(100, seed=1)[0]
    torch.testing.assert_close(weighted.predict(fresh_NF), copied.predict(fresh_NF), atol=atol, rtol=0)
    plain = make(kind).fit(x_NF, y_N, group_N)
    assert (plain.predict(fresh_NF) - weighted.predict(fresh_NF)).abs().max() > 3 * atol


def test_penalties_per_block_are_chosen_by_weighted_errors():
    x_NF, y_N, group_N, weight_N = rows()
    weighted = Ridge(LAYOUT, per_block=True).fit(x_NF, y_N, group_N, weight_N)
    copied = Ridge(LAYOUT, per_block=True).fit(*repeated(weight_N, x_NF, y_N, group_N))
    torch.testing.assert_close(weighted.weight_, copied.weight_, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", [1.0, 0.3, 1e6])
def test_equal_weights_are_none(kind, weight):
    x_NF, y_N, group_N, _ = rows(60)
    plain = make(kind).fit(x_NF, y_N, group_N)
    weighted = make(kind).fit(x_NF, y_N, group_N, torch.full((60,), weight))
    assert torch.equal(plain.predict(x_NF), weighted.predict(x_NF))
    if plain.left_out_ is not None:
        assert torch.equal(plain.left_out_, weighted.left_out_)


@pytest.mark.parametrize("kind", KINDS)
def test_only_ratios_matter(kind):
    x_NF, y_N, group_N, weight_N = rows(60)
    first, second = (make(kind).fit(x_NF, y_N, group_N, scale * weight_N) for scale in (1.0, 1024.0))
    torch.testing.assert_close(first.predict(x_NF), second.predict(x_NF), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("equal", [True, False])
def test_a_row_of_weight_zero_is_left_out(kind, equal):
    x_NF, y_N, group_N, weight_N = rows(60)
    weight_N = torch.ones(60) if equal else weight_N
    weight_N[[0, 7, 8, 9, 31]] = 0.0
    x_NF[9], y_N[31] = 1e6, 50.0  # of no importance, the range of rewards included
    kept = weight_N > 0
    weighted = make(kind).fit(x_NF, y_N, group_N, weight_N)
    without = make(kind).fit(x_NF[kept], y_N[kept], group_N[kept], None if equal else weight_N[kept])
    assert torch.equal(weighted.predict(x_NF), without.predict(x_NF)) and weighted.high_ == 1.0
    if without.left_out_ is not None:
        assert torch.equal(weighted.left_out_[kept], without.left_out_) and weighted.left_out_[~kept].isnan().all()


@pytest.mark.parametrize("count", [60, 10])
@pytest.mark.parametrize("estimator", [Ridge, SubspaceRidge])
def test_ridge_agrees_with_scikit_learn(estimator, count):
    x_NF, y_N, group_N, weight_N = rows(count)
    ridge = estimator(LAYOUT, penalties=(0.3,), link="clip").fit(x_NF, y_N, group_N, weight_N)
    ridge.low_, ridge.high_ = -math.inf, math.inf
    x, y, w = (t.double().numpy() for t in (x_NF, y_N, weight_N * count / weight_N.sum()))
    z = StandardScaler().fit(x, sample_weight=w).transform(x)
    alpha = 0.3 * (w[:, None] * z**2).sum() / min(13, count - 1)  # the grid's unit: the mean squared singular value
    peer = SklearnRidge(alpha=alpha).fit(z, y, sample_weight=w)
    torch.testing.assert_close(ridge.predict(x_NF).double(), torch.from_numpy(peer.predict(z)), atol=1e-5, rtol=0)
    for prompt in (0, 3):  # without the prompt; standardisation and unit are the whole fit's
        inside = (group_N != prompt).numpy()
        again = SklearnRidge(alpha=alpha).fit(z[inside], y[inside], sample_weight=w[inside]).predict(z[~inside])
        torch.testing.assert_close(
            ridge.left_out_[~torch.from_numpy(inside)], torch.from_numpy(again), atol=1e-5, rtol=0
        )


def test_the_papers_form_agrees_with_scikit_learn():
    x_NF, y_N, group_N, weight_N = rows()
    ridge = PCARidge(LAYOUT, components=(12,), alpha=7.0).fit(x_NF, y_N, group_N, weight_N)
    ridge.low_, ridge.high_ = -math.inf, math.inf
    x, y, w = (t.double().numpy() for t in (x_NF, y_N, weight_N / weight_N.mean()))
    z = x - (w[:, None] * x).sum(0) / w.sum()
    _, vectors = np.linalg.eigh((w[:, None] * z[:, :12]).T @ z[:, :12])  # weighted PCA, all directions
    a = StandardScaler().fit_transform(np.concatenate([z[:, :12] @ vectors, z[:, 12:]], axis=1), sample_weight=w)
    peer = SklearnRidge(alpha=7.0).fit(a, y, sample_weight=w)
    torch.testing.assert_close(ridge.predict(x_NF).double(), torch.from_numpy(peer.predict(a)), atol=1e-4, rtol=0)


def test_logistic_agrees_with_scikit_learn():
    x_NF, y_N, group_N, weight_N = rows(400)
    logistic = Logistic(LAYOUT, penalties=(1e-3,)).fit(x_NF, y_N, group_N, weight_N)
    x, w = x_NF.double().numpy(), (weight_N / weight_N.mean()).double().numpy()
    z = StandardScaler().fit(x, sample_weight=w).transform(x)
    unit = (w[:, None] * z**2).sum() / 13 / 4
    peer = LogisticRegression(C=1 / (1e-3 * unit), tol=1e-10, max_iter=1000).fit(z, y_N.numpy(), sample_weight=w)
    expected = torch.from_numpy(peer.predict_proba(z)[:, 1])
    torch.testing.assert_close(logistic.predict(x_NF).double(), expected, atol=3e-3, rtol=0)  # its targets are 1e-3..


def test_weights_that_cannot_be_are_refused():
    x_NF, y_N, group_N, weight_N = rows(20)
    for wrong in (weight_N[:-1], -weight_N, 0 * weight_N, weight_N * math.nan, weight_N / 0, weight_N[:, None]):
        with pytest.raises(ValueError, match="want a finite weight for each row, none negative and not all zero"):
            make("ridge").fit(x_NF, y_N, group_N, wrong)


def test_the_sigmoid_is_fitted_with_weights():
    generator = torch.Generator().manual_seed(0)
    f_N = torch.randn(200, generator=generator).double()
    p_N = (torch.rand(200, generator=generator) < (2 * f_N + 1).sigmoid()).double()
    weight_N = torch.randint(1, 5, (200,), generator=generator).double()
    copied = fit_sigmoid(*repeated(weight_N, f_N, p_N))
    assert fit_sigmoid(f_N, p_N, weight_N) == pytest.approx(copied, rel=1e-6)
    assert fit_sigmoid(f_N, p_N) != pytest.approx(copied, rel=1e-2)


LINKED = ("subspace_ridge", "ridge", "pca_ridge", "logistic")


def uneven(prompts=4000, seed=0):
    """Rollouts of two rewards, failures of which weigh heavily and unequally, the more the rarer they are; and what the
    weighted mean reward of each truly is."""
    generator = torch.Generator().manual_seed(seed)
    x_NF = torch.randn(prompts, 13, generator=generator)
    rate_N = (1.5 * x_NF[:, 2] + 0.5).sigmoid()
    y_N = (torch.rand(prompts, generator=generator) < rate_N).float()
    heavy_N = torch.randn(prompts, generator=generator).mul(1.5).exp() / math.exp(1.5**2 / 2)  # mean 1
    weight_N = heavy_N * torch.where(y_N > 0, 1.0, 5.0)
    return x_NF, y_N, torch.arange(prompts), weight_N, rate_N / (rate_N + 5 * (1 - rate_N))


@pytest.mark.parametrize("kind", LINKED)
def test_weights_in_the_link_alone_tell_the_weighted_mean_from_fewer_rows(kind):
    fresh_NF, *_, best_N = uneven(seed=99)
    error = {"link": [], "fit": []}
    for seed in range(3):
        x_NF, y_N, group_N, weight_N, _ = uneven(600, seed)
        for weighted, errors in error.items():
            fitted = make(kind, exact_features=100, weighted=weighted).fit(x_NF, y_N, group_N, weight_N)
            errors.append(float((fitted.predict(fresh_NF) - best_N).square().mean() / best_N.var()))
    assert all(link < fit for link, fit in zip(error["link"], error["fit"], strict=True))
    assert sum(error["link"]) < 0.6 * sum(error["fit"]) and max(error["link"]) < 0.2


@pytest.mark.parametrize("kind", LINKED)
def test_without_weights_there_is_no_difference(kind):
    x_NF, y_N, group_N, _ = rows()
    fitted = [make(kind, weighted=weighted).fit(x_NF, y_N, group_N) for weighted in ("link", "fit")]
    torch.testing.assert_close(fitted[0].predict(x_NF), fitted[1].predict(x_NF), rtol=0, atol=0)


@pytest.mark.parametrize("kind", LINKED)
def test_where_nothing_is_learned_the_weighted_mean_is_said(kind):
    generator = torch.Generator().manual_seed(0)
    y_N = (torch.rand(400, generator=generator) < 0.5).float()
    weight_N = torch.where(y_N > 0, 1.0, 9.0) * torch.rand(400, generator=generator).add(0.1)
    x_NF = torch.ones(400, 13)
    fitted = make(kind, weighted="link").fit(x_NF, y_N, torch.arange(400), weight_N)
    expected = float((weight_N * y_N).sum() / weight_N.sum())
    assert fitted.predict(x_NF[:3]).tolist() == pytest.approx([expected] * 3, abs=1e-3)
    # exactly one half, whose logit is 0, is a value and no missing link
    columns = torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.arange(4), torch.tensor([1.0, 2.0, 2.0, 1.0])
    half = make(kind, weighted="link").fit(x_NF[:4], *columns)
    assert half.predict(x_NF[:1]).item() == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("weighted", ["fit", "link"])
def test_a_followed_window_is_the_weighted_fit(weighted):
    """With and without the subspace, while rows come and go."""
    for exact_features in (4, 100):
        settings = ProbeSettings(exact_features=exact_features, rank=12, weighted=weighted)
        window, follower = SlidingWindow(80, 13), make_estimator(settings, LAYOUT)
        follower.refresh_share = 0.5  # half of the window goes in a step: at its pace the form is the window's own
        for step in range(6):
            x_NF, y_N, group_N, weight_N = rows(40, seed=step)
            change = window.push(x_NF, y_N, y_N, y_N, group_N, step, target_weight_R=weight_N)
            follower.follow(window, change)
        slots = window.order
        assert len(window.target_weight[slots].unique()) == 4
        columns = (window.feature, window.target, window.group, window.target_weight)
        fresh = make_estimator(settings, LAYOUT).fit(*(column[slots] for column in columns))
        fresh_NF = rows(100, seed=9)[0]
        torch.testing.assert_close(follower.predict(fresh_NF), fresh.predict(fresh_NF), atol=0.01, rtol=0)
        plain = make_estimator(settings, LAYOUT).fit(*(column[slots] for column in columns[:3]))
        assert (plain.predict(fresh_NF) - fresh.predict(fresh_NF)).abs().max() > 0.02


def test_sibling_means_with_weights():
    x_R, group_R = torch.tensor([1.0, 2.0, 4.0, 8.0, math.nan, 3.0]), torch.tensor([0, 0, 0, 1, 1, 2])
    weight_R = torch.tensor([1.0, 3.0, 0.0, 1.0, 5.0, 1.0])
    nan = math.nan
    expected = torch.tensor([2.0, 1.0, 1.75, nan, 8.0, nan])
    torch.testing.assert_close(sibling_mean(x_R, group_R, weight_R), expected, equal_nan=True)
    ones = torch.ones(6)
    torch.testing.assert_close(sibling_mean(x_R, group_R, ones), sibling_mean(x_R, group_R), equal_nan=True)
    # nobody else counts: no rounding passes for somebody
    assert sibling_mean(torch.tensor([0.1, 0.7]), torch.zeros(2), torch.tensor([0.1, 0.0]))[0].isnan()


@pytest.mark.parametrize("mode", ["combine", "switch", "off"])
def test_the_guard_weighs_errors_and_the_constant(mode):
    """Against the definitions, row by row."""
    _, _, group_N, weight_N = rows(40)
    generator = torch.Generator().manual_seed(1)
    reward_N, value_N = torch.rand(2, 40, generator=generator).double()
    weight_N = weight_N.double()
    weight_N[3] = 0.0
    found = judge(mode, value_N, reward_N, group_N, weight_N)
    constant = [
        float((weight_N * reward_N)[group_N != g].sum() / weight_N[group_N != g].sum()) for g in group_N.tolist()
    ]
    rloo_N = sibling_mean(reward_N, group_N, weight_N)
    columns = torch.stack([sibling_mean(value_N, group_N), rloo_N, torch.tensor(constant)], 1).double()
    # the sibling of the row that counts nothing has no RLOO baseline, and a probe's like any other row
    assert rloo_N.isnan().nonzero().flatten().tolist() == [2]
    kept_N = torch.ones(40, dtype=torch.bool)
    kept_N[2] = False
    square_NE = weight_N[:, None] * (reward_N[:, None] - columns).square()
    error_E = square_NE.nansum(0) / torch.stack([weight_N.sum(), weight_N[kept_N].sum(), weight_N.sum()])
    assert found.error_E == pytest.approx(error_E.tolist(), rel=1e-6)
    if mode == "switch":
        assert found.weight_E[int(error_E.argmin())] == 1.0
    if mode == "combine":

        def error(mix_E):
            square_N = (reward_N - columns @ torch.as_tensor(mix_E).double()).square()
            return float((weight_N * square_N)[kept_N].sum())

        best = error(found.weight_E)
        for _ in range(200):
            other = torch.rand(3, generator=generator).double()
            assert error(other / other.sum()) >= best - 1e-9
    torch.testing.assert_close(
        torch.tensor(judge(mode, value_N, reward_N, group_N, torch.full((40,), 3.0).double()).error_E),
        torch.tensor(judge(mode, value_N, reward_N, group_N).error_E),
    )


def test_metrics_of_whole_weights_are_those_of_repeated_rows():
    _, target_R, group_R, weight_R = rows(40)
    value_R, constant_R = torch.rand(2, 40, generator=torch.Generator().manual_seed(2))
    copies = repeated(weight_R, value_R, target_R, constant_R, group_R)
    for metric in (pearson, mae, rmse):
        assert metric(value_R, target_R, weight_R) == pytest.approx(metric(*copies[:2]), rel=1e-6)
    expected = prediction_scores(*copies[:3])
    assert prediction_scores(value_R, target_R, constant_R, weight_R) == pytest.approx(expected, rel=1e-6)
    assert brier_skill(value_R, target_R, constant_R, weight_R) == pytest.approx(expected["brier_skill"], rel=1e-6)
    one, many = (
        calibration_curve(value_R, target_R, 1, group_R, weight_R),
        calibration_curve(copies[0], copies[1], 1, copies[3]),
    )
    for name in ("value_B", "target_B", "error_B"):
        torch.testing.assert_close(getattr(one, name), getattr(many, name))
    reward_R = torch.rand(40, generator=torch.Generator().manual_seed(3))
    found = advantage_variance(value_R, reward_R, group_R, target_R, weight_R)
    w = weight_R.double()
    baselines = {
        "rloo": sibling_mean(reward_R, group_R),
        "oracle": target_R,
        "constant": (w * reward_R).sum() / w.sum(),
    }
    for name, baseline in baselines.items():
        expected = float((w * (reward_R - baseline).double().square()).sum() / w.sum())
        assert found[name] == pytest.approx(expected, rel=1e-5)


def bank(**changes):
    return ProbeBank(ProbeSettings(**{"min_rows": 8, "exact_features": 4, "rank": 4} | changes), LAYOUT)


def test_a_bank_with_equal_weights_says_what_it_says_without():
    plain, weighted = (bank(domains={"a": "a*"}, borrow_rows=60) for _ in range(2))
    for step in range(4):
        x_RF, reward_R, group_R, _ = rows(40, seed=step)
        domain_R = group_R % 4 // 3
        said = [b.predict(x_RF, domain_R) for b in (plain, weighted)]
        for name in ("value_R", "weight_R3", "constant_R"):
            assert torch.equal(getattr(said[0], name).nan_to_num(7), getattr(said[1], name).nan_to_num(7))
        metrics = [plain.update(x_RF, reward_R, group_R, domain_R, step)]
        metrics.append(weighted.update(x_RF, reward_R, group_R, domain_R, step, torch.full((40,), 2.5)))
        for name, value in metrics[0].items():
            assert "time" in name or metrics[1][name] == pytest.approx(value, rel=1e-5, nan_ok=True), name


def test_constant_and_probe_tend_to_the_weighted_mean():
    """Failures carry nine times the energy of successes: E[w r] / E[w] is far below the pass rate."""
    weighted, plain = bank(), bank()
    for step in range(20):
        x_RF, reward_R, group_R, _ = rows(200, seed=step)
        weighted.update(x_RF, reward_R, group_R, step=step, weight_R=torch.where(reward_R > 0, 1.0, 9.0))
        plain.update(x_RF, reward_R, group_R, step=step)
    window = weighted.probes[0].window
    order = window.order
    reward_N, weight_N = window.reward[order], window.weight[order]
    x_RF, reward_R, group_R, _ = rows(4000, seed=99)
    weight_R = torch.where(reward_R > 0, 1.0, 9.0)
    said, mean = weighted.predict(x_RF), (weight_N * reward_N).sum() / weight_N.sum()
    torch.testing.assert_close(said.constant_R, mean.expand(4000))
    assert reward_N.mean() > 0.45 and mean < 0.12
    curve = calibration_curve(said.value_R, reward_R, 5, group_R, weight_R)
    assert ((curve.value_B - curve.target_B).abs() < 0.04 + 2 * curve.error_B).all()
    errors = [rmse(values_R, reward_R, weight_R) for values_R in (said.value_R, said.constant_R)]
    assert errors[0] < 0.99 * errors[1] < 0.8 * rmse(plain.predict(x_RF).value_R, reward_R, weight_R)
    verdict = weighted.probes[0].verdict
    assert verdict.error_E[0] < verdict.error_E[2] < verdict.error_E[1]
    assert verdict.weight_E[0] > 0.5 and verdict.weight_E[1] < 0.2


def test_a_target_is_the_siblings_weighted_mean_and_weighs_as_they_do():
    group_R = torch.tensor([0, 0, 0, 1, 1, 2])
    reward_R = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    weight_R = torch.tensor([1.0, 3.0, 2.0, 0.0, 4.0, 5.0])
    learned = bank()
    metrics = learned.update(torch.randn(6, 13), reward_R, group_R, weight_R=weight_R)
    window = learned.probes[0].window
    order = window.order
    # row 4 has a sibling of no weight, row 5 none
    assert metrics["left_out_alone"] == 2 and len(window) == 4
    torch.testing.assert_close(window.target[order], torch.tensor([2 / 5, 1.0, 1 / 4, 0.0]))
    torch.testing.assert_close(window.target_weight[order], torch.tensor([2.5, 1.5, 2.0, 4.0]))
    torch.testing.assert_close(window.weight[order], weight_R[:4])


def test_rows_without_a_finite_weight_are_left_out_and_counted():
    x_RF, reward_R, group_R, weight_R = rows(40)
    weight_R[0], weight_R[2], weight_R[4] = math.nan, math.inf, -1.0
    metrics = bank().update(x_RF, reward_R, group_R, weight_R=weight_R)
    assert (metrics["left_out_reward"], metrics["left_out_alone"], metrics["window_rows"]) == (3, 3, 34)


def test_a_single_rollouts_own_weight_counts():
    x_RF, reward_R, _, weight_R = rows(40)
    alone = ProbeBank(ProbeSettings(min_rows=8), LAYOUT, self_target=True)
    weight_R[3] = 0.0
    metrics = alone.update(x_RF, reward_R, torch.arange(40), weight_R=weight_R)
    window = alone.probes[0].window
    assert metrics["window_rows"] == 39 and torch.equal(window.target_weight[window.order], weight_R[weight_R > 0])


def test_weights_come_back_from_disk(tmp_path):
    first, second = bank(), bank()
    for step in range(3):
        x_RF, reward_R, group_R, weight_R = rows(40, seed=step)
        first.update(x_RF, reward_R, group_R, step=step, weight_R=weight_R)
    first.save(tmp_path / "probe")
    second.load(tmp_path / "probe")
    x_RF, reward_R, group_R, weight_R = rows(40, seed=7)
    for b in (first, second):
        b.update(x_RF, reward_R, group_R, step=3, weight_R=weight_R)
    said = [b.predict(x_RF) for b in (first, second)]
    assert torch.equal(said[0].value_R, said[1].value_R) and torch.equal(said[0].constant_R, said[1].constant_R)
