"""avg@k, pass@k and their intervals, against enumeration and against known distributions."""

import itertools

import numpy as np
import pytest

from recipe.poise.evaluate.report import problem_result, suite_result
from recipe.poise.evaluate.samples import Sample, SampleFile
from recipe.poise.evaluate.settings import EvaluationError
from recipe.poise.evaluate.statistics import estimate, estimate_of_suites, pass_at, powers_up_to

ROW = {"prompt": [{"role": "user", "content": "1 + 1"}], "reward_model": {"ground_truth": "2"}}


@pytest.mark.parametrize(("n", "correct"), [(5, 0), (5, 1), (5, 3), (5, 5), (1, 1)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n, correct):
    right = [True] * correct + [False] * (n - correct)
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(right, k))
        assert pass_at(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize("arguments", [(5, 3, 6), (5, 3, 0), (5, 6, 1), (5, -1, 1)])
def test_pass_at_k_out_of_range(arguments):
    with pytest.raises(ValueError, match="samples"):
        pass_at(*arguments)


def test_ks():
    assert powers_up_to(32) == [1, 2, 4, 8, 16, 32] and powers_up_to(6) == [1, 2, 4, 6]


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        found = estimate(rng.beta(2, 3, size=40), seed, resamples=400)
        hits += found.low <= 0.4 <= found.high
    assert 0.88 <= hits / 200 <= 0.98


def test_the_mean_of_suites_weighs_suites_alike():
    found = estimate_of_suites([np.ones(3), np.zeros(300)])
    assert found.value == 0.5 and found.count == 303 and found.low == found.high == 0.5


def test_an_estimate_of_nothing_is_an_error():
    for bad in ([], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="estimate"):
            estimate(np.array(bad))


def sample(number, acc, failed=False, tokens=10, truncated=False):
    return Sample(0, number, "x", tokens, truncated, acc, acc, failed)


def test_failed_verifiers_count_nowhere():
    problem = problem_result(0, ROW, [sample(0, 1.0), sample(1, 0.0), sample(2, 0.0, True, 40, True)], 3)
    assert (problem.avg, problem.correct, problem.samples, problem.verifier_failed) == (0.5, 1, 3, 1)
    suite = suite_result([problem], 3)
    assert (suite.avg.value, suite.mean_tokens) == (0.5, 20.0)
    assert suite.truncated == suite.verifier_failed == pytest.approx(1 / 3)
    assert problem_result(0, ROW, [sample(0, 0.0, True)], 1).avg is None


def test_samples_survive_a_kill_and_a_torn_line(tmp_path):
    path, settings = tmp_path / "s.jsonl", {"temperature": 0.6}
    file = SampleFile(path, settings)
    for number in range(3):
        file.add(sample(number, 1.0))
    file.close()
    path.write_bytes(path.read_bytes()[:-9])  # killed while writing
    with pytest.warns(UserWarning, match="not written to its end"):
        again = SampleFile(path, settings)
    assert list(again.missing(2, 3)) == [(1, 0), (1, 1), (0, 2), (1, 2)]
    again.add(sample(2, 0.0))
    again.close()
    assert [s.acc for s in SampleFile(path, settings).of_problem(0, 3)] == [1.0, 1.0, 0.0]


def test_samples_of_other_settings_are_refused(tmp_path):
    path = tmp_path / "s.jsonl"
    SampleFile(path, {"temperature": 0.6}).close()
    with pytest.raises(EvaluationError, match="temperature: 0.6 -> 1.0"):
        SampleFile(path, {"temperature": 1.0})
    path.write_text('{"settings": {}}\nrubbish\n{"a": 1}\n')
    with pytest.raises(EvaluationError, match=":2 is not JSON"):
        SampleFile(path, {})
