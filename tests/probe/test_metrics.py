"""Scores of predictions and variances of advantages, against numpy, scikit-learn and enumeration."""

import math

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve as sklearn_curve

from probe.metrics import advantage_variance, brier_skill, calibration_curve, mae, pearson, prediction_scores, rmse
from probe.planted import PlantedWorld


def columns(count=1000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    value_R = torch.rand(count, generator=generator)
    return value_R, (torch.rand(count, generator=generator) < value_R**2).float()


def test_scores_are_those_of_numpy():
    value_R, target_R = columns()
    v, t = value_R.double().numpy(), target_R.double().numpy()
    assert pearson(value_R, target_R) == pytest.approx(np.corrcoef(v, t)[0, 1])
    assert mae(value_R, target_R) == pytest.approx(np.abs(v - t).mean())
    assert rmse(value_R, target_R) == pytest.approx(np.sqrt(np.mean((v - t) ** 2)))
    half_R = torch.full_like(target_R, 0.5)
    assert brier_skill(value_R, target_R, half_R) == pytest.approx(1 - np.mean((v - t) ** 2) / 0.25)
    assert brier_skill(half_R, target_R, half_R) == 0.0 and brier_skill(target_R, target_R, half_R) == 1.0


def test_scores_where_nothing_varies_or_nothing_is_there():
    ones_R, (value_R, _) = torch.ones(5), columns(5)
    assert math.isnan(pearson(ones_R, value_R)) and math.isnan(pearson(value_R[:1], value_R[:1]))
    assert math.isnan(brier_skill(value_R, ones_R, ones_R))
    assert prediction_scores(torch.empty(0), torch.empty(0), torch.empty(0)) == {}


def test_calibration_is_scikit_learns():
    value_R, target_R = columns()
    curve = calibration_curve(value_R, target_R, bins=10)
    target_B, value_B = sklearn_curve(target_R.numpy(), value_R.numpy(), n_bins=10, strategy="quantile")
    np.testing.assert_allclose(curve.value_B, value_B, atol=1e-6)
    np.testing.assert_allclose(curve.target_B, target_B, atol=1e-6)
    assert curve.count_B.tolist() == [100.0] * 10
    np.testing.assert_allclose(curve.error_B, np.sqrt(target_B * (1 - target_B) / 100), atol=1e-6)
    # ten copies of a row know no more than the row
    copies = [column_R.repeat_interleave(10) for column_R in (value_R, target_R, torch.arange(1000))]
    clustered = calibration_curve(copies[0], copies[1], group_R=copies[2])
    torch.testing.assert_close(clustered.error_B, curve.error_B)
    # the value says v, the truth is v^2: v - v^2 is 1/6 on average
    assert curve.expected_error == pytest.approx(1 / 6, abs=0.03)
    honest = calibration_curve(value_R**2, target_R)
    assert honest.expected_error < 0.04
    assert len(calibration_curve(value_R[:3], target_R[:3]).count_B) == 3
    with pytest.raises(ValueError, match="needs rows"):
        calibration_curve(value_R[:0], target_R[:0])


def test_variance_by_hand():
    reward_R, value_R = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0]), torch.tensor([0.5, 0.25, 1.0, 0.5, 0.9])
    group_R = torch.tensor([7, 7, 3, 3, 4])  # the last one has no sibling: it counts for no baseline
    found = advantage_variance(value_R, reward_R, group_R, oracle_R=torch.tensor([0.5, 0.5, 1.0, 1.0, 1.0]))
    assert found["probe"] == pytest.approx((0.75**2 + 0.5**2 + 0.5**2 + 0.0) / 4)
    assert found["rloo"] == pytest.approx((1 + 1) / 4)
    assert found["constant"] == pytest.approx((0.2**2 * 3 + 0.8**2) / 4)
    assert found["oracle"] == pytest.approx((0.25 + 0.25) / 4)
    assert math.isnan(advantage_variance(value_R[4:], reward_R[4:], group_R[4:])["rloo"])


def test_variance_of_the_oracle_and_of_rloo_is_what_theory_says():
    """Independent rewards of rate p: the oracle leaves p(1-p), RLOO of two 2p(1-p), the constant that plus Var p."""
    rows = PlantedWorld(4, seed=0).draw(200_000)
    # every row of a prompt has its own planted value here; one value per prompt makes siblings independent
    rate_R = rows.value_N[::2].repeat_interleave(2)
    reward_R = (torch.rand(len(rate_R), generator=torch.Generator().manual_seed(1)) < rate_R).float()
    found = advantage_variance(rate_R, reward_R, rows.group_N, oracle_R=rate_R)
    noise = float((rate_R * (1 - rate_R)).mean())
    assert found["oracle"] == pytest.approx(noise, rel=0.02)
    assert found["probe"] == pytest.approx(found["oracle"])  # a perfect probe is the oracle
    assert found["rloo"] == pytest.approx(2 * noise, rel=0.02)
    assert found["constant"] == pytest.approx(noise + float(rate_R.var()), rel=0.02)
