"""What every estimator promises: range, degenerate input, determinism; and what each is for."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

from probe import FeatureLayout, ProbeSettings
from probe.estimators import Ensemble, Ridge, SubspaceRidge, make_estimator
from probe.guard import simplex_least_squares
from probe.settings import KINDS
from probe.window import SlidingWindow

LAYOUT = FeatureLayout(("state", "entropy"), (7, 1))


def make(kind, layout=LAYOUT, **changes):
    return make_estimator(ProbeSettings(kind=kind, exact_features=4, rank=5, **changes), layout)


def rows(count=80, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rate_N = torch.rand(count // 2, generator=generator).repeat_interleave(2)
    x_NF = 0.3 * torch.randn(count, 8, generator=generator)
    x_NF[:, 2] += 3 * rate_N
    return x_NF, (torch.rand(count, generator=generator) < rate_N).float(), torch.arange(count) // 2


@pytest.mark.parametrize("kind", KINDS)
def test_learns_and_stays_in_range(kind):
    x_NF, y_N, group_N = rows(400)
    estimator = make(kind).fit(x_NF, y_N, group_N)
    fresh_NF, fresh_y_N, _ = rows(400, seed=1)
    value_N = estimator.predict(fresh_NF)
    assert value_N.dtype == torch.float32 and value_N.min() >= 0 and value_N.max() <= 1
    assert (value_N - fresh_y_N).square().mean() < 0.9 * fresh_y_N.var()
    again = make(kind).fit(x_NF, y_N, group_N)
    assert torch.equal(again.predict(fresh_NF), value_N)
    estimator.fit(x_NF, y_N, group_N)  # a second fit forgets the first
    assert torch.equal(estimator.predict(fresh_NF), value_N)


@pytest.mark.parametrize("kind", KINDS)
def test_rewards_outside_the_unit_interval(kind):
    x_NF, y_N, group_N = rows(400)
    estimator = make(kind).fit(x_NF, 20 * y_N - 10, group_N)
    value_N = estimator.predict(x_NF)
    assert (estimator.low_, estimator.high_) == (-10, 10)
    assert value_N.min() < -2 and value_N.max() > 2


def test_the_range_widens_while_a_window_is_followed_and_a_fit_starts_anew():
    x_NF, y_N, group_N = rows(40)
    for kind in ("subspace_ridge", "pca_ridge"):
        estimator, window = make(kind), SlidingWindow(40, 8)
        for scale in (10.0, 2.0):  # the first rows leave
            estimator.follow(window, window.push(x_NF, scale * y_N, scale * y_N, y_N, group_N, step=0))
            assert estimator.high_ == 10.0
        assert estimator.fit(x_NF, 2 * y_N, group_N).high_ == 2.0


@pytest.mark.parametrize("kind", KINDS)
def test_scikit_learn_can_clone_it(kind):
    x_NF, y_N, group_N = rows(60)
    estimator = make(kind, penalties=(0.1, 1.0)).fit(x_NF, y_N, group_N)
    copy = clone(estimator)
    assert not copy.fitted
    assert torch.equal(copy.fit(x_NF, y_N, group_N).predict(x_NF), estimator.predict(x_NF))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["one row", "one prompt", "constant target", "constant features", "collinear", "huge"])
def test_degenerate_input_gives_finite_values(kind, case):
    x_NF, y_N, group_N = rows()
    match case:
        case "one row":
            x_NF, y_N, group_N = x_NF[:1], y_N[:1], group_N[:1]
        case "one prompt":
            x_NF, y_N, group_N = x_NF[:2], y_N[:2], group_N[:2]
        case "constant target":
            y_N = torch.full_like(y_N, 0.5)
        case "constant features":
            x_NF = torch.full_like(x_NF, 7.0)
        case "collinear":
            x_NF = x_NF[:, :1] * torch.arange(1, 9)
        case "huge":
            x_NF = x_NF * 1e15
    estimator = make(kind).fit(x_NF, y_N, group_N)
    value_N = estimator.predict(x_NF)
    assert value_N.isfinite().all()
    if case in ("constant target", "constant features", "one row"):
        torch.testing.assert_close(value_N, y_N.mean().expand(len(y_N)), atol=0.02, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_rows_predict_nan_and_are_refused_in_a_fit(kind):
    x_NF, y_N, group_N = rows()
    estimator = make(kind).fit(x_NF, y_N, group_N)
    x_NF[3, 1], x_NF[5, 7] = float("nan"), float("inf")
    x_NF[7] = torch.full((8,), 1e5).half()  # float16 overflow: infinite
    assert estimator.predict(x_NF).isnan().nonzero().flatten().tolist() == [3, 5, 7]
    with pytest.raises(ValueError, match="must be finite"):
        estimator.fit(x_NF, y_N, group_N)
    with pytest.raises(ValueError, match="as many targets"):
        estimator.fit(x_NF[:0], y_N[:0], group_N[:0])
    with pytest.raises(ValueError, match="layout of 8 features"):
        estimator.predict(x_NF[:, :4])
    with pytest.raises(RuntimeError, match="not been fitted"):
        make(kind).predict(x_NF)


def test_a_constant_feature_has_no_weight():
    x_NF, y_N, group_N = rows()
    x_NF[:, 1] = 7.3
    assert make("subspace_ridge").fit(x_NF, y_N, group_N).weight_[1] == 0


def test_subspace_is_close_to_exact_where_the_signal_is_low_rank():
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(400, 8, generator=generator)
    x_NF = latent @ torch.randn(8, 600, generator=generator) + 0.1 * torch.randn(400, 600, generator=generator)
    y_N = latent[:, 0] + 0.1 * torch.randn(400, generator=generator)
    group_N, layout = torch.arange(400) // 2, FeatureLayout(("state",), (600,))
    small, exact = SubspaceRidge(layout, rank=16, link="clip"), Ridge(layout, link="clip")
    for ridge in (small, exact):
        ridge.fit(x_NF[:300], y_N[:300], group_N[:300])
    assert small.basis_.shape == (600, 16)
    errors = [(ridge.predict(x_NF[300:]) - y_N[300:]).square().mean() for ridge in (small, exact)]
    assert errors[0] < 1.3 * errors[1]


def test_a_penalty_per_block_silences_a_block_of_noise():
    generator = torch.Generator().manual_seed(0)
    signal, noise = torch.randn(120, 5, generator=generator), torch.randn(120, 60, generator=generator)
    y_N = (signal[:, 0] + 0.3 * torch.randn(120, generator=generator)).sigmoid()
    layout = FeatureLayout(("signal", "noise"), (5, 60))
    x_NF, group_N = torch.cat([signal, noise], dim=1), torch.arange(120) // 2
    common, apart = Ridge(layout), Ridge(layout, per_block=True)
    errors = [
        (r.fit(x_NF[:80], y_N[:80], group_N[:80]).predict(x_NF[80:]) - y_N[80:]).square().mean()
        for r in (common, apart)
    ]
    assert errors[1] < 0.7 * errors[0]


def test_a_stacked_ensemble_prefers_the_member_that_knows():
    x_NF, y_N, group_N = rows(400)
    blind = make("subspace_ridge", penalties=(1e6,))
    ensemble = Ensemble([blind, make("logistic")]).fit(x_NF, y_N, group_N)
    assert ensemble.weight_[1] > 0.8
    mean = Ensemble([blind, make("logistic")], stacked=False).fit(x_NF, y_N, group_N)
    assert mean.weight_.tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="at least one member"):
        Ensemble([])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(5, 30))
def test_simplex_least_squares_is_optimal(seed, columns, count):
    generator = np.random.default_rng(seed)
    a_NE, y_N = generator.normal(size=(count, columns)), generator.normal(size=count)
    weight_E = simplex_least_squares(a_NE, y_N)
    assert weight_E.min() >= 0 and abs(weight_E.sum() - 1) < 1e-9
    gradient_E = a_NE.T @ (a_NE @ weight_E - y_N)
    # optimal on the simplex: no vertex lies downhill
    assert (gradient_E.min() - weight_E @ gradient_E) > -1e-7


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 100), st.floats(-50, 50))
def test_scale_and_shift_of_a_feature_do_not_matter(seed, scale, shift):
    x_NF, y_N, group_N = rows(40, seed)
    moved_NF = x_NF.clone()
    moved_NF[:, 2] = moved_NF[:, 2] * scale + shift
    plain, moved = (make("ridge").fit(x, y_N, group_N).predict(x) for x in (x_NF, moved_NF))
    torch.testing.assert_close(plain, moved, atol=5e-3, rtol=0)
