"""The verifier: reasoning-gym's own score of what stands after the last ``</think>``."""

import asyncio
import time

import pytest
import reasoning_gym

from reward.reasoning_gym_verifier import ReasoningGymVerifier, answer_of, compute_score, verifier_of


@pytest.mark.parametrize("task", ["chain_sum", "products"])
def test_right_answers_score_one_and_others_zero(task):
    for entry in reasoning_gym.create_dataset(task, seed=3, size=50):
        answer = entry["answer"]
        assert compute_score(task, f"<think> so</think> {answer}", answer) == {"score": 1.0, "acc": 1.0}
        assert compute_score(task, f"<think> so</think> {int(answer) + 1}", answer) == {"score": 0.0, "acc": 0.0}


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("<think> 1 + 1 = 2</think> 2", "2"),
        ("<think></think>2\n", "2"),
        ("<think> 1</think> 3</think> 2", "2"),
        ("<think> 1 + 1 = 2", None),
        ("2", None),
        ("<think></think>  ", None),
        ("", None),
    ],
)
def test_the_answer_stands_after_the_last_close(solution, answer):
    assert answer_of(solution) == answer
    assert compute_score("chain_sum", solution, "2")["score"] == float(answer == "2")


@pytest.mark.parametrize("answer", ["12", "2 2", "two", "-2", "2 + 0"])
def test_an_answer_that_only_contains_the_right_one_scores_zero(answer):
    assert compute_score("chain_sum", f"<think></think> {answer}", "2")["score"] == 0.0


def test_verls_extra_arguments_are_accepted_and_no_others():
    extra = {"reward_router_address": "host:1", "reward_model_tokenizer": object()}
    assert compute_score("products", "</think> 6", "6", {"index": 0}, **extra)["acc"] == 1.0
    with pytest.raises(TypeError, match="bonuss"):
        compute_score("products", "</think> 6", "6", bonuss=0.1)


def test_a_missing_truth_is_an_error():
    with pytest.raises(ValueError, match="products has no ground truth"):
        compute_score("products", "</think> None", None)


def judge(task, answer, entry):
    told = {"data_source": f"reasoning_gym/{task}", "entry": entry}
    return asyncio.run(ReasoningGymVerifier(time_limit_s=2).verify(f"</think> {answer}", None, told))


def test_tasks_that_evaluate_an_answer_do_it_under_a_limit():
    entry = reasoning_gym.create_dataset("countdown", seed=3, size=1)[0]
    assert judge("countdown", entry["answer"], entry).acc == 1.0
    assert not judge("countdown", "1 +", entry).failed
    assert judge("countdown", "9**9**9**9", entry).acc == 0.0


def test_an_answer_over_which_the_library_trips_is_wrong_and_an_entry_is_an_error():
    entry = reasoning_gym.create_dataset("game_of_life", seed=3, size=1)[0]
    assert judge("game_of_life", entry["answer"], entry).acc == 1.0
    with pytest.raises(KeyError):
        verifier_of("game_of_life")("{}", entry)
    verdict = judge("game_of_life", "{}", entry)
    assert (verdict.acc, verdict.failed) == (0.0, False)
    with pytest.raises(ValueError, match="cannot score this entry of game_of_life"):
        judge("game_of_life", "[[1]]", {"answer": "1"})


def test_an_unknown_task_is_an_error():
    with pytest.raises(ValueError, match="no_such_task"):
        compute_score("no_such_task", "</think> 6", "6")


def test_a_score_takes_less_than_a_millisecond():
    compute_score("chain_sum", "</think> 1", "1")
    start = time.perf_counter()
    for _ in range(1000):
        compute_score("chain_sum", "<think> 4 + 3 = 7 - 5 = 2</think> 2", "2")
    assert time.perf_counter() - start < 1.0
