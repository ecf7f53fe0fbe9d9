"""Agreement with scikit-learn, and left-out predictions against refitting without the prompt."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probe.estimators import Ridge, SubspaceRidge
from probe.estimators.linear import fit_sigmoid
from probe.estimators.logistic import Logistic
from probe.estimators.ridge import PCARidge
from probe.ridge_path import Groups, left_out_residuals, ridge_path
from probe.settings import FeatureLayout


def states(features):
    return FeatureLayout(("state",), (features,))


@pytest.mark.parametrize("make", [Ridge, SubspaceRidge])
@pytest.mark.parametrize("count", [60, 12])  # more rows than features, and fewer: primal and dual
def test_ridge_agrees_with_scikit_learn(make, count, linear_rows):
    x_NF, y_N, group_N = linear_rows(count, 20)
    ridge = make(states(20), penalties=(0.3,), link="clip").fit(x_NF, y_N, group_N)
    ridge.low_, ridge.high_ = -np.inf, np.inf
    scaler = StandardScaler().fit(x_NF.double().numpy())
    z_NF = scaler.transform(x_NF.double().numpy())
    alpha = 0.3 * (z_NF**2).sum() / min(20, count - 1)  # the grid's unit: the mean squared singular value
    peer = SklearnRidge(alpha=alpha).fit(z_NF, y_N.double().numpy())
    fresh, _, _ = linear_rows(30, 20, seed=1)
    expected = peer.predict(scaler.transform(fresh.double().numpy()))
    np.testing.assert_allclose(ridge.predict(fresh).numpy(), expected, rtol=2e-4, atol=2e-4)


def test_pca_ridge_agrees_with_scikit_learns_pipeline():
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(200, 5, generator=generator)
    prompt = latent @ torch.randn(5, 40, generator=generator) + 0.01 * torch.randn(200, 40, generator=generator) + 2
    scalar = torch.rand(200, 1, generator=generator)
    y_N = (latent[:, 0] + 0.3 * torch.randn(200, generator=generator)).sigmoid()
    x_NF = torch.cat([prompt, scalar], dim=1)
    estimator = PCARidge(FeatureLayout(("prompt", "entropy"), (40, 1)), components=(5,), alpha=7.0)
    estimator.fit(x_NF, y_N, torch.arange(200) // 2)
    pca = PCA(5, svd_solver="full").fit(prompt.double().numpy())

    def reduced(x):
        return np.c_[pca.transform(x[:, :40].double().numpy()), x[:, 40:].double().numpy()]

    peer = make_pipeline(StandardScaler(), SklearnRidge(alpha=7.0)).fit(reduced(x_NF), y_N.double().numpy())
    expected = np.clip(peer.predict(reduced(x_NF)), 0, 1)
    np.testing.assert_allclose(estimator.predict(x_NF).numpy(), expected, atol=1e-4)


def test_logistic_agrees_with_scikit_learn(linear_rows):
    x_NF, y_N, group_N = linear_rows(300, 6)
    y_N = (y_N > 0).float()
    estimator = Logistic(states(6), penalties=(0.01,)).fit(x_NF, y_N, group_N)
    z_NF = StandardScaler().fit_transform(x_NF.double().numpy())
    unit = (z_NF**2).sum() / 6 / 4
    # soft targets (ours stay 0.001 away from 0 and 1) as two weighted rows each
    p_N = y_N.clamp(1e-3, 1 - 1e-3).numpy()
    peer = LogisticRegression(C=1 / (0.01 * unit), tol=1e-10, max_iter=1000)
    peer.fit(np.r_[z_NF, z_NF], np.r_[np.ones(300), np.zeros(300)], sample_weight=np.r_[p_N, 1 - p_N])
    np.testing.assert_allclose(estimator.predict(x_NF).numpy(), peer.predict_proba(z_NF)[:, 1], atol=1e-4)


def test_the_sigmoid_link_agrees_with_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    f_N = torch.randn(500, generator=generator).double() * 0.2 + 0.5
    p_N = (torch.rand(500, generator=generator) < (5 * f_N - 2).sigmoid()).double()
    slope, offset = fit_sigmoid(f_N, p_N)
    peer = LogisticRegression(C=1e6, tol=1e-10, max_iter=1000).fit(f_N.numpy()[:, None], p_N.numpy())
    np.testing.assert_allclose([slope, offset], [peer.coef_[0, 0], peer.intercept_[0]], rtol=0.02)


@pytest.mark.parametrize("group_size", [1, 2, 3])
def test_left_out_residuals_are_those_of_refits(group_size, linear_rows):
    x_NF, y_N, group_N = linear_rows(30, 5, group_size=group_size)
    a_NK, y_N = x_NF.double() - x_NF.double().mean(0), y_N.double()
    alphas = (4.0, 40.0)
    u, s, _ = torch.linalg.svd(a_NK, full_matrices=False)
    shrink_KP = torch.stack([s**2 / (s**2 + alpha) for alpha in alphas], dim=1)
    centred = y_N - y_N.mean()
    residual_NP = centred[:, None] - u @ (shrink_KP * (u.T @ centred)[:, None])
    found_NP = left_out_residuals(u, shrink_KP, residual_NP, Groups(group_N))
    for column, alpha in enumerate(alphas):
        for group in group_N.unique():
            out = group_N == group
            peer = SklearnRidge(alpha=alpha).fit(a_NK[~out].numpy(), y_N[~out].numpy())
            expected = y_N[out].numpy() - peer.predict(a_NK[out].numpy())
            np.testing.assert_allclose(found_NP[out, column].numpy(), expected, rtol=1e-8, atol=1e-8)


def test_left_out_residuals_in_chunks(monkeypatch, linear_rows):
    x_NF, y_N, group_N = linear_rows(40, 6, group_size=4)
    whole = ridge_path(x_NF, y_N, group_N, (0.1, 1.0))
    monkeypatch.setattr("probe.ridge_path.CHUNK_NUMBERS", 300)
    torch.testing.assert_close(ridge_path(x_NF, y_N, group_N, (0.1, 1.0)).left_out_N, whole.left_out_N)


def test_left_out_predictions_of_logistic_are_near_those_of_refits(linear_rows):
    x_NF, y_N, group_N = linear_rows(200, 5)
    y_N = (y_N + 2 * torch.randn(200, generator=torch.Generator().manual_seed(0)) > 0).float()
    left_out_N = Logistic(states(5), penalties=(0.1,)).fit(x_NF, y_N, group_N).left_out_
    for group in range(0, 100, 10):
        out = group_N == group
        refit = Logistic(states(5), penalties=(0.1,)).fit(x_NF[~out], y_N[~out], group_N[~out])
        torch.testing.assert_close(left_out_N[out].float(), refit.predict(x_NF[out]), atol=0.01, rtol=0)


@pytest.mark.parametrize("make", [Ridge, SubspaceRidge, Logistic])
def test_unequal_groups_and_any_order(make, linear_rows):
    x_NF, y_N, _ = linear_rows(11, 3)
    group_N = torch.tensor([2, 0, 1, 1, 2, 2, 0, 3, 1, 4, 4])
    order = torch.tensor([4, 1, 10, 3, 0, 8, 9, 2, 7, 6, 5])
    plain = make(states(3)).fit(x_NF, y_N, group_N)
    mixed = make(states(3)).fit(x_NF[order], y_N[order], group_N[order])
    torch.testing.assert_close(mixed.weight_, plain.weight_, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(mixed.left_out_, plain.left_out_[order], rtol=1e-4, atol=1e-5)


def test_prompts_left_out_choose_a_larger_penalty_than_noise_deserves():
    """Targets that are pure noise, equal within a prompt's states: the largest penalty must win."""
    generator = torch.Generator().manual_seed(0)
    x_NF = torch.randn(64, 40, generator=generator).repeat_interleave(2, 0)
    y_N = torch.rand(64, generator=generator).round().repeat_interleave(2, 0)
    assert SubspaceRidge(states(40)).fit(x_NF, y_N, torch.arange(128) // 2).penalty_ >= 10.0
