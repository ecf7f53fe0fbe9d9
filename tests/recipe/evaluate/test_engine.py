"""The paper's protocol as default, which worker gets which devices, seeds, and prompts that do not fit."""

import pytest

from recipe.poise.data.catalogue import GROUPS
from recipe.poise.evaluate.__main__ import parser, picked
from recipe.poise.evaluate.engine import environments, seed_of
from recipe.poise.evaluate.prompts import model_length
from recipe.poise.evaluate.settings import Engine, EvaluationError, Sampling


def test_the_defaults_are_the_papers_protocol():
    arguments = parser().parse_args(["--model", "m", "--out", "o"])
    sampling = picked(Sampling, arguments)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, arguments.k) == (0.6, 0.95, -1, 32)
    assert arguments.suites == ["math-suites"]
    assert set(GROUPS["math-suites"]) == {"amc23", "amc24", "aime24", "aime25", "aime26", "hmmt25", "brumo25"}


@pytest.mark.parametrize(
    ("devices", "settings", "expected"),
    [
        ("0123", {}, ["0", "1", "2", "3"]),
        ("0123", {"tensor_parallel": 2}, ["0,1", "2,3"]),
        ("0123", {"tensor_parallel": 3}, ["0,1,2"]),
        ("57", {"data_parallel": 1}, ["5"]),
    ],
)
def test_devices_of_the_workers(devices, settings, expected):
    assert environments(list(devices), Engine(**settings)) == [{"CUDA_VISIBLE_DEVICES": ids} for ids in expected]


def test_cores_of_the_workers():
    found = environments([], Engine(data_parallel=2))
    assert len(found) == 2 and "OMP_NUM_THREADS" in found[0] and "CUDA_VISIBLE_DEVICES" not in found[0]


@pytest.mark.parametrize(
    ("devices", "settings"),
    [("01", {"tensor_parallel": 4}), ("01", {"data_parallel": 3}), ("", {"tensor_parallel": 2})],
)
def test_more_devices_than_there_are(devices, settings):
    with pytest.raises(EvaluationError, match="parallel"):
        environments(list(devices), Engine(**settings))


def test_every_sample_has_a_seed_of_its_own_that_never_changes():
    tasks = [(suite, problem, sample) for suite in "ab" for problem in range(40) for sample in range(32)]
    assert len({seed_of(task, 0) for task in tasks}) == len(tasks)
    assert seed_of(("aime24", 3, 7), 0) == 2125142730 != seed_of(("aime24", 3, 7), 1)


def test_a_prompt_longer_than_the_context():
    prompts = {("a", 0): [1] * 10, ("a", 1): [1] * 30}
    assert model_length(prompts, 20, 100) == 50
    with pytest.warns(UserWarning, match="does not fit the model's context of 40"):
        assert model_length(prompts, 20, 40) == 40
    with pytest.raises(EvaluationError, match="problem 1 of a has 30 tokens, the model's context is 30"):
        model_length(prompts, 20, 30)
