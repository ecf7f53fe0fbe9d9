"""The ridge against scikit-learn, and its leave-one-prompt-out residuals against refitting without the prompt."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.preprocessing import StandardScaler

from probe.ridge import Ridge, group_residuals
from probe.settings import FeatureLayout, ProbeSettings


def rows(count, features, seed=0, group_size=2):
    generator = torch.Generator().manual_seed(seed)
    x_NF = torch.randn(count, features, generator=generator) * (1 + torch.arange(features)) + 3
    weight_F = torch.randn(features, generator=generator) / (1 + torch.arange(features))
    y_N = (x_NF - 3) @ weight_F + 0.1 * torch.randn(count, generator=generator)
    return x_NF, y_N, torch.arange(count) // group_size


def states(features):
    return FeatureLayout(("state",), (features,))


@pytest.mark.parametrize("count", [60, 12])  # more rows than features, and fewer: primal and dual
def test_agrees_with_scikit_learn(count):
    x_NF, y_N, group_N = rows(count, 20)
    ridge = Ridge(ProbeSettings(penalties=(0.3,)), states(20))
    ridge.fit(x_NF, y_N, group_N)
    z_NF = StandardScaler().fit_transform(x_NF.double().numpy())
    rank = min(20, count - 1)
    alpha = 0.3 * (z_NF**2).sum() / rank
    peer = SklearnRidge(alpha=alpha).fit(z_NF, y_N.double().numpy())
    fresh, _, _ = rows(30, 20, seed=1)
    scaler = StandardScaler().fit(x_NF.double().numpy())
    expected = peer.predict(scaler.transform(fresh.double().numpy()))
    np.testing.assert_allclose(ridge.predict(fresh).numpy(), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("group_size", [1, 2, 3])
def test_left_out_residuals_are_those_of_refits(group_size):
    x_NF, y_N, group_N = rows(30, 5, group_size=group_size)
    a_NK, y_N = x_NF.double(), y_N.double()
    a_NK = a_NK - a_NK.mean(0)
    alpha = 4.0
    u, s, _ = torch.linalg.svd(a_NK, full_matrices=False)
    shrink = s**2 / (s**2 + alpha)
    centred = y_N - y_N.mean()
    found = group_residuals(u, shrink, centred - u @ (shrink * (u.T @ centred)), group_N)
    for group in group_N.unique():
        out = group_N == group
        peer = SklearnRidge(alpha=alpha).fit(a_NK[~out].numpy(), y_N[~out].numpy())
        expected = y_N[out].numpy() - peer.predict(a_NK[out].numpy())
        np.testing.assert_allclose(found[out].numpy(), expected, rtol=1e-8, atol=1e-8)


def test_unequal_groups_and_any_order():
    x_NF, y_N, _ = rows(11, 3)
    group_N = torch.tensor([2, 0, 1, 1, 2, 2, 0, 3, 1, 4, 4])
    ridge, again = Ridge(ProbeSettings(), states(3)), Ridge(ProbeSettings(), states(3))
    left_out_N = ridge.fit(x_NF, y_N, group_N)
    order = torch.tensor([4, 1, 10, 3, 0, 8, 9, 2, 7, 6, 5])
    left_out_again_N = again.fit(x_NF[order], y_N[order], group_N[order])
    torch.testing.assert_close(again.weight_F, ridge.weight_F, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(left_out_again_N, left_out_N[order], rtol=1e-5, atol=1e-6)


def test_prompts_left_out_choose_a_larger_penalty_than_noise_deserves():
    """Targets that are pure noise, equal within a prompt's states: the largest penalty must win."""
    generator = torch.Generator().manual_seed(0)
    x_NF = torch.randn(64, 40, generator=generator).repeat_interleave(2, 0)
    y_N = torch.rand(64, generator=generator).round().repeat_interleave(2, 0)
    ridge = Ridge(ProbeSettings(), states(40))
    ridge.fit(x_NF, y_N, torch.arange(128) // 2)
    assert ridge.penalty >= 10.0


def test_subspace_is_close_to_exact_where_the_signal_is_low_rank():
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(400, 8, generator=generator)
    x_NF = latent @ torch.randn(8, 600, generator=generator) + 0.1 * torch.randn(400, 600, generator=generator)
    y_N = latent[:, 0] + 0.1 * torch.randn(400, generator=generator)
    group_N = torch.arange(400) // 2
    small, exact = (Ridge(s, states(600)) for s in (ProbeSettings(rank=16), ProbeSettings(exact_features=600)))
    for ridge in (small, exact):
        ridge.fit(x_NF[:300], y_N[:300], group_N[:300])
    assert small.basis_PK.shape == (600, 16)
    assert exact.basis_PK is None
    errors = [(ridge.predict(x_NF[300:]) - y_N[300:]).square().mean() for ridge in (small, exact)]
    assert errors[0] < 1.3 * errors[1]


def test_degenerate_columns_and_targets():
    x_NF, y_N, group_N = rows(20, 4)
    x_NF[:, 1] = 7.0  # constant
    x_NF[:, 2] = x_NF[:, 0] * 2  # collinear
    ridge, flat, nothing = (Ridge(ProbeSettings(), states(4)) for _ in range(3))
    ridge.fit(x_NF, y_N, group_N)
    assert ridge.weight_F.isfinite().all() and ridge.weight_F[1] == 0
    flat.fit(x_NF, torch.full_like(y_N, 0.5), group_N)
    torch.testing.assert_close(flat.predict(x_NF), torch.full_like(y_N, 0.5))
    nothing.fit(torch.ones(20, 4), y_N, group_N)
    torch.testing.assert_close(nothing.predict(torch.ones(3, 4)), y_N.mean().expand(3))


def test_predict_before_fit():
    with pytest.raises(RuntimeError, match="not been fitted"):
        Ridge(ProbeSettings(), states(4)).predict(torch.zeros(1, 4))
