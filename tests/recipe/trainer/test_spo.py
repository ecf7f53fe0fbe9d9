"""SPO's tracker and estimator, and what is counted of every method's advantages."""

import pytest
import torch

from recipe.poise.trainer.counts import row_advantages
from recipe.poise.trainer.spo import BetaTracker, Visit, spo_advantage, visiting


def test_a_prompt_starts_from_what_all_prompts_said():
    tracker = BetaTracker()
    assert tracker.value("a") == 0.5
    for prompt, reward in (("a", 1.0), ("b", 1.0), ("c", 0.0), ("d", 0.0)):
        tracker.update(prompt, reward)
    assert tracker.value("new") == pytest.approx(0.5)
    # the first outcome of "a" met a prior of ten visits at 0.5: (0.9 * 5 + 1) / (0.9 * 10 + 1)
    assert tracker.value("a") == pytest.approx(5.5 / 10)


def test_the_tracker_follows_a_prompt_that_is_learned():
    tracker = BetaTracker(discount=0.9)
    for _ in range(40):
        tracker.update("a", 0.0)
    low = tracker.value("a")
    for _ in range(40):
        tracker.update("a", 1.0)
    assert low < 0.02 and tracker.value("a") > 0.98
    assert sum(tracker.counts["a"]) == pytest.approx(10.0)  # the memory of a discount of 0.9
    with pytest.raises(ValueError, match="not 1.5"):
        tracker.update("a", 1.5)


def test_the_tracker_survives_a_resume(tmp_path):
    tracker = BetaTracker()
    tracker.update("a", 1.0)
    tracker.save(tmp_path / "tracker.json")
    assert BetaTracker.load(tmp_path / "tracker.json") == tracker
    assert [path.name for path in tmp_path.iterdir()] == ["tracker.json"]


@pytest.mark.parametrize(
    "content",
    [
        '{"counts": [1]}',
        '{"discount": 0.9, "counts": {"a": [NaN, 1.0]}, "total": [1.0, 1]}',
        '{"discount": 0.9, "counts": {"a": [1e999, 1.0]}, "total": [1.0, 1]}',
        '{"discount": 0.9, "counts": {"a": [-1.0, 1.0]}, "total": [1.0, 1]}',
        '{"discount": 0.9, "counts": {}, "total": [1.0, 1e999]}',
        '{"discount": 1.0, "counts": {}, "total": [0.0, 0]}',
        "",
    ],
)
def test_a_file_that_holds_no_counts_is_refused(content, tmp_path):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(ValueError, match="not SPO's tracker"):
        BetaTracker.load(tmp_path / "bad.json")


def test_advantages_are_reward_minus_value_normalised_over_judged_rows():
    reward_BL = torch.zeros(4, 3)
    reward_BL[:, 1] = torch.tensor([1.0, 0.0, 1.0, 9.0])
    mask_BL = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 0], [1, 1, 1]])
    failed_B = torch.tensor([False, False, False, True])  # a failed verifier: in no mean, no push
    visit = Visit(torch.tensor([0.5, 0.5, 0.0, 0.5]), failed_B)
    with visiting(visit):
        advantage_BL, return_BL = spo_advantage(reward_BL, mask_BL)
    expected = torch.tensor([0.5, -0.5, 1.0])
    expected = (expected - expected.mean()) / expected.std()
    assert torch.allclose(advantage_BL[:3, 0], expected, atol=1e-5)
    assert (advantage_BL[3] == 0).all() and (advantage_BL[0] == advantage_BL[0, 0] * mask_BL[0]).all()
    assert visit.reward_B.tolist() == [1.0, 0.0, 1.0, 9.0] and return_BL[2].tolist() == [1.0, 1.0, 0.0]


def test_spo_needs_its_trainer():
    with pytest.raises(RuntimeError, match="main_poise"):
        spo_advantage(torch.zeros(1, 1), torch.ones(1, 1))


def test_a_rows_advantage_is_the_mean_over_its_tokens():
    values = torch.tensor([0.5, 0.5, -1.0, 0.2, 0.4])
    nested = torch.nested.nested_tensor_from_jagged(values, torch.tensor([0, 2, 3, 3, 5]))
    assert torch.allclose(row_advantages(nested), torch.tensor([0.5, -1.0, 0.0, 0.3]))
