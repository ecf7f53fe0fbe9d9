"""The third embedded task: the quickstart's model and vocabulary, harder problems."""

import pytest

from recipe.poise.quickstart import wide
from recipe.poise.quickstart.behaviours import careful
from recipe.poise.quickstart.prepare import default_settings, new_tokenizer, parser, settings_of
from recipe.poise.quickstart.registry import QUICKSTART, WIDE
from recipe.poise.quickstart.tasks import part_of


@pytest.fixture(scope="module")
def asked():
    return WIDE.distinct_problems("train", 800, 3)


def test_what_is_asked_is_its_own_and_what_was_shown_is_the_quickstarts(asked):
    assert {len(problem.terms) for problem in asked if problem.family == "chain_sum"} == set(range(2, 13))
    share = sum(problem.family == "chain_sum" for problem in asked) / len(asked)
    assert wide.SUMS - 0.05 < share < 0.97  # there are few products, and none is asked twice
    assert WIDE.distinct_problems("warm", 50, 0) == QUICKSTART.distinct_problems("warm", 50, 0)
    assert default_settings(WIDE).model_record() == default_settings(QUICKSTART).model_record()
    assert default_settings(WIDE).record()["asked"] and "asked" not in default_settings(QUICKSTART).record()


def test_parts_share_no_question(asked):
    validation = WIDE.validation_problems(WIDE.val_prompts, 0)
    families = [problem.family for problem in validation]
    assert families.count("chain_sum") == families.count("products") == WIDE.val_prompts / 2
    for part, problems in (("train", asked), ("val", validation)):
        assert all(part_of(problem.question) == part for problem in problems)


def test_a_worked_solution_has_only_known_words_and_fits(asked):
    tokenizer = new_tokenizer(WIDE)
    for problem in asked:
        for text in (problem.question, careful(problem, None)):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids and len(ids) < WIDE.max_response


def test_seeds_make_other_problems():
    first, second = (
        WIDE.distinct_problems("train", 20, settings_of(parser().parse_args(["--out", "x", "--seed", seed])).seed)
        for seed in "01"
    )
    assert first != second


def test_more_problems_than_there_are_is_said():
    with pytest.raises(ValueError, match=r"of 400 problems \{'products': \d+\} could not be found: ask for fewer"):
        WIDE.validation_problems(400, 0)
