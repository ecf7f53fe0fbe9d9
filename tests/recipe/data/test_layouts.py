"""Every named data set from a folder laid out as on the hub, with its columns and types; and what GURU's files hold."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recipe.poise.data.__main__ import make, parser
from recipe.poise.data.catalogue import CATALOGUE
from recipe.poise.data.convert import worded
from recipe.poise.data.schema import load
from reward.router import find_route

QUESTION = "How many?"
ARENA = {"problem_idx": 1, "problem": QUESTION, "answer": "34", "problem_type": ["Algebra"]}
AIME = {"problem_idx": 1, "problem": QUESTION, "answer": 34}
DAPO = {
    "data_source": "math_dapo",
    "prompt": [{"content": worded(QUESTION, "dapo"), "role": "user"}],
    "ability": "MATH",
    "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"},
    "extra_info": {"index": "9a9b6eb4"},
}
GSM8K = {"question": QUESTION, "answer": "17 * 2 = <<17*2=34>>34\n#### 34"}
MATH = {"problem": QUESTION, "level": "Level 3", "type": "Algebra", "solution": r"So \boxed{34}."}
SHARD = "00000-of-00001.parquet"
HUB = {
    "dapo-math-17k": {"data/dapo-math-17k.parquet": DAPO},
    "gsm8k": {
        f"main/train-{SHARD}": GSM8K,
        f"main/test-{SHARD}": GSM8K,
        f"socratic/train-{SHARD}": {"question": "no", "answer": "#### 1"},
    },
    "math": {f"data/train-{SHARD}": MATH, f"data/test-{SHARD}": MATH},
    "math500": {
        "test.jsonl": {"problem": QUESTION, "solution": "", "answer": "34", "subject": "Algebra", "level": 3}
        | {"unique_id": "test/algebra/1.json"}
    },
    "aime24": {
        f"data/train-{SHARD}": {"id": 60, "problem": QUESTION, "solution": r"\boxed{34}", "answer": "034", "url": "u"}
        | {"year": "2024"}
    },
    "aime25": {f"data/train-{SHARD}": AIME | {"problem_type": ["Algebra"]}},
    "aime26": {f"data/train-{SHARD}": AIME},
    "amc23": {f"test-{SHARD}": {"id": 0, "question": QUESTION, "answer": "34", "url": "u"}},
    "amc24": {"amc12-2024.jsonl": {"exam": "AMC 12A", "problem": QUESTION, "answer": 34}},
    "hmmt25": {f"data/train-{SHARD}": ARENA},
    "brumo25": {f"data/train-{SHARD}": ARENA},
}


def write(root: Path, layout: dict[str, dict]) -> None:
    for name, row in layout.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".jsonl":
            path.write_text(json.dumps(row) + "\n")
        else:
            pq.write_table(pa.Table.from_pylist([row]), path)


def run(*arguments: object) -> None:
    make(parser().parse_args(["--no-progress", *map(str, arguments)]))


def test_every_set_with_a_home_on_the_hub_is_tried():
    assert {*HUB, "guru"} == {name for name, entry in CATALOGUE.items() if entry.hub}


@pytest.mark.parametrize("name", sorted(HUB))
def test_layout(name, tmp_path):
    write(tmp_path / "in", HUB[name])
    run(name, "--source", tmp_path / "in", "--out", tmp_path / "o")
    for split in CATALOGUE[name].splits:
        [row] = load(tmp_path / "o" / name / f"{split}.parquet")
        assert row["reward_model"]["ground_truth"].lstrip("0") == "34" and QUESTION in row["prompt"][-1]["content"]
        assert find_route(row["data_source"])[0] == "math"
        kept = set(json.loads(row["extra_info"]["metadata"]))
        assert kept == {column for column in CATALOGUE[name].extra if column in next(iter(HUB[name].values()))}


def guru(source: str, truth: object, **extra: object) -> dict:
    return {
        "data_source": source, "prompt": [{"content": f"{source}?", "role": "user"}], "ability": source.split("__")[0],
        "apply_chat_template": True, "qwen2.5_7b_pass_rate": 0.5, "extra_info": {"index": 1, **extra},
        "reward_model": {"ground_truth": truth, "style": "rule"},
    }  # fmt: skip


GURU = {
    "train/math__combined_54.4k.parquet": guru("math__deepscaler_preview", "34"),
    "train/codegen__leetcode2k_1.3k.parquet": guru("codegen__leetcode2k", '{"functional": "x"}', prefix="import math"),
    "train/logic__zebra_puzzle_1.3k.parquet": guru("logic__zebra_puzzle", {"header": ["House"], "rows": [["1"]]}),
    "train/logic__ordering_puzzle_1.9k.parquet": guru("logic__ordering_puzzle", ["robin", "owl"]),
    "train/logic__graph_logical_1.2k.parquet": guru("logic__graph_logical", "node"),
    "train/logic__arcagi1_111.parquet": guru("logic__arcagi1", [[1, 0], [0, 2]]),
    "train/logic__barc_1.6k.parquet": guru("logic__barc", [[1]]),
    "train/simulation__codeio_3.7k.parquet": guru("simulation__codeio", '"output": {"a": 1}'),
    "train/stem__web_3.6k.parquet": guru("stem__web", "oxidation"),
    "train/table__hitab_4.3k.parquet": guru("table__hitab", "1200|peru"),
    "online_eval/stem__supergpqa_200.parquet": guru("stem__supergpqa", "C"),
    "offline_eval/math__math_500.parquet": guru("math__math", "1"),
}


def test_guru(tmp_path):
    write(tmp_path / "in", GURU)
    run("guru", "--source", tmp_path / "in", "--out", tmp_path / "o")
    made = {row["data_source"]: row for row in load(tmp_path / "o/guru/train.parquet")}
    assert len(made) == 10 and len(load(tmp_path / "o/guru/test.parquet")) == 1
    truths = {source: row["reward_model"]["ground_truth"] for source, row in made.items()}
    assert json.loads(truths["logic__zebra_puzzle"]) == {"header": ["House"], "rows": [["1"]]}
    assert json.loads(truths["logic__ordering_puzzle"]) == ["robin", "owl"]
    assert json.loads(truths["logic__arcagi1"]) == [[1, 0], [0, 2]]
    assert truths["simulation__codeio"] == '"output": {"a": 1}'
    kept = json.loads(made["codegen__leetcode2k"]["extra_info"]["metadata"])
    assert kept == {"extra_info": {"index": 1, "prefix": "import math"}}
    verifiers = {source: find_route(source)[0] for source in made}
    assert set(verifiers.values()) == {"math", "code", "value", "parts"} and verifiers["stem__web"] == "math"
    assert verifiers["simulation__codeio"] == "value"  # although its name has "code" in it
