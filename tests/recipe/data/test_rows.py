"""From a source's row to verl's: answers, templates, keys, the schema."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipe.poise.data.catalogue import CATALOGUE, MATH_SUITES, TEMPLATES
from recipe.poise.data.convert import (
    MalformedRow,
    Question,
    after_hashes,
    at,
    last_boxed,
    question_of,
    text_of,
    unworded,
    verl_row,
    worded,
)
from recipe.poise.data.schema import problem_of


def question(text: str, answer: str = "1") -> Question:
    return Question([{"role": "user", "content": text}], answer)


@pytest.mark.parametrize(
    ("value", "text"),
    [(27.0, "27"), (0.5, "0.5"), (3, "3"), (" x+1 ", "x+1"), ([1, "a"], '[1, "a"]'), ({"b": 1}, '{"b": 1}')],
)
def test_answers_become_text(value, text):
    assert text_of(value) == text


@pytest.mark.parametrize("value", [None, "", "  ", float("nan"), float("inf")])
def test_an_answer_that_is_none_is_malformed(value):
    with pytest.raises(MalformedRow, match="answer is"):
        text_of(value)


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"so \boxed{1} or rather \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"$\boxed{\{1, 2\}}$", r"\{1, 2\}"),
        (r"\fbox{7}", "7"),
        (r"it is \boxed 5$.", "5"),
        (r"\boxed{\text{(A)} \} }", r"\text{(A)} \}"),
    ],
)
def test_the_last_box(solution, answer):
    assert last_boxed(solution) == answer


@pytest.mark.parametrize("solution", ["no box", r"\boxed{\frac{1}{2}", r"\boxed{}", r"\boxedx{1}", r"\boxed"])
def test_no_box_is_malformed(solution):
    with pytest.raises(MalformedRow):
        last_boxed(solution)


def test_hashes():
    assert after_hashes("2+2 #### 3\n#### 1,234 ") == "1234"
    for bad in ("4", "#### "):
        with pytest.raises(MalformedRow, match="####"):
            after_hashes(bad)


@given(st.text(), st.sampled_from(sorted(TEMPLATES)))
def test_wording_can_be_undone(problem, template):
    assert unworded(worded(problem, template), template) == problem


def test_a_prompt_in_other_words_is_not_taken_apart():
    with pytest.raises(MalformedRow, match="worded"):
        unworded("What is 1 + 1?", "dapo")


def test_keys_see_through_white_space_and_spelling():
    assert question("a  b\n").key == question("a b").key != question("a c").key
    assert question("é").key == question("e\u0301").key
    for one, other in (("1,000", "1000"), ("27.0", "27"), ("$x$", "x"), (r"\frac 1 2", r"\frac12")):
        assert question("", one).answer_key == question("", other).answer_key
    for one, other in (("1,2", "12"), ("1", "-1"), ("a", "A"), ("1.5", "15")):
        assert question("", one).answer_key != question("", other).answer_key


def test_dotted_paths():
    row = {"a": {"b": 1}, "c.d": 2}
    assert (at(row, "a.b"), at(row, "c.d")) == (1, 2)
    assert at(row, "a.x") is at(row, "c.e")


def test_a_row_of_ones_own():
    entry = CATALOGUE["jsonl"]
    row = {"data_source": "mine", "prompt": "How many?", "answer": 34}
    made = verl_row(row, question_of(row, entry), entry, "test", 5, 9)
    assert problem_of(made) is None and made["reward_model"] == {"style": "rule", "ground_truth": "34"}
    assert (made["extra_info"]["index"], made["extra_info"]["source_row"]) == (5, 9)
    assert set(made) == {"data_source", "prompt", "ability", "reward_model", "extra_info"}


def test_suites_are_sources_of_their_own():
    sources = [CATALOGUE[name].data_source for name in MATH_SUITES]
    assert len(set(sources)) == len(MATH_SUITES) == 7 and None not in sources


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"data_source": ""}, "data_source"),
        ({"prompt": []}, "not a list"),
        ({"prompt": [{"role": "user"}]}, "without role and content"),
        ({"prompt": [{"role": "robot", "content": "x"}]}, "robot"),
        ({"prompt": [{"role": "user", "content": 3}]}, "not text"),
        ({"prompt": [{"role": "user", "content": " "}]}, "nothing is asked"),
        ({"prompt": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, "nothing is asked"),
        ({"reward_model": {"style": "rule"}}, "ground_truth"),
        ({"reward_model": {"ground_truth": " "}}, "ground_truth"),
        ({"reward_model": None}, "ground_truth"),
    ],
)
def test_what_is_not_verls_schema(change, wrong):
    row = {
        "data_source": "x",
        "prompt": [{"role": "user", "content": "y"}],
        "reward_model": {"style": "rule", "ground_truth": "1"},
    }
    assert problem_of(row) is None
    assert wrong in str(problem_of(row | change))
