"""The program that makes data sets, from local files: what it writes, what it refuses, what it does twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recipe.poise.data.__main__ import make, parser
from recipe.poise.data.build import MANIFEST, checksum
from recipe.poise.data.convert import worded
from recipe.poise.data.errors import DataError
from recipe.poise.data.schema import SCHEMA, load
from recipe.poise.quickstart.model import make_tokenizer
from recipe.poise.quickstart.tasks import distinct_problems

ROOT = Path(__file__).parents[3]


def lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parquet(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def run(*arguments: object) -> None:
    make(parser().parse_args(["--no-progress", *map(str, arguments)]))


def own(count: int, **more) -> list[dict]:
    return [{"data_source": "mine", "prompt": f"What is {i} + 1?", "answer": i + 1} | more for i in range(count)]


def dapo_row(problem: str, answer: str) -> dict:
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": worded(problem, "dapo"), "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": problem},
    }


def test_dapo_is_deduplicated_and_conflicts_go(tmp_path, capsys):
    once = [dapo_row("A?", "1"), dapo_row("B?", "2"), dapo_row("C?", "3"), dapo_row("D?", "1,000")]
    rows = once * 100 + [dapo_row("B?", "7"), dapo_row("D?", "1000.0"), dapo_row(" A?\n", "1")]
    parquet(tmp_path / "in/data/dapo-math-17k.parquet", rows)
    run("dapo-math-17k", "--source", tmp_path / "in", "--out", tmp_path)
    made = load(tmp_path / "dapo-math-17k/train.parquet")
    assert [row["reward_model"]["ground_truth"] for row in made] == ["1", "3", "1,000"]
    assert [row["extra_info"]["index"] for row in made] == [0, 1, 2]
    assert [row["extra_info"]["source_row"] for row in made] == [0, 2, 3]
    assert made[0]["prompt"] == once[0]["prompt"] and made[0]["data_source"] == "math_dapo"
    counts = json.loads((tmp_path / "dapo-math-17k" / MANIFEST).read_text())["splits"]["train"]
    assert counts["read"] == 403 and counts["written"] == 3
    assert (counts["conflicting_prompts"], counts["conflicting_rows"], counts["duplicates"]) == (1, 101, 299)
    said = capsys.readouterr().out
    assert "299 repeated rows dropped" in said and "1 prompts with conflicting answers dropped" in said


def test_whole_messages_can_be_worded_anew(tmp_path):
    parquet(tmp_path / "data/x.parquet", [dapo_row("A?", "1")])
    run("dapo-math-17k", "--source", tmp_path, "--out", tmp_path, "--template", "Q: {problem}")
    assert load(tmp_path / "dapo-math-17k/train.parquet")[0]["prompt"] == [{"role": "user", "content": "Q: A?"}]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_own_files_of_every_kind(tmp_path, suffix):
    rows = [{"q": {"text": f"Q{i}?"}, "gold": i, "level": "hard"} for i in range(3)]
    path = tmp_path / f"mine.{suffix}"
    if suffix == "parquet":
        parquet(path, rows)
    elif suffix == "json":
        path.write_text(json.dumps(rows))
    else:
        lines(path, rows)
    fields = ("--field", "prompt=q.text", "--field", "answer=gold", "--field", "extra=level")
    run("jsonl", "--source", path, "--out", tmp_path / "o", *fields, "--data-source", "me", "--split", "test")
    made = load(tmp_path / "o/mine/test.parquet")
    assert [row["reward_model"]["ground_truth"] for row in made] == ["0", "1", "2"]
    assert made[1]["prompt"][0]["content"].startswith("Q1?")
    assert json.loads(made[0]["extra_info"]["metadata"]) == {"level": "hard"}


def test_several_sets_from_one_folder_load_together_as_verl_does(tmp_path):
    lines(tmp_path / "in/gsm8k_train.jsonl", [{"question": f"{i}?", "answer": f"#### {i}"} for i in range(4)])
    lines(tmp_path / "in/gsm8k_test.jsonl", [{"question": "9?", "answer": "#### 9"}])
    lines(tmp_path / "in/aime24.jsonl", [{"id": 1, "problem": "p", "answer": "7", "url": "u"}])
    run("gsm8k", "aime24", "--source", tmp_path / "in", "--out", tmp_path)
    files = [tmp_path / name for name in ("gsm8k/train.parquet", "gsm8k/test.parquet", "aime24/test.parquet")]
    assert all(pq.read_schema(file).equals(SCHEMA) for file in files)
    loaded = [datasets.load_dataset("parquet", data_files=str(f), cache_dir=str(tmp_path))["train"] for f in files]
    assert len(datasets.concatenate_datasets(loaded)) == 6


def test_a_second_call_does_nothing_and_any_change_is_made_anew(tmp_path, capsys):
    source = lines(tmp_path / "mine.jsonl", own(3))
    arguments = ("jsonl", "--source", source, "--out", tmp_path / "o")
    run(*arguments)
    file, manifest = tmp_path / "o/mine/train.parquet", tmp_path / "o/mine" / MANIFEST
    first = json.loads(manifest.read_text())
    assert first["splits"]["train"]["sha256"] == checksum(file)
    assert first["source_files"] == {"mine.jsonl": checksum(source)}
    before = manifest.stat().st_mtime_ns
    run(*arguments)
    assert "already" in capsys.readouterr().out and manifest.stat().st_mtime_ns == before

    file.write_bytes(file.read_bytes()[:-1])  # a damaged file
    run(*arguments)
    assert json.loads(manifest.read_text()) == first and checksum(file) == first["splits"]["train"]["sha256"]
    run(*arguments, "--template", "plain")  # another request
    assert load(file)[0]["prompt"][0]["content"] == "What is 0 + 1?"
    lines(source, own(4))  # another source
    run(*arguments, "--template", "plain")
    assert len(load(file)) == 4
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["mine"]


def test_a_folder_of_someone_else_is_left_alone(tmp_path):
    source = lines(tmp_path / "mine.jsonl", own(1))
    (tmp_path / "o/mine").mkdir(parents=True)
    (tmp_path / "o/mine/notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        run("jsonl", "--source", source, "--out", tmp_path / "o")


BAD_ROWS = [
    ([{"data_source": "mine", "text": "x", "answer": 1}], r"no column prompt or problem.*--field prompt=COLUMN"),
    ([{"data_source": "mine", "prompt": "x", "gold": 1}], r"no column answer.*it has data_source, prompt, gold"),
    ([{"prompt": "x", "answer": 1}], r"no column data_source.*--data-source NAME"),
    (own(2) + own(1), r"1 duplicates of 3 rows.*row 2: the prompt of row 0 again.*--drop duplicates"),
    (own(2) + own(1, answer=7), r"2 duplicates of 3 rows.*--drop duplicates"),
    (own(2) + own(1, prompt=" "), r"1 malformed of 3 rows.*row 2: the prompt is empty.*--drop malformed"),
    (own(2) + own(1, answer=None), r"1 malformed.*row 2: the answer is null \(None\)"),
    (own(2) + own(1, prompt=[{"role": "user"}]), r"1 malformed.*neither text nor a list"),
    ([], "no row is left"),
]


@pytest.mark.parametrize(("rows", "said"), BAD_ROWS)
def test_bad_rows_are_refused_with_what_to_do(tmp_path, rows, said):
    source = lines(tmp_path / "mine.jsonl", rows)
    with pytest.raises(DataError, match=said):
        run("jsonl", "--source", source, "--out", tmp_path / "o")
    assert not list((tmp_path / "o").glob("*"))


def test_bad_rows_can_be_dropped_and_are_counted(tmp_path):
    rows = own(4) + own(1) + own(1, answer=None) + own(2, answer=99)[1:]
    source = lines(tmp_path / "mine.jsonl", rows)
    run("jsonl", "--source", source, "--out", tmp_path, "--drop", "duplicates", "--drop", "malformed")
    counts = json.loads((tmp_path / "mine" / MANIFEST).read_text())["splits"]["train"]
    assert {key: counts[key] for key in ("read", "malformed", "duplicates", "conflicting_rows", "written")} == {
        "read": 7, "malformed": 1, "duplicates": 1, "conflicting_rows": 2, "written": 3,
    }  # fmt: skip


def test_a_missing_parquet_column_is_named(tmp_path):
    source = parquet(tmp_path / "gsm8k_test.parquet", [{"query": "x", "answer": "#### 1"}])
    with pytest.raises(DataError, match="no column question for the prompt; it has query, answer"):
        run("gsm8k", "--source", source, "--split", "test", "--out", tmp_path / "o")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "mine.jsonl",
            '{"prompt": "x", "answer": 1, "data_source": "m"}\n{"prompt": "y", "ans',
            r"mine.jsonl:2 is not JSON",
        ),
        ("mine.jsonl", "[1, 2]\n", r"mine.jsonl:1 is not an object"),
        ("mine.json", '{"prompt": "x"}', "not a list of objects"),
        ("mine.json", '[{"prompt": "x"},]', "is not JSON"),
        ("mine.csv", "prompt,answer", "not one of .parquet"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        run("jsonl", "--source", tmp_path / name, "--out", tmp_path / "o")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(distinct_problems("warm", 64, 0)).save_pretrained(folder)
    return folder


def test_a_prompt_over_the_limit(tmp_path, tokenizer):
    source = lines(tmp_path / "mine.jsonl", own(2) + own(1, prompt="word " * 200))
    arguments = ("jsonl", "--source", source, "--out", tmp_path, "--tokenizer", tokenizer, "--max-prompt-length", 150)
    with pytest.raises(DataError, match=r"1 overlong of 3 rows.*row 2: \d+ tokens, the limit is 150.*--drop overlong"):
        run(*arguments)
    run(*arguments, "--drop", "overlong")
    assert len(load(tmp_path / "mine/train.parquet")) == 2
    for half in (("--max-prompt-length", 9), ("--tokenizer", tokenizer)):
        with pytest.raises(DataError, match="takes both"):
            run("jsonl", "--source", source, "--out", tmp_path, *half)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gsm9k"], "no data set 'gsm9k'; there are dapo-math-17k"),
        (["jsonl"], "no home on the hub"),
        (["gsm8k", "--source", "nowhere/at/all"], "no such file or folder, and no hub id"),
        (["jsonl", "--source", "{mine}", "--field", "prompt"], "want NAME=VALUE"),
        (["jsonl", "--source", "{mine}", "--field", "reward=x"], "there are prompt, answer, extra"),
        (["jsonl", "--source", "{mine}", "--template", "Solve it"], "{problem}"),
        (["gsm8k", "--source", "{mine}"], "which of train, test is this"),
        (["aime25", "--source", "{folder}"], "no file of aime25's split 'test'.*It holds mine.jsonl.*--files test="),
        (["aime24", "aime25", "--as", "x", "--source", "{mine}"], "one NAME"),
        (["guru", "--source", "{messages}", "--split", "train", "--template", "boxed"], "whole messages"),
    ],
)
def test_options_that_make_no_sense(tmp_path, arguments, said):
    places = {"{mine}": lines(tmp_path / "in/mine.jsonl", own(1)), "{folder}": tmp_path / "in"}
    places["{messages}"] = parquet(tmp_path / "more/messages.parquet", [dapo_row("A?", "1")])
    with pytest.raises(DataError, match=said):
        run(*(places.get(argument, argument) for argument in arguments), "--out", tmp_path / "o")


def test_a_hub_set_without_network_says_what_to_do(tmp_path):
    command = [sys.executable, "-m", "recipe.poise.data", "aime25", "--out", str(tmp_path / "o")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "error: MathArena/aime_2025" in done.stderr and "--source DIR" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_train_prompt_that_is_tested_is_told(tmp_path, capsys):
    lines(tmp_path / "in/math_train.jsonl", [{"problem": f"{i}?", "solution": r"\boxed{1}"} for i in range(3)])
    lines(tmp_path / "in/math_test.jsonl", [{"problem": "1?", "solution": r"\boxed{1}"}])
    run("math", "--source", tmp_path / "in", "--out", tmp_path)
    said = capsys.readouterr().out
    assert "1 prompts of math are in train and in test" in said
    assert "known to have 7500 rows, this source has 3" in said


def test_loading_refuses_what_is_not_verls(tmp_path):
    with pytest.raises(DataError, match="lacks prompt, reward_model, it has data_source"):
        load(parquet(tmp_path / "a.parquet", [{"data_source": "x"}]))
    row = {"data_source": "x", "prompt": [{"role": "user", "content": "?"}], "reward_model": {"ground_truth": ""}}
    with pytest.raises(DataError, match="row 0: reward_model.ground_truth is empty"):
        load(parquet(tmp_path / "b.parquet", [row]))
