"""What a model wrote is never evaluated, although reasoning-gym would: programs as answers, right answers beside."""

import inspect
import re

import pytest
import reasoning_gym
from reasoning_gym.factory import DATASETS

from reward.reasoning_gym_answers import EVALUATED, FORMULAS, is_formula
from reward.reasoning_gym_verifier import compute_score, is_right

PROGRAMS = (
    "[str(__import__('os').mkdir({path!r}))]",
    "__import__('os').mkdir({path!r})",
    "exec('import os; os.mkdir({path!r})')",
    "[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == '_wrap_close'][0]"
    ".__init__.__globals__['mkdir']({path!r})",
    "(lambda: __import__('os').mkdir({path!r}))()",
    "open({path!r}, 'w')",
    "sqrt(4).__class__.__init__.__globals__",
    "x.subs(1, open({path!r}, 'w'))",
)  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("task", [*EVALUATED, *FORMULAS])
def test_a_program_is_a_wrong_answer_and_is_not_run(task, program, tmp_path):
    path = tmp_path / "made"
    entry = reasoning_gym.create_dataset(task, seed=0, size=1)[0]
    answer = program.format(path=str(path))
    assert is_right(task, answer, entry) is False
    assert compute_score(task, f"</think> {answer}", entry["answer"])["score"] == 0.0
    assert not path.exists()


@pytest.mark.parametrize("task", [*EVALUATED, *FORMULAS])
def test_the_library_s_own_answers_are_right(task):
    dataset = reasoning_gym.create_dataset(task, seed=1, size=12)
    entries = [dataset[index] for index in range(12)]
    # what the library could not integrate it gives back as it was, which is no answer
    solved = [entry for entry in entries if entry["answer"] is not None and "Integral(" not in entry["answer"]]
    assert len(solved) > 6 and all(is_right(task, entry["answer"], entry) for entry in solved)
    assert not any(is_right(task, "1 + 1", entry) for entry in entries if entry["answer"] != "2")


def test_no_other_task_evaluates():
    """A new version of the library may: its verifiers are read again here."""
    found = set()
    for task, (dataset, *_) in DATASETS.items():
        source = inspect.getsource(dataset.score_answer)
        if re.search(r"\b(eval|exec)\(|\bparse_expr\(|\bsympify\(", source) and "eval(entry" not in source:
            found.add(task)
    assert found == {*EVALUATED, *FORMULAS}


@pytest.mark.parametrize("text", ["9**9**9", "2**1000", "x**(10*10*10)", "1" * 40, "(" * 80 + "1" + ")" * 80 + "+x.y"])
def test_what_would_not_end_is_no_formula(text):
    assert not is_formula(text)


@pytest.mark.parametrize("text", ["3*x**2/2 + C", "exp(2*x)*sin(x)/5 - cos(x)", "(8 - 4)*(7 - 1)", "-x**-1", " 4 + 5 "])
def test_formulas(text):
    assert is_formula(text)
