"""The chooser over steps: what is asked, what is said of it, what a resumed run does."""

import json

import pytest
import torch

from probe.checked import SettingError
from recipe.poise.choose.chooser import Chooser
from recipe.poise.choose.rule import Judgement
from recipe.poise.choose.settings import SelectSettings

NAN = float("nan")
RATES = torch.rand(300, generator=torch.Generator().manual_seed(9)).double()  # of the data set's prompts


def judged(places, rates=RATES):
    rate_C = rates[torch.tensor(places)]
    return Judgement(rate_C, torch.zeros_like(rate_C), rate_C * NAN, rate_C * NAN, 1.0)


def steps(chooser, numbers, batch=8):
    """What is asked in each step, and the metrics of the choices."""
    asked, said = [], []
    for step in numbers:
        places = chooser.candidates()
        said.append(chooser.choose(judged(places), step))
        asked.append(chooser.take(batch))
        chooser.note([f"{step}-{place}" for place in asked[-1]], asked[-1])
    return asked, said


def test_open_prompts_are_preferred_and_none_comes_twice_in_an_epoch():
    chooser = Chooser(SelectSettings(candidates=4, power=4.0, random_share=0.0), 300, 8)
    asked, said = steps(chooser, range(9))
    flat = [place for step in asked for place in step]
    assert len(set(flat)) == len(flat)  # 9 steps of 32 candidates: not yet the second epoch
    chosen = RATES[torch.tensor(flat)]
    assert (chosen * (1 - chosen)).mean() > 1.2 * (RATES * (1 - RATES)).mean()
    for step, metrics in zip(asked, said, strict=True):
        assert metrics["select_candidates"] == 32 and metrics["select_known"] == 1.0
        assert metrics["select_expected"] == pytest.approx(float(RATES[torch.tensor(step)].mean()))


def test_where_nothing_is_known_the_choice_is_by_chance_and_says_so():
    chooser = Chooser(SelectSettings(candidates=4), 300, 8)
    places = chooser.candidates()
    metrics = chooser.choose(Judgement.of_table(torch.full((len(places), 5), NAN)), 1)
    assert "select_expected" not in metrics and metrics["select_known"] == 0.0
    assert len(set(chooser.take(8))) == 8


def test_more_than_were_judged_are_drawn_by_chance():
    chooser = Chooser(SelectSettings(candidates=2), 300, 8)
    steps(chooser, [1])
    more = chooser.take(8) + chooser.take(5)
    assert len(set(more)) == 13 and chooser.pool.chosen == 21
    chooser.note([str(place) for place in more], more)
    found = chooser.observe([str(place) for place in more], torch.ones(13))
    assert found["select_observed"] == 1.0


def test_a_data_set_smaller_than_the_candidates_is_judged_whole():
    chooser = Chooser(SelectSettings(candidates=8, max_age=2), 20, 8)
    asked, said = steps(chooser, range(12))
    assert {metrics["select_candidates"] for metrics in said} == {20.0}
    assert all(len(set(step)) == 8 for step in asked)
    with pytest.raises(ValueError, match="7 prompts, a step asks data.train_batch_size=8"):
        Chooser(SelectSettings(candidates=8), 7, 8)


def test_what_was_expected_is_compared_with_what_was_observed():
    chooser = Chooser(SelectSettings(candidates=4, max_age=9), 300, 4)
    (first, second), _ = steps(chooser, (1, 2), batch=4)
    rewards = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, NAN, 1.0])
    uids = [f"1-{place}" for place in first for _ in range(2)]
    found = chooser.observe(uids, rewards)
    observed = torch.tensor([0.5, 1.0, 0.0, 1.0]).double()
    expected = RATES[torch.tensor(first)]
    assert found["select_observed"] == pytest.approx(float(observed.mean()))
    assert found["select_equal_share"] == pytest.approx(2 / 3)  # of groups of two judged rollouts
    assert found["select_error"] == pytest.approx(float((expected - observed).abs().mean()))
    correlation = float(torch.corrcoef(torch.stack([expected, observed]))[0, 1])
    assert found["select_correlation"] == pytest.approx(correlation, abs=1e-5)
    # in the second step all but the new ones were left in the first
    found = chooser.observe([f"2-{place}" for place in second], torch.ones(4))
    assert found["select_left_observed"] == 1.0 and "select_equal_share" not in found
    assert chooser.observe(["strange"], torch.ones(1)) == {}


@pytest.mark.parametrize("max_age", [1, 4])
def test_a_resumed_run_chooses_the_same(tmp_path, max_age):
    settings = SelectSettings(candidates=4, max_age=max_age, seed=5)
    whole, other = (Chooser(settings, 300, 8) for _ in range(2))
    steps(whole, range(5))
    whole.save(tmp_path)
    other.load(tmp_path)
    first, second = steps(whole, range(5, 40)), steps(other, range(5, 40))
    assert first[0] == second[0] and str(first[1]) == str(second[1])


def test_a_state_of_other_settings_or_damaged_is_refused(tmp_path):
    chooser = Chooser(SelectSettings(candidates=4), 300, 8)
    steps(chooser, range(3))
    chooser.save(tmp_path)
    with pytest.raises(ValueError, match="candidates: this run 3, checkpoint 4"):
        Chooser(SelectSettings(candidates=3), 300, 8).load(tmp_path)
    with pytest.raises(ValueError, match="prompts: this run 299, checkpoint 300"):
        Chooser(SelectSettings(candidates=4), 299, 8).load(tmp_path)
    with pytest.raises(FileNotFoundError):
        Chooser(SelectSettings(candidates=4), 300, 8).load(tmp_path / "nothing")
    manifest = tmp_path / "select/probe.json"
    values = json.loads(manifest.read_text())
    values["content"]["cursor"] += 1
    manifest.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="damaged"):
        Chooser(SelectSettings(candidates=4), 300, 8).load(tmp_path)


def test_settings():
    assert not SelectSettings().on and SelectSettings(candidates=2).on
    for values in ({"candidates": 0}, {"candidates": 2.0}, {"rule": "best"}, {"random_share": 1.5}, {"max_age": 0}):
        with pytest.raises(SettingError):
            SelectSettings(**values)
