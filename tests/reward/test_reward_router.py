"""Which verifier judges what, what verl gets, and data that is refused at start."""

import asyncio

import pandas as pd
import pytest

from reward.check import main as check_main
from reward.router import UnknownSourceError, check_sources, compute_score, find_route


def score(source, response, truth, **kwargs):
    return asyncio.run(compute_score(source, response, truth, **kwargs))


@pytest.mark.parametrize(
    ("source", "verifier"),
    [
        ("openai/gsm8k", "math"), ("DAPO-Math-17k", "math"), ("aime24", "math"), ("AIME25", "math"),
        ("math500", "math"), ("amc23", "math"), ("hmmt25", "math"), ("brumo25", "math"), ("taco", "code"),
        ("livecodebench", "code"),
        ("Idavidrein/gpqa", "choice"), ("mmlu_pro", "choice"), ("bfcl_v3", "json"), ("google/IFEval", "ifeval"),
        ("reasoning_gym/chain_sum", "reasoning_gym"), ("chain_sum", "reasoning_gym"),
    ],
)  # fmt: skip
def test_known_sources(source, verifier):
    assert find_route(source) == (verifier, {})


def test_the_runs_own_routes_come_first():
    assert find_route("gsm8k", {"gsm*": "choice"}) == ("choice", {})
    assert find_route("mine", {"mine": {"verifier": "math", "time_limit_s": 2}}) == ("math", {"time_limit_s": 2})


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        ({}, "no verifier for data_source 'mine'"),
        ({"mine": "maths"}, "no verifier 'maths'"),
        ({"mine": {"time_limit_s": 2}}, "name a verifier"),
        ({"mine": {"verifier": "math", "timelimit": 2}}, "does not take these options"),
        ({"mine": {"verifier": "math", "time_limit_s": -1}}, "time_limit_s"),
    ],
)
def test_routes_that_cannot_work(routes, message):
    with pytest.raises(ValueError, match=message):
        score("mine", "x", "1", routes=routes)


def test_what_verl_gets():
    keys = {"score", "acc", "verifier_failed", "format_bonus"}
    right = score("gsm8k", "#### 5", "5")
    assert set(right) == keys and right["score"] == right["acc"] == 1.0
    assert score("chain_sum", "<think>1 + 1</think>2", "2")["score"] == 1.0
    assert score("gpqa", r"\boxed{B}", "C") == dict.fromkeys(keys, 0.0)


def test_verl_loads_the_router_by_the_name_in_the_docs():
    from verl.utils.import_utils import load_extern_object

    assert load_extern_object("pkg://reward.router", "compute_score") is compute_score


def test_a_truth_that_cannot_be_read_is_a_failed_verifier(caplog):
    result = score("gpqa", r"\boxed{B}", "both")
    assert result["verifier_failed"] == 1.0 and result["score"] == 0.0
    assert "one letter" in caplog.text


def test_a_bonus_for_the_form_is_apart_from_accuracy():
    formed, bare, twice = (
        score("gsm8k", text, "7", bonus=0.1)
        for text in ("<think>so</think>#### 5", "#### 5", "<think></think></think>#### 5")
    )
    assert (formed["score"], formed["acc"], formed["format_bonus"]) == (0.1, 0.0, 0.1)
    assert bare["score"] == twice["score"] == 0.0
    assert score("gsm8k", "<think>so</think>#### 7", "7", bonus=0.1)["score"] == pytest.approx(1.1)


@pytest.mark.parametrize(
    ("response", "right"),
    [
        (r"\boxed{B}", True), ("Answer: (B)", True), ("**Answer:** B", True), ("Answer: B. because", True),
        ("the answer is B", True), ("The correct option is (B).", True), ("so\n\nB", True), ("**B**", True),
        (r"\boxed{\text{B}}", True), ("<think>Answer: B</think>Answer: C", False), ("A or B", False), ("", False),
        ("The answer is a secret", False), ("Answer: Because", False), (r"\boxed{A, B}", False), ("B" * 10**6, False),
    ],
)  # fmt: skip
def test_choices(response, right):
    assert score("gpqa", response, "B")["acc"] == float(right)


CALLS = '[{"name": "f", "arguments": {"a": 1, "b": [1, 2]}}, {"name": "g", "arguments": {}}]'
F, G = '{"arguments": {"b": [1, 2.0], "a": 1}, "name": "f"}', '{"name": "g", "arguments": {}}'
TRUE_F = F.replace('"a": 1', '"a": true')


@pytest.mark.parametrize(
    ("response", "right"),
    [
        (f"<tool_call>\n{F}\n</tool_call><tool_call>{G}</tool_call>", True),
        (f"<tool_call>{G}</tool_call><tool_call>{F}</tool_call>", True),
        (f"ok\n```json\n[{F}, {G}]\n```", True),
        (f"[{F}, {G}]", True),
        (f"<think>[{F}, {G}]</think>no", False),
        (f"<tool_call>{F}</tool_call>", False),
        (f"<tool_call>{F}</tool_call><tool_call>{F}</tool_call>", False),
        (f"<tool_call>{F}</tool_call><tool_call>{{</tool_call>", False),
        (f"[{F}, {G.replace('g', 'h')}]", False),
        (f"[{F.replace('2.0', 'NaN')}, {G}]", False),
        (f"[{TRUE_F}, {G}]", False),
        ("[" * 100_000, False),
        ("", False),
    ],
)
def test_tool_calls(response, right):
    result = score("bfcl", response, CALLS)
    assert (result["acc"], result["verifier_failed"]) == (float(right), 0.0)


def test_the_order_of_calls_can_count():
    routes = {"bfcl": {"verifier": "json", "ordered": True}}
    assert score("bfcl", f"[{F}, {G}]", CALLS, routes=routes)["acc"] == 1.0
    assert score("bfcl", f"[{G}, {F}]", CALLS, routes=routes)["acc"] == 0.0


def write(path, sources):
    pd.DataFrame({"data_source": sources, "prompt": "x"}).to_parquet(path)
    return str(path)


def test_data_is_scanned_at_start(tmp_path, capsys):
    good = write(tmp_path / "a.parquet", ["gsm8k"] * 3 + ["gpqa"])
    bad = write(tmp_path / "b.parquet", ["gsm8k", "my_own"])
    assert check_sources([good]) == {"gpqa": "choice", "gsm8k": "math"}
    with pytest.raises(UnknownSourceError, match="my_own.*routes"):
        check_sources([good, bad])
    assert check_sources([bad], {"my_*": "math"})["my_own"] == "math"
    assert check_main([good]) == 0 and "3 rows  gsm8k" in capsys.readouterr().out
    assert check_main([bad]) == 2 and "my_own" in capsys.readouterr().err
    pd.DataFrame({"prompt": ["x"]}).to_parquet(tmp_path / "c.parquet")
    assert check_main([str(tmp_path / "c.parquet")]) == 2 and "no column data_source" in capsys.readouterr().err
