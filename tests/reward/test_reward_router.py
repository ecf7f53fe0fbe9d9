"""Which verifier judges what, what verl gets, and data that is refused at start."""

import asyncio
import math
import re

import pandas as pd
import pytest

from reward.check import main as check_main
from reward.math_verifier import MathVerifier
from reward.router import UnknownSourceError, check_kwargs, check_sources, compute_score, find_route


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
        (
            {"mine": {"verifier": "math", "timelimit": 2}},
            "routes.mine.timelimit: there is no such option; there are: time_",
        ),
        ({"mine": {"verifier": "math", "time_limit_s": -1}}, r"routes.mine.time_limit_s=-1: want a number above 0"),
        ({"mine": None}, r"routes.mine=None: want a verifier's name"),
        ({"mine": ["math"]}, r"routes.mine=\['math'\]: want"),
        ({"mine": {"verifier": None}}, "routes.mine: no verifier None"),
        ("math", "routes='math': want patterns"),
        ({"mine": "no_such_module:Class"}, "routes.mine: verifier no_such_module:Class cannot be loaded"),
        ({"mine": "json:Missing"}, "routes.mine: verifier json:Missing cannot be loaded"),
        ({"mine": {"verifier": "math", "workers": object()}}, "routes.mine={'workers'"),
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


BAD_OPTIONS = [
    ("math", "time_limit_s", math.nan), ("math", "time_limit_s", True), ("math", "time_limit_s", "5"),
    ("math", "time_limit_s", 0), ("math", "time_limit_s", math.inf), ("math", "time_limit_s", None),
    ("math", "workers", 1.5), ("math", "workers", 0), ("math", "workers", True), ("math", "workers", "2"),
    ("math", "text", "yes"), ("math", "text", 1), ("parts", "text", "no"), ("parts", "time_limit_s", math.nan),
    ("parts", "workers", -1), ("value", "case", "true"), ("json", "ordered", 1), ("choice", "letters", 4),
    ("reasoning_gym", "time_limit_s", math.nan), ("reasoning_gym", "workers", 0), ("ifeval", "partial", "yes"),
    ("ifeval", "time_limit_s", True), ("ifeval", "workers", 1.5), ("code", "partial", 1), ("code", "sandbox_url", 5),
    ("code", "max_cases", 1.5), ("code", "memory_mb", "big"),
]  # fmt: skip


@pytest.mark.parametrize(("verifier", "option", "value"), BAD_OPTIONS)
def test_options_of_another_kind_are_refused_before_the_run(tmp_path, verifier, option, value):
    """Whether a row needs the route or not."""
    file = write(tmp_path / "a.parquet", ["gsm8k", "reasoning_gym/chain_sum"])
    for pattern in ("gsm*", "mine*") if verifier != "reasoning_gym" else ("*chain_sum", "mine*"):
        with pytest.raises(ValueError, match=rf"routes\.{re.escape(pattern)}\.{option}"):
            check_sources([file], {pattern: {"verifier": verifier, option: value}})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MathVerifier(time_limit_s=math.nan), "time_limit_s=nan: want a number above 0"),
        (lambda: MathVerifier(time_limit_s="5"), "time_limit_s='5'"),
        (lambda: MathVerifier(workers=1.5), "workers=1.5: want a whole number"),
        (lambda: MathVerifier(text="yes"), "text='yes': want true or false"),
    ],
)
def test_a_verifier_that_is_made_by_hand_looks_at_its_options_too(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"bonuss": 0.1}, "reward_kwargs.bonuss: there is no such setting; did you mean bonus"),
        ({"route": {}}, "reward_kwargs.route: there is no such setting; did you mean routes"),
        ({"bonus": "abc"}, "reward_kwargs.bonus='abc': want a number"),
        ({"bonus": math.nan}, "bonus=nan"),
        ({"bonus": -0.1}, "bonus=-0.1"),
        ({"bonus": True}, "bonus=True"),
        ({"bonus": None}, "bonus=None"),
        ({"routes": {"x": None}}, "routes.x=None"),
        ({"routes": {"x": {"verifier": "math", "workers": 0}}}, "routes.x.workers=0"),
    ],
)
def test_reward_kwargs_are_looked_at_before_a_run(kwargs, message):
    with pytest.raises(ValueError, match=message):
        check_kwargs(kwargs)
    if "bonus" in kwargs:
        with pytest.raises(ValueError, match="bonus"):
            score("gsm8k", "#### 5", "5", **kwargs)
    check_kwargs(None)
    check_kwargs({"bonus": 0, "routes": {"x*": {"verifier": "math", "time_limit_s": 2}}})


