"""From a source's row to verl's: answers, templates, keys, the schema."""

import json

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


# A row as each data set's page shows it.
ROWS = {
    "dapo-math-17k": {
        "data_source": "math_dapo",
        "prompt": [{"content": worded("How many?", "dapo"), "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": "9a9b6eb4"},
    },
    "gsm8k": {"question": "How many?", "answer": "17 * 2 = <<17*2=34>>34\n#### 34"},
    "math": {"problem": "How many?", "solution": r"So \boxed{34}.", "level": "Level 3", "type": "Algebra"},
    "math500": {"problem": "How many?", "solution": "", "answer": "34", "unique_id": "test/1.json", "level": 3},
    "aime24": {"id": 60, "problem": "How many?", "solution": "", "answer": "34", "url": "u", "year": "2024"},
    "aime25": {"problem_idx": 1, "problem": "How many?", "answer": 34},
    "aime26": {"problem_idx": 1, "problem": "How many?", "answer": 34},
    "amc23": {"id": 0, "question": "How many?", "answer": 34.0, "url": "u"},
    "amc24": {"exam": "AMC 12A", "problem": "How many?", "answer": 34},
    "hmmt25": {"problem_idx": 1, "problem": "How many?", "answer": "34", "problem_type": ["Algebra"]},
    "brumo25": {"problem_idx": 1, "problem": "How many?", "answer": "34", "problem_type": ["Algebra"]},
    "guru": {
        "data_source": "math__deepscaler_preview",
        "prompt": [{"content": "How many?", "role": "user"}],
        "ability": "math",
        "apply_chat_template": True,
        "reward_model": {"ground_truth": "34", "style": "rule"},
        "extra_info": {"index": 1, "original_question": "How many?"},
    },
    "jsonl": {"data_source": "mine", "prompt": "How many?", "answer": 34},
}


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_every_entry_converts_a_row_of_its_set(name):
    entry = CATALOGUE[name]
    made = verl_row(ROWS[name], question_of(ROWS[name], entry), entry, "test", 5, 9)
    assert problem_of(made) is None
    assert made["reward_model"] == {"style": "rule", "ground_truth": "34"}
    assert "How many?" in made["prompt"][-1]["content"]
    assert (made["extra_info"]["index"], made["extra_info"]["source_row"]) == (5, 9)
    assert set(json.loads(made["extra_info"]["metadata"])) == {key for key in entry.extra if key in ROWS[name]}
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
