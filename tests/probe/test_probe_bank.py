"""The bank: window of whole groups, guard, bad rows, domains, and a state that is read back bit by bit."""

import json

import pytest
import torch

from probe import FeatureLayout, ProbeBank, ProbeSettings

LAYOUT = FeatureLayout(("prompt", "response", "entropy"), (6, 6, 1))


def step_rows(prompts=32, seed=0, noise=0.2):
    """Rows whose states tell the pass rate of their prompt; two per prompt."""
    generator = torch.Generator().manual_seed(seed)
    rate_R = torch.rand(prompts, generator=generator).repeat_interleave(2)
    x_RF = torch.randn(2 * prompts, 13, generator=generator) * noise
    x_RF[:, 3] += rate_R
    reward_R = (torch.rand(2 * prompts, generator=generator) < rate_R).float()
    return x_RF, reward_R, torch.arange(prompts).repeat_interleave(2)


def test_predictions_come_from_earlier_updates_only():
    bank = ProbeBank(ProbeSettings(min_rows=8), LAYOUT)
    x_RF, reward_R, group_R = step_rows()
    assert bank.predict(x_RF).value_R.isnan().all()
    first = bank.update(x_RF, reward_R, group_R, step=1)
    assert "correlation" not in first  # there was no prediction to score
    value_R = bank.predict(x_RF).value_R
    assert value_R.isfinite().all() and value_R.min() >= 0 and value_R.max() <= 1
    second = bank.update(*step_rows(seed=1), step=2)
    assert {"correlation", "mae", "brier_skill"} <= set(second)


def test_the_guard_prefers_what_has_the_smaller_error():
    informed, noise = (ProbeBank(ProbeSettings(min_rows=8), LAYOUT) for _ in range(2))
    for step in range(8):
        x_RF, reward_R, group_R = step_rows(seed=step, noise=0.05)
        good = informed.update(x_RF, reward_R, group_R, step=step)
        # the siblings agree fully, and the states tell nothing: RLOO cannot be beaten
        bad = noise.update(torch.randn(64, 13), reward_R[::2].repeat_interleave(2), group_R, step=step)
    assert good["error_probe"] < good["error_rloo"] and informed.predict(x_RF).trusted_R.all()
    assert bad["error_rloo"] == 0.0 and not noise.predict(x_RF).trusted_R.any()


def test_the_probe_finds_the_pass_rate():
    bank = ProbeBank(ProbeSettings(), LAYOUT)
    for step in range(10):
        metrics = bank.update(*step_rows(prompts=64, seed=step, noise=0.05), step=step)
    assert metrics["correlation"] > 0.4 and metrics["brier_skill"] > 0.1


def test_window_keeps_whole_groups_and_its_limits():
    bank = ProbeBank(ProbeSettings(window_rows=100, min_rows=8, max_age=3), LAYOUT)
    for step in range(5):
        bank.update(*step_rows(seed=step), step=step)
        window = bank.probes[0].window
        assert len(window) <= 100
        assert (torch.unique(window.group_N, return_counts=True)[1] == 2).all()
    assert window.step_N.min() > 4 - 3
    assert len(window) == 100


def test_bad_rows_are_left_out_and_counted():
    bank = ProbeBank(ProbeSettings(min_rows=8), LAYOUT)
    x_RF, reward_R, group_R = step_rows()
    x_RF[0, 0], x_RF[2, 5], reward_R[4], group_R[6] = float("nan"), float("inf"), float("nan"), 99
    metrics = bank.update(x_RF, reward_R, group_R, step=0)
    # row 5 has lost its sibling's reward; rows 6 and 7 are no longer siblings
    assert (metrics["left_out_features"], metrics["left_out_reward"], metrics["left_out_alone"]) == (2, 1, 3)
    assert metrics["window_rows"] == 64 - 6
    value_R = bank.predict(x_RF).value_R
    assert value_R[0].isnan() and value_R[2].isnan() and value_R[1:2].isfinite().all()


def test_empty_step_equal_rewards_and_too_few_rows():
    bank = ProbeBank(ProbeSettings(min_rows=8), LAYOUT)
    empty = torch.empty(0)
    assert bank.update(torch.empty(0, 13), empty, empty.long(), step=0)["window_rows"] == 0
    assert bank.predict(torch.zeros(1, 13)).constant_R.isnan().all()
    x_RF, _, group_R = step_rows()
    metrics = bank.update(x_RF, torch.ones(64), group_R, step=1)
    assert metrics["error_rloo"] == 0.0
    torch.testing.assert_close(bank.predict(x_RF).value_R, torch.ones(64))
    few = ProbeBank(ProbeSettings(min_rows=100), LAYOUT)
    few.update(*step_rows(), step=0)
    assert few.predict(x_RF).value_R.isnan().all()


