"""Rows to learn from, for all tests of the probe."""

import pytest
import torch

from probe import FeatureLayout


@pytest.fixture
def linear_rows():
    """Rows of one state whose target is linear in it, with noise: function (count, features, seed, group_size)."""

    def make(count, features, seed=0, group_size=2):
        generator = torch.Generator().manual_seed(seed)
        x_NF = torch.randn(count, features, generator=generator) * (1 + torch.arange(features)) + 3
        weight_F = torch.randn(features, generator=torch.Generator().manual_seed(99)) / (1 + torch.arange(features))
        y_N = (x_NF - 3) @ weight_F + 0.1 * torch.randn(count, generator=generator)
        return x_NF, y_N, torch.arange(count) // group_size

    return make


@pytest.fixture
def layout():
    return FeatureLayout(("prompt", "response", "entropy"), (6, 6, 1))


@pytest.fixture
def step_rows():
    """Rows of one step whose states tell the pass rate of their prompt, two per prompt.

    Function (prompts, seed, noise, shift)."""

    def make(prompts=32, seed=0, noise=0.2, shift=0.0):
        generator = torch.Generator().manual_seed(seed)
        rate_R = torch.rand(prompts, generator=generator).repeat_interleave(2)
        x_RF = torch.randn(2 * prompts, 13, generator=generator) * noise
        x_RF[:, 3] += rate_R + shift
        x_RF[:, 8] += shift * rate_R
        reward_R = (torch.rand(2 * prompts, generator=generator) < rate_R).float()
        return x_RF, reward_R, torch.arange(prompts).repeat_interleave(2)

    return make
