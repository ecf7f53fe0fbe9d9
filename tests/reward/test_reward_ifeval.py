"""Verifiable instructions against lm-eval's rules; responses are made up here."""

import asyncio
import json

import pytest

pytest.importorskip("lm_eval", reason="needs the extra ifeval")

from reward.ifeval_verifier import IfEvalVerifier, known_instructions
from reward.router import check_sources, compute_score

COMMA, CASE, WORDS, JSON_FORM = (
    "punctuation:no_comma",
    "change_case:english_lowercase",
    "length_constraints:number_words",
    "detectable_format:json_format",
)


def truth(*pairs) -> dict:
    return {"instruction_id_list": [name for name, _ in pairs], "kwargs": [kwargs for _, kwargs in pairs]}


@pytest.fixture(scope="module")
def judge():
    def call(response, ground_truth, **options):
        return asyncio.run(IfEvalVerifier(**options).verify(response, ground_truth, {"prompt": "Write."}))

    return call


@pytest.mark.parametrize(
    ("response", "ground_truth", "right"),
    [
        ("no pause here at all", truth((COMMA, {})), True),
        ("a pause, here", truth((COMMA, None)), False),
        ("<think>one, two, three</think>no pause here", truth((COMMA, {})), True),  # the reasoning does not count
        ("the quick brown fox jumps over the lazy dog", truth((COMMA, {}), (CASE, {})), True),
        ("The quick brown fox jumps over the lazy dog", truth((COMMA, {}), (CASE, {})), False),
        ("one two three", truth((WORDS, {"relation": "at least", "num_words": 3})), True),
        ("one two", truth((WORDS, {"relation": "at least", "num_words": 3})), False),
        ('```json\n{"a": 1}\n```', truth((JSON_FORM, {})), True),
        ("{'a': 1}", truth((JSON_FORM, {})), False),
        ("", truth((COMMA, {})), False),
        ("<think>only thoughts", truth((COMMA, {})), False),
        ("<think>thoughts</think> ", truth((COMMA, {})), False),
        ("one, " + "two " * 10_000, truth((COMMA, {})), False),  # it is read from its beginning
        ("x" * 1_000_000, truth((COMMA, {})), False),
    ],
)
def test_instructions(judge, response, ground_truth, right):
    verdict = judge(response, json.dumps(ground_truth))
    assert (verdict.acc, verdict.score, verdict.failed) == (float(right), float(right), False)


def test_partial_credit(judge):
    verdict = judge("No pause here", truth((COMMA, {}), (CASE, {})), partial=True)
    assert (verdict.score, verdict.acc) == (0.5, 0.0)


def test_missing_sentence_data_is_a_failure_and_says_what_to_do(judge, monkeypatch):
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
        pytest.skip("punkt_tab is installed")
    except LookupError:
        pass
    sentences = truth(("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 1}))
    verdict = judge("One. Two.", sentences)
    assert verdict.failed and "punkt_tab" in verdict.reason


@pytest.mark.parametrize(
    ("ground_truth", "message"),
    [
        ("not json", "want a mapping"),
        ({"instruction_id_list": [COMMA]}, "want a mapping"),
        (truth(), "0 instructions"),
        ({"instruction_id_list": [COMMA], "kwargs": []}, "1 instructions, 0 kwargs"),
        (truth(("no:such", {})), "no:such"),
        (truth((COMMA, {"colour": "red"})), "do not take these arguments"),
    ],
)
def test_ground_truth_that_cannot_be_read(judge, ground_truth, message):
    with pytest.raises(ValueError, match=message):
        judge("so", ground_truth)


def test_route(tmp_path):
    import pandas as pd

    path = tmp_path / "train.parquet"
    pd.DataFrame({"data_source": ["google/IFEval"]}).to_parquet(path)
    assert check_sources([path]) == {"google/IFEval": "ifeval"}
    result = asyncio.run(compute_score("google/IFEval", "no pause", json.dumps(truth((COMMA, {}))), {}))
    assert result == {"score": 1.0, "acc": 1.0, "verifier_failed": 0.0, "format_bonus": 0.0}
    assert len(known_instructions()) >= 25
