"""What a model may write to get a reward that it has not earned, and to break a verifier; and what must stay right.

The answers are in math_answers.json: forms over pairs of values (``{a}`` is the ground truth, ``{b}`` another value)
and single ones.
"""

import asyncio
import json
import re
from pathlib import Path

import pytest

from reward.math_verifier import MathVerifier

HERE = Path(__file__).parent
DATA = json.loads((HERE / "math_answers.json").read_text(encoding="utf-8"))
VERIFIER = MathVerifier(time_limit_s=60)


def filled(forms: list[str]) -> list[tuple[str, str]]:
    return [(form.replace("{a}", a).replace("{b}", b), a) for form in forms for a, b in DATA["pairs"]]


HEDGED = [*filled(DATA["hedge_forms"]), *map(tuple, DATA["hedges"])]
RIGHT = [*filled(DATA["right_forms"]), *map(tuple, DATA["right"])]


def judged(pairs: list[tuple[str, str]], form: str) -> dict[tuple[str, str], str]:
    """Answers by what became of them."""

    async def go():
        return await asyncio.gather(*(VERIFIER.verify(form % answer, gold, {}) for answer, gold in pairs))

    verdicts = asyncio.run(go())
    return {
        pair: "failed: " + verdict.reason if verdict.failed else "right" if verdict.acc else "wrong"
        for pair, verdict in zip(pairs, verdicts, strict=True)
    }


@pytest.mark.parametrize("form", [r"So \boxed{%s}", "Answer: %s", "<answer>%s</answer>"])
def test_an_answer_that_names_something_else_too_is_wrong(form):
    assert len(set(HEDGED)) >= 500
    pairs = [pair for pair in HEDGED if form.count("{") == 0 or pair[0].count("{") == pair[0].count("}")]
    assert [item for item in judged(pairs, form).items() if item[1] != "wrong"] == []


@pytest.mark.parametrize("form", [r"So \boxed{%s}", "<answer>%s</answer>"])
def test_the_usual_ways_to_write_an_answer_are_right(form):
    assert len(set(RIGHT)) >= 300
    assert [item for item in judged(RIGHT, form).items() if item[1] != "right"] == []


def test_the_counts_in_the_docs():
    text = (HERE.parents[1] / "docs/rewards.md").read_text(encoding="utf-8")
    told = re.search(r"(\d+) hedges .* (\d+) usual forms", text.replace("\n", " "))
    assert told and (int(told[1]), int(told[2])) == (len(set(HEDGED)), len(set(RIGHT)))
