"""What a model may write to get a reward that it has not earned, and to break a verifier; and what must stay right.

The answers are in math_answers.json: forms over pairs of values (``{a}`` is the ground truth, ``{b}`` another value)
and single ones.
"""

import asyncio
import json
import math
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import reasoning_gym
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reward.json_verifier import equal
from reward.math_verifier import MathVerifier
from reward.router import verifier_of

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


HOSTILE = [
    "1" * 400, "-" + "9" * 5000, "0x" + "f" * 9000, "1e999", "-1e999", "1e-999", "1e999999999", "NaN", "Infinity",
    "nan", "inf", "[" * 3000, "{" * 3000, "(" * 3000, "[" * 3000 + "]" * 3000, "(" * 90 + "1" + ")" * 90, "{[1]: 2}",
    "{{1}: 2}",
    "{1: [1], 1: {}}", "{0x" + "f" * 5000 + ": 1}", "{1, [2]}", "1j", "b'x'", "...", "None", "\x00", "1\x00", "\ud800",
    "\udfff1", "\U0010ffff", "\ue000", "a" * 3000, "9" * 3000, "-" * 3000 + "1", "1" + "+1" * 900, "not " * 900 + "1",
    r"\frac" * 300, r"\frac{1}{" * 300, r"\sqrt{" * 300, "^" * 900, "_" * 900, r"\text{" * 300, r"\left(" * 300, "\\",
    "\\\\" * 500, "$" * 901, "|" * 900, "," * 900, "=" * 900, "or " * 900, r"\begin{pmatrix}", r"\end{pmatrix}", r"\pm",
    r"\overline{", "9^{9^{9^{9}}}", "9**9**9**9", "(10^9)!", "9!!!!", r"\sum_{n=1}^{\infty} n", r"\int_0^1 x dx",
    "½" * 400,
    "²" * 400, "٣" * 400, "ﷺ" * 400, "\u202e12", "\u200b1", "＄１", "１/０", "1/0", "0/0", "0^0", r"\log 0", "\n" * 400,
    '{"a": 1, "a": 2}', '{"__proto__": 1}', '[{"$ref": "#"}]', "&a [*a]", "[...]", "{...}", "'" * 301, '"' * 301,
    "\\u0000",
    "lambda: 1", "__import__('os').abort()", "().__class__", "f'{1}'", "1_000", "0o7", "1if 1else 2", "*a, b", ";", "#",
]  # fmt: skip
FORMS = [
    "%s", r"\boxed{%s}", "Answer: %s", "#### %s", "<answer>%s</answer>", "```json\n%s\n```", "</think>%s",
    "<tool_call>%s</tool_call>", '{"output": %s}', '["%s"]', "[%s, 1]", "{%s: 1}", "B %s", "1|%s",
]  # fmt: skip
TRUTHS = {
    "gsm8k": ["1.5", "3", r"\{1, 2\}", "x > 3", "oxidation"],
    "gpqa": ["B"],
    "bfcl": ['[{"name": "f", "arguments": {"a": 0.5}}]', "0.5", "[[1]]"],
    "logic__arcagi1": ["[[1, 0]]", "0.5", '{"a": 0.5}'],
    "table__hitab": ["1.5|peru"],
    "reasoning_gym/chain_sum": ["2"],
    "reasoning_gym/game_of_life": ["2"],
    "google/IFEval": [{"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}],
}
ENTRY = reasoning_gym.create_dataset("game_of_life", seed=3, size=1)[0]
SOURCES = [source for source in TRUTHS if source != "google/IFEval" or find_spec("lm_eval")]
TEXTS = st.builds(
    lambda form, parts: form.replace("%s", "".join(parts)),
    st.sampled_from(FORMS),
    st.lists(st.sampled_from(HOSTILE) | st.text(max_size=20), min_size=1, max_size=3),
)


def assert_no_exception(responses: list[str]) -> None:
    """What runs into the limit is no judgement; anything else has one."""
    options = {"gsm8k": {"verifier": "math", "time_limit_s": 2, "text": True}}

    async def go():
        asked = [(source, truth, text) for text in responses for source in SOURCES for truth in TRUTHS[source]]
        told = [{"data_source": source, "entry": ENTRY if "life" in source else None} for source, _, _ in asked]
        verdicts = [
            verifier_of(source, options).verify(text, truth, extra)
            for (source, truth, text), extra in zip(asked, told, strict=True)
        ]
        return zip(asked, await asyncio.gather(*verdicts), strict=True)

    for (source, truth, text), verdict in asyncio.run(go()):
        assert not verdict.failed or "no result within" in verdict.reason, (source, truth, text[:200], verdict)


@pytest.mark.extended
@pytest.mark.parametrize("form", FORMS)
def test_whatever_a_model_writes_is_judged(form):
    assert_no_exception([form.replace("%s", text) for text in HOSTILE])


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(TEXTS)
def test_so_is_any_mixture_of_it(response):
    assert_no_exception([response])


@pytest.mark.parametrize(
    ("source", "answer", "truth", "right"),
    [
        ("bfcl", "1" * 400, "0.5", False), ("bfcl", "0.5", "1" * 400, False), ("bfcl", "1" * 400, "1" * 400, True),
        ("bfcl", "1" * 400, "1" * 399 + "2", False), ("bfcl", "1e999", "0.5", False), ("bfcl", "[NaN]", "[0.5]", False),
        ("bfcl", '{"id": 1234567890123}', '{"id": 1234567890124}', False), ("bfcl", "2.0", "2", True),
        ("logic__arcagi1", "1" * 400, "0.5", False), ("logic__arcagi1", "{[1]: 2}", "0.5", False),
        ("logic__arcagi1", "{0x" + "f" * 5000 + ": 1}", '{"a": 1}', False), ("logic__arcagi1", "0.5", "0.5", True),
    ],
)  # fmt: skip
def test_numbers_beyond_floats_and_keys_that_are_none(source, answer, truth, right):
    verdict = asyncio.run(
        verifier_of(source).verify(f"<answer>{answer}</answer>" * (source != "bfcl") or answer, truth, {})
    )
    assert (verdict.acc, verdict.failed) == (float(right), False)


def test_results_of_calls_beyond_floats_are_unequal():
    assert not equal(10**400, 0.5) and not equal(0.5, 10**400) and equal(10**400, 10**400)
    assert not equal(10**400, 10**400 + 1) and not equal(10**400, math.inf) and not equal(10**400, math.nan)


def test_the_counts_in_the_docs():
    text = (HERE.parents[1] / "docs/rewards.md").read_text(encoding="utf-8")
    told = re.search(r"(\d+) hedges .* (\d+) usual forms", text.replace("\n", " "))
    assert told and (int(told[1]), int(told[2])) == (len(set(HEDGED)), len(set(RIGHT)))
