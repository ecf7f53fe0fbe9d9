"""The prompt probe on planted data: it finds what is there, knows how well, and says nothing where nothing is."""

import pytest
import torch

from probe import ProbeSettings
from probe.prompts import PromptProbe, prompt_settings

WIDTH, PROMPTS = 24, 64


def planted(seed, signal=2.0, rollouts=2, ratio=10.0):
    """States, rewards, groups, domains and energies of a step, rows shuffled; and the prompts' true pass rates."""
    noise = torch.Generator().manual_seed(seed)
    direction = torch.randn(WIDTH, generator=torch.Generator().manual_seed(99)) / WIDTH**0.5
    state_GD = torch.randn(PROMPTS, WIDTH, generator=noise)
    rate_G = (signal * state_GD @ direction).sigmoid()
    group_N = torch.arange(PROMPTS).repeat_interleave(rollouts)[torch.randperm(PROMPTS * rollouts, generator=noise)]
    reward_N = (torch.rand(len(group_N), generator=noise) < rate_G[group_N]).float()
    energy_N = torch.where(reward_N > 0, 1.0, ratio) * (0.5 + torch.rand(len(group_N), generator=noise))
    return (state_GD[group_N], reward_N, group_N, torch.zeros_like(group_N)), energy_N, state_GD, rate_G


def learned(steps=12, weights="uniform", **options):
    probe = PromptProbe(ProbeSettings(), WIDTH, rollouts=options.get("rollouts", 2), rated=weights)
    metrics = {}
    for step in range(steps):
        rows, energy_N, _, _ = planted(step, **options)
        metrics = probe.learn(*rows, step, energy_N if weights != "uniform" else None)
    return probe, metrics


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


@pytest.mark.parametrize("rollouts", [1, 2, 4])
def test_pass_rates_are_found_and_the_error_is_known(rollouts):
    probe, metrics = learned(rollouts=rollouts)
    _, _, state_GD, rate_G = planted(1000)
    said = probe.judge(state_GD, torch.zeros(PROMPTS, dtype=torch.int64))
    assert correlation(said[:, 0], rate_G) > 0.85
    error, claimed = float((said[:, 0] - rate_G).square().mean()) ** 0.5, float(said[:, 1].square().mean()) ** 0.5
    assert 0.5 < claimed / error < 2.0
    assert said[:, 2:4].isnan().all() and (said[:, 4] > 0.15).all()
    assert metrics["correlation"] > 0.3 and metrics["window_rows"] == 12 * PROMPTS and metrics["weight_probe"] > 0.9


def test_energies_and_weighted_means_are_found():
    probe, _ = learned(weights="energy")
    _, _, state_GD, rate_G = planted(1000)
    said = probe.judge(state_GD, torch.zeros(PROMPTS, dtype=torch.int64))
    mean_G = rate_G + 10.0 * (1 - rate_G)
    assert correlation(said[:, 2], rate_G / mean_G) > 0.8
    assert correlation(said[:, 3].log(), mean_G.log()) > 0.8
    plain, _ = learned()
    torch.testing.assert_close(plain.judge(state_GD, torch.zeros(PROMPTS, dtype=torch.int64))[:, :2], said[:, :2])


def test_a_probe_that_knows_nothing_says_the_same_of_all():
    probe, _ = learned(signal=0.0)
    _, _, state_GD, _ = planted(1000)
    said = probe.judge(state_GD, torch.zeros(PROMPTS, dtype=torch.int64))
    assert float(said[:, 4].max()) < 0.05 and float(said[:, 0].std()) < 0.02
    assert said[:, 0].mean() == pytest.approx(0.5, abs=0.05)


def test_before_the_first_fit_and_of_bad_states_nothing_is_said():
    probe = PromptProbe(ProbeSettings(), WIDTH)
    assert probe.judge(torch.randn(3, WIDTH), torch.zeros(3, dtype=torch.int64)).isnan().all()
    probe, _ = learned()
    states = torch.randn(3, WIDTH)
    states[1, 0] = float("nan")
    said = probe.judge(states, torch.zeros(3, dtype=torch.int64))
    # the constant is left for a state that cannot be used, with no deviation
    assert said[[0, 2]][:, :2].isfinite().all() and said[1, 1].isnan()


def test_rows_without_a_reward_are_left_out_of_their_prompt():
    rows, energy_N, _, _ = planted(0)
    state, reward_N, group_N, domain_N = rows
    spoiled_N = reward_N.clone()
    first = [int((group_N == group).nonzero()[0, 0]) for group in range(PROMPTS)]
    spoiled_N[first] = float("nan")
    keep = spoiled_N.isfinite()
    probes = [PromptProbe(ProbeSettings(), WIDTH, rated="energy") for _ in range(2)]
    probes[0].learn(state, spoiled_N, group_N, domain_N, 0, energy_N)
    probes[1].learn(state[keep], reward_N[keep], group_N[keep], domain_N[keep], 0, energy_N[keep])
    for name in ("rate", "value", "energy"):
        one, other = (probe.banks[name].probes[0].window for probe in probes)
        assert len(one) == PROMPTS
        torch.testing.assert_close(one.reward[one.order], other.reward[other.order])


def test_domains_are_judged_by_their_own_probe():
    settings = ProbeSettings(domains={"a": "a*"}, borrow_rows=0, min_rows=16)
    probe = PromptProbe(settings, WIDTH)
    for step in range(6):
        (state, reward_N, group_N, _), _, _, _ = planted(step)
        domain_N = group_N % 2
        probe.learn(state, torch.where(domain_N == 0, reward_N, 1.0 - reward_N), group_N, domain_N, step)
    _, _, state_GD, rate_G = planted(1000)
    for domain, sign in ((0, 1.0), (1, -1.0)):
        said = probe.judge(state_GD, torch.full((PROMPTS,), domain))
        assert sign * correlation(said[:, 0], rate_G) > 0.7


def test_a_domain_that_borrows_is_unsure():
    settings = ProbeSettings(domains={"a": "a*"}, borrow_rows=400, min_rows=64)
    probe = PromptProbe(settings, WIDTH)
    for step in range(4):
        (state, reward_N, group_N, _), _, _, _ = planted(step)
        probe.learn(state, reward_N, group_N, (group_N >= 8).long(), step)  # 32 prompts of the first domain
    _, _, state_GD, rate_G = planted(1000)
    said = [probe.judge(state_GD, torch.full((PROMPTS,), domain)) for domain in (0, 1)]
    assert correlation(said[0][:, 0], rate_G) > 0.6  # by the probe that both share
    assert float(said[0][:, 1].mean()) > 1.5 * float(said[1][:, 1].mean())


def test_a_saved_probe_says_the_same(tmp_path):
    probe, _ = learned(weights="energy")
    probe.save(tmp_path / "prompts")
    other = PromptProbe(ProbeSettings(), WIDTH, rollouts=2, rated="energy")
    other.load(tmp_path / "prompts")
    _, _, state_GD, _ = planted(1000)
    zero = torch.zeros(PROMPTS, dtype=torch.int64)
    torch.testing.assert_close(other.judge(state_GD, zero), probe.judge(state_GD, zero))


def test_settings_count_prompts_instead_of_rollouts():
    paper = ProbeSettings(kind="pca_ridge", penalties=(100.0,), guard="off", min_updates=16, window_rows=100)
    found = prompt_settings(paper, 4)
    assert (found.kind, found.guard, found.min_updates, found.window_rows, found.min_rows) == (
        "subspace_ridge", "combine", 0, 25, 16,
    )  # fmt: skip
    assert found.penalties == ProbeSettings().penalties
