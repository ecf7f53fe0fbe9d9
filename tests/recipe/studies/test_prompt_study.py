"""What a run knew of its prompts: read from what verl and the trainer wrote, told as it was at each checkpoint."""

import json

import pytest
import torch
from omegaconf import OmegaConf

from probe import ProbeSettings
from probe.prompts import PromptProbe
from recipe.poise.studies import prompt_study
from recipe.poise.studies.prompt_study import LAST, PROBE, TRACKER, Group, checkpoints, estimates, groups
from recipe.poise.trainer.spo import BetaTracker


@pytest.fixture(scope="module")
def probe():
    """A prompt probe that has learned that the first number of a state is the pass rate."""
    torch.manual_seed(0)
    found = PromptProbe(ProbeSettings(min_rows=16), 4)
    for step in range(1, 9):
        state = torch.randn(64, 4)
        state[:, 0] = torch.rand(64)
        reward = torch.bernoulli(state[:, 0])
        found.learn(state, reward, torch.arange(64), torch.zeros(64, dtype=torch.int64), step)
    return found


def test_rollouts_are_read_by_prompt_in_the_order_of_steps(tmp_path):
    for step, lines in ((10, [("a", 1.0)]), (2, [("a", 0.0), ("b", 1.0), ("a", 1.0)])):
        text = "".join(json.dumps({"input": prompt, "score": score, "step": step}) + "\n" for prompt, score in lines)
        (tmp_path / f"{step}.jsonl").write_text(text)
    assert groups(tmp_path) == [Group(2, "a", [0.0, 1.0]), Group(2, "b", [1.0]), Group(10, "a", [1.0])]


def test_a_run_that_lacks_something_is_told_what(tmp_path, capsys):
    with pytest.raises(ValueError, match="rollout_data_dir"):
        groups(tmp_path)
    with pytest.raises(ValueError, match=r"poise\.select\.candidates"):
        checkpoints(tmp_path)
    assert prompt_study.main(["--run", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "config.yaml" in capsys.readouterr().err
    assert prompt_study.main(["--run", str(tmp_path), "--out", str(tmp_path / "out"), "--k", "2"]) == 2
    assert "--k 4 or more" in capsys.readouterr().err


def test_data_of_several_files_are_refused():
    with pytest.raises(ValueError, match="train_files names 2 files"):
        prompt_study._only_file(OmegaConf.create({"data": {"train_files": ["a", "b"]}}), "train_files")


def test_each_estimate_is_what_was_known(probe):
    history = [Group(1, "a", [0.0, 1.0]), Group(1, "b", [1.0, 1.0]), Group(2, "a", [1.0, 1.0])]
    state = torch.zeros(2, 4)
    state[:, 0] = torch.tensor([0.1, 0.9])
    domain = torch.zeros(2, dtype=torch.int64)
    said = estimates(probe, state, domain, ["a", "b"], history, asked=True)
    assert said[LAST].tolist() == [1.0, 1.0]
    tracker = BetaTracker()
    for prompt, reward in [("a", 0.0), ("a", 1.0), ("b", 1.0), ("b", 1.0), ("a", 1.0), ("a", 1.0)]:
        tracker.update(prompt, reward)
    assert said[TRACKER].tolist() == pytest.approx([tracker.value("a"), tracker.value("b")])
    low, high = said[PROBE].tolist()
    assert low < 0.4 < 0.6 < high
    unseen = estimates(probe, state, domain, ["c", "d"], history, asked=False)
    assert LAST not in unseen and unseen[TRACKER].tolist() == pytest.approx([5 / 6] * 2)