def test_what_verl_passes_for_reward_models_is_taken_and_nothing_else():
    """By the names that verl's own reward managers pass."""
    import inspect

    from verl.experimental.reward_loop.reward_manager import dapo, gdpo, limited, naive

    for manager in (dapo, gdpo, limited, naive):
        source = inspect.getsource(manager)
        block = re.search(r"extra_reward_kwargs = \((.*?)if self", source, re.DOTALL)[1]
        names = re.findall(r'"(\w+)":', block)
        assert names == ["reward_router_address", "reward_model_tokenizer"]
        assert score("gsm8k", "#### 5", "5", **dict.fromkeys(names, object()))["acc"] == 1.0
    with pytest.raises(TypeError, match="bonuss"):
        score("gsm8k", "#### 5", "5", bonuss=0.1)


@pytest.mark.parametrize("truth", [None, math.nan, ["1", None]])
@pytest.mark.parametrize("source", ["gsm8k", "gpqa", "bfcl", "logic__arcagi1", "table__hitab", "chain_sum"])
def test_a_missing_truth_is_a_failure_that_says_so(source, truth, caplog):
    result = score(source, "</think>None \\boxed{None}", truth)
    assert (result["score"], result["verifier_failed"]) == (0.0, 1.0)
    assert "ground truth is missing" in caplog.text


def test_missing_truths_are_found_at_start(tmp_path):
    def rows(truths, sources):
        file = tmp_path / "t.parquet"
        models = [{"style": "rule", "ground_truth": truth} for truth in truths]
        pd.DataFrame({"data_source": sources, "reward_model": models}).to_parquet(file)
        return [str(file)]

    assert check_sources(rows(["1", "2"], ["gsm8k"] * 2)) == {"gsm8k": "math"}
    with pytest.raises(ValueError, match=r"t\.parquet: 1 rows have no ground truth \(null\), the first is row 1"):
        check_sources(rows(["1", None], ["gsm8k"] * 2))
    # a task of reasoning-gym may have its truth in its entry
    assert check_sources(rows(["1", None], ["gsm8k", "reasoning_gym/countdown"]))
    assert check_sources(rows([["1"], ["2", "3"]], ["gsm8k"] * 2)) == {"gsm8k": "math"}


def test_a_task_that_reasoning_gym_does_not_have(tmp_path):
    with pytest.raises(UnknownSourceError, match="no task 'chain_sums'; near it: chain_sum"):
        check_sources([write(tmp_path / "a.parquet", ["reasoning_gym/chain_sums"])])
    with pytest.raises(UnknownSourceError, match="no task 'nope'"):
        check_sources([write(tmp_path / "a.parquet", ["mine/nope"])], {"mine/*": "reasoning_gym"})


def test_files_that_cannot_be_read_are_said_without_a_traceback(tmp_path, capsys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, latin, cut, null = (str(tmp_path / f"{name}.parquet") for name in ("text", "latin", "cut", "null"))
    (tmp_path / "text.parquet").write_text("no parquet")
    names = pa.Array.from_buffers(pa.utf8(), 1, pa.array([b"caf\xe9"]).buffers())
    pq.write_table(pa.table({"data_source": names}), latin)
    whole = (tmp_path / "latin.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    pd.DataFrame({"data_source": ["gsm8k", None]}).to_parquet(null)
    for file in (text, latin, cut, str(tmp_path / "missing.parquet"), str(tmp_path)):
        with pytest.raises(ValueError, match=f"{re.escape(file)} cannot be read as parquet"):
            check_sources([file])
        assert check_main([file]) == 2
        assert f"error: {file} cannot be read as parquet" in capsys.readouterr().err
    assert check_main([null]) == 2 and "data_source is None in 1 rows" in capsys.readouterr().err
    for routes, message in (("{", "this is no JSON"), ("[1]", "want patterns"), ('{"x": null}', "routes.x=None")):
        assert check_main(["--routes", routes, null]) == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("response", "right"),
    [
        (r"\boxed{B or C}", False), ("Answer: B or C", False), ("the answer is B or C", False), ("Answer: B/C", False),
        (r"\boxed{B, C}", False), (r"\boxed{B} or \boxed{C}", False), (r"\boxed{\text{B and C}}", False),
        ("The answer is B or maybe C.", False), (r"\boxed{B C}", False), ("Answer: (B) or (C)", False),
        ("Answer: B, A cat", True), ("Answer: B. A cat", True), ("Answer: B) I think", True), ("Answer: B, B", True),
    ],
)  # fmt: skip
def test_two_choices_are_none(response, right):
    assert score("gpqa", response, "B")["acc"] == float(right)