def test_rewards_outside_the_unit_interval_widen_the_range():
    bank = ProbeBank(ProbeSettings(min_rows=8), LAYOUT)
    x_RF, reward_R, group_R = step_rows(noise=0.05)
    bank.update(x_RF, reward_R * 10 - 5, group_R, step=0)
    assert bank.predict(x_RF).value_R.min() < -0.5


def test_domains_do_not_see_each_other():
    settings = ProbeSettings(min_rows=8, domains={"code": "code*"})
    assert [settings.domain_index(source) for source in ("code_x", "math")] == [0, 1]
    bank = ProbeBank(settings, LAYOUT)
    x_RF, reward_R, group_R = step_rows()
    domain_R = group_R % 2
    bank.update(x_RF, reward_R, group_R, domain_R, step=0)
    alone = ProbeBank(ProbeSettings(min_rows=8), LAYOUT)
    rows = domain_R == 1
    alone.update(x_RF[rows], reward_R[rows], group_R[rows], step=0)
    torch.testing.assert_close(bank.predict(x_RF, domain_R).value_R[rows], alone.predict(x_RF[rows]).value_R)


def test_order_of_rows_does_not_matter():
    x_RF, reward_R, group_R = step_rows()
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    plain, mixed = (ProbeBank(ProbeSettings(min_rows=8), LAYOUT) for _ in range(2))
    plain.update(x_RF, reward_R, group_R)
    mixed.update(x_RF[order], reward_R[order], group_R[order])
    torch.testing.assert_close(mixed.predict(x_RF).value_R, plain.predict(x_RF).value_R, rtol=1e-5, atol=1e-5)


def test_rows_of_another_width_are_refused():
    with pytest.raises(ValueError, match="do not fit the layout of 13 features"):
        ProbeBank(ProbeSettings(), LAYOUT).predict(torch.zeros(1, 12))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank=0"),
        ({"guard": "on"}, "guard='on'"),
        ({"penalties": (0.0,)}, "penalties"),
        ({"min_rows": 9, "window_rows": 8}, "min_rows=9"),
        ({"max_age": 0}, "max_age=0"),
        ({"domains": {"default": "*"}}, "default"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        ProbeSettings(**settings)


@pytest.fixture
def saved(tmp_path):
    settings = ProbeSettings(min_rows=8, window_rows=100, exact_features=4, rank=4)
    bank = ProbeBank(settings, LAYOUT)
    for step in range(3):
        bank.update(*step_rows(seed=step), step=step)
    bank.save(tmp_path / "probe")
    return bank, settings, tmp_path / "probe"


def test_round_trip_goes_on_bit_by_bit(saved):
    bank, settings, folder = saved
    again = ProbeBank(settings, LAYOUT)
    again.load(folder)
    for step in range(3, 6):
        rows = step_rows(seed=step)
        assert torch.equal(again.predict(rows[0]).value_R, bank.predict(rows[0]).value_R)
        first, second = bank.update(*rows, step=step), again.update(*rows, step=step)
        assert {k: v for k, v in first.items() if "time" not in k} == {
            k: v for k, v in second.items() if "time" not in k
        }
    assert again.updates == 6


def test_saving_replaces_and_leaves_nothing_behind(saved):
    bank, settings, folder = saved
    bank.update(*step_rows(seed=9), step=9)
    bank.save(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["probe"]
    assert sorted(path.name for path in folder.iterdir()) == ["probe.json", "probe.safetensors"]


def test_another_probes_state_is_refused_with_the_difference(saved):
    _, settings, folder = saved
    with pytest.raises(ValueError, match=r"settings.window_rows: this run 4096, checkpoint 100"):
        ProbeBank(ProbeSettings(min_rows=8, exact_features=4, rank=4), LAYOUT).load(folder)
    with pytest.raises(ValueError, match=r"features.entropy: this run absent, checkpoint 1"):
        ProbeBank(settings, FeatureLayout(("prompt", "response"), (6, 6))).load(folder)


@pytest.mark.parametrize("name", ["probe.json", "probe.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "pickle", "empty"])
def test_a_damaged_file_fails_cleanly_and_executes_nothing(saved, name, damage, tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    _, settings, folder = saved
    content = {"truncated": (folder / name).read_bytes()[:50], "pickle": pickle.dumps(Bomb()), "empty": b""}[damage]
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        ProbeBank(settings, LAYOUT).load(folder)
    assert not (tmp_path / "executed").exists()


def test_a_manifest_without_its_domain_is_refused(saved):
    _, settings, folder = saved
    manifest = json.loads((folder / "probe.json").read_text())
    del manifest["domains"]["default"]["trusted"]
    (folder / "probe.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="trusted"):
        ProbeBank(settings, LAYOUT).load(folder)
