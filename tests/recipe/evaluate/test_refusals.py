"""What an evaluation refuses at its start, before a model is loaded: one sentence with the value and what is wanted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file

from recipe.poise.evaluate.__main__ import asked_of, main, parser
from recipe.poise.evaluate.engine import Response, environments
from recipe.poise.evaluate.models import check_shards, resolve
from recipe.poise.evaluate.prompts import context_of, render
from recipe.poise.evaluate.run import _scored
from recipe.poise.evaluate.samples import SampleFile
from recipe.poise.evaluate.scoring import Scorer, load_reward
from recipe.poise.evaluate.settings import Engine, EvaluationError
from recipe.poise.evaluate.suites import Suite
from recipe.poise.quickstart.model import make_tokenizer
from recipe.poise.quickstart.tasks import distinct_problems

ROOT = Path(__file__).parents[3]
SAMPLE = {
    "problem": 0, "sample": 0, "response": "2", "tokens": 1, "truncated": False,
    "score": 1.0, "acc": 1.0, "verifier_failed": False,
}  # fmt: skip


def row(source: str = "math", truth: str = "2") -> dict:
    message = {"role": "user", "content": "1 + 1"}
    return {"data_source": source, "prompt": [message], "reward_model": {"style": "rule", "ground_truth": truth}}


def suite(path: Path, *rows: dict) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows) or [row()]), path)
    return path


@pytest.fixture
def model(tmp_path) -> Path:
    """A folder that is found and read as a model's, and ends before any engine would start: it has no tokenizer."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    save_file({"w": np.zeros(2, np.float32)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def said(tmp_path, model, monkeypatch, capsys):
    """A function that runs the program; its exit status, and what it said on stderr."""

    def run(*options: object) -> tuple[int, str]:
        if "--suites" not in options:
            options = ("--suites", f"one={suite(tmp_path / 'one.parquet')}", *options)
        given = {"--model": model, "--out": tmp_path / "out", "-k": 1}
        given = {name: value for name, value in given.items() if name not in options}
        command = [*(part for pair in given.items() for part in pair), *options]
        monkeypatch.setattr("sys.argv", ["evaluate", "--no-progress", *map(str, command)])
        capsys.readouterr()
        try:
            status = main()
        except SystemExit as error:  # argparse
            status = int(str(error.code))
        text = capsys.readouterr().err
        assert "Traceback" not in text and (status == 0 or "error: " in text)
        return status, text

    return run


NUMBERS = [
    ("-k", ["0", "-3", "1000000", "nan", "many", ""]),
    ("--temperature", ["-0.1", "nan", "inf", "-inf", "2.1", "hot"]),
    ("--top-p", ["0", "-1", "1.01", "nan", "inf", "most"]),
    ("--top-k", ["-7", "0", "-2", "3000000000", "1.5", "nan", "few"]),
    ("--max-tokens", ["0", "-1", "9999999999", "nan", "long"]),
    ("--seed", ["-1", "4294967296", "0.5", "nan", "x"]),
    ("--data-parallel", ["-1", "nan", "two"]),
    ("--tensor-parallel", ["0", "-1", "nan", "two"]),
    ("--max-num-seqs", ["0", "-1", "9999999999", "nan", "two"]),
    ("--max-model-len", ["0", "-1", "9999999999", "nan", "two"]),
    ("--gpu-memory-utilization", ["7", "0", "-0.5", "nan", "inf", "half"]),
    ("--dtype", ["float99", "", "nan", "int8"]),
    ("--chat-template", ["[1]", "3", "null", "{", '{"a": NaN}', '{"a": "\\ud83d"}', "[" * 100_000]),
]


@pytest.mark.parametrize(("option", "value"), [(option, value) for option, values in NUMBERS for value in values])
def test_a_value_out_of_range_is_refused_with_what_is_wanted(said, tmp_path, option, value):
    status, text = said(f"{option}={value}" if option != "-k" else f"-k{value}", "--model", "/no/such/model")
    assert status in (1, 2) and not (tmp_path / "out").exists()
    last = text.strip().splitlines()[-1]  # argparse prints the usage first
    assert option in last and "/no/such/model" not in last
    assert status == 2 or "want" in last or "no JSON file can hold" in last


@pytest.mark.parametrize("option", [["--top-k", "-1"], ["--temperature", "0"], ["--dtype", "half"], ["--top-p", "1"]])
def test_values_at_the_edge_are_taken(tmp_path, model, option):
    command = ["--model", str(model), "--suites", str(suite(tmp_path / "one.parquet")), "--out", str(tmp_path / "o")]
    assert asked_of(parser().parse_args([*command, *option])).k == 32


def test_more_engines_than_cores():
    with pytest.raises(EvaluationError, match=r"--data-parallel 100000 on a CPU of \d+ cores: want at most"):
        environments([], Engine(data_parallel=100_000))


def test_an_unknown_data_source_is_found_at_the_start(said, tmp_path):
    file = suite(tmp_path / "one.parquet", row(), row("my_riddles"))
    status, text = said("--suites", file, "--model", "/no/such/model")
    assert status == 1 and "suite one: the router has no verifier for data_source 'my_riddles'" in text
    assert "--data-source" in text and "--reward FILE.py:FUNCTION" in text
    (tmp_path / "mine.py").write_text("def judge(data_source, solution_str, ground_truth, extra_info): return 1.0\n")
    status, text = said("--suites", file, "--model", "/no/such/model", "--reward", f"{tmp_path}/mine.py:judge")
    assert "--model '/no/such/model': no such folder" in text  # another reward knows its own sources


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", "cannot be read as parquet"),
        (b"PAR1" + b"x" * 60 + b"PAR1", "cannot be read as parquet"),
        (b"no parquet", "cannot be read as parquet"),
    ],
)
def test_an_unreadable_suite(said, tmp_path, content, wanted):
    (tmp_path / "bad.parquet").write_bytes(content)
    status, text = said("--suites", tmp_path / "bad.parquet")
    assert status == 1 and wanted in text and "bad.parquet" in text


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"reward_model": {"style": "rule", "ground_truth": None}}, "row 1: reward_model.ground_truth is empty"),
        ({"extra_info": "text"}, "row 1: extra_info is not a struct"),
        ({"ability": 3}, "row 1: ability is not text"),
    ],
)
def test_a_bad_row_of_a_suite_is_named(said, tmp_path, change, wanted):
    good = {"extra_info": None, "ability": None}
    status, text = said("--suites", suite(tmp_path / "bad.parquet", row() | good, row() | good | change))
    assert status == 1 and wanted in text


@pytest.mark.parametrize("name", ["../x", "a/b", ".x", "a b", "", "a\nb", "x" * 101])
def test_suites_that_name_no_file(said, tmp_path, name):
    for value in (name, f"{name}={suite(tmp_path / 'x y.parquet')}"):
        status, text = said("--suites", value)
        assert status == 1 and "want letters, digits" in text


@pytest.mark.parametrize("out", ["file", "file/x", "x" * 300])
def test_an_out_that_cannot_be_written(said, tmp_path, out):
    (tmp_path / "file").write_text("in the way")
    status, text = said("--out", tmp_path / out, "--model", "/no/such/model")
    assert status == 1 and "--out" in text and "cannot be written" in text and "another folder" in text


@pytest.mark.parametrize(
    "name", ["/no/such/model", "", "nowhere", "a/b/c", "~nobody-of-that-name/x", "..x/--y", "a" * 300, "no/such-model"]
)
def test_a_model_that_does_not_exist(said, name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    status, text = said(f"--model={name}")
    assert status == 1 and (name in text)


def test_a_model_whose_files_are_not_whole(said, model):
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[:-3])
    status, text = said()
    assert status == 1 and "model.safetensors is not whole" in text
    (model / "model.safetensors").write_bytes(whole)
    (model / "config.json").unlink()
    assert "neither a model folder" in said()[1]


@pytest.mark.parametrize("content", [b"", b"../../elsewhere", b"\xff\xfe", b"12a", b"7"])
def test_a_checkpoint_folder_that_names_no_step(said, tmp_path, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/latest_checkpointed_iteration.txt").write_bytes(content)
    status, text = said("--model", tmp_path / "run")
    assert status == 1 and "name a global_step_N folder" in text


BAD_LINES = [
    ("[1]", "want an object of problem, sample"), ('{"problem": 0}', "want an object of problem"), ("7", "want an"),
    (json.dumps(SAMPLE | {"more": 1}), "want an object"), (json.dumps(SAMPLE | {"problem": "0"}), "problem is '0'"),
    (json.dumps(SAMPLE | {"problem": -1}), "problem is -1"), (json.dumps(SAMPLE | {"sample": 0.0}), "sample is 0.0"),
    (json.dumps(SAMPLE | {"acc": float("nan")}), "acc is nan"), (json.dumps(SAMPLE | {"acc": True}), "acc is True"),
    (json.dumps(SAMPLE | {"response": None}), "response is None"),
    (json.dumps(SAMPLE | {"truncated": 1}), "truncated is 1"),
    ("rubbish", "is not JSON"), ("", "is not JSON"), ("[" * 100_000, "is not JSON"), ("\ud83d", "is not JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "wanted"), BAD_LINES)
def test_a_broken_or_foreign_line_among_the_samples(tmp_path, line, wanted):
    path = tmp_path / "s.jsonl"
    good = json.dumps(SAMPLE)
    content = "\n".join(['{"settings": {}}', good, line, good, ""])
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(EvaluationError, match=r"s.jsonl:3 is not .*remove this line and run again") as refused:
        SampleFile(path, {})
    assert wanted in str(refused.value) and path.read_bytes() == content.encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("line", ["[]", "3", "null", '"text"', "{}", '{"settings": 1}', '{"settings": null}'])
def test_samples_without_their_settings(tmp_path, line):
    (tmp_path / "s.jsonl").write_text(f"{line}\n{json.dumps(SAMPLE)}\n")
    with pytest.raises(EvaluationError, match="does not begin with its settings; remove it or give another --out"):
        SampleFile(tmp_path / "s.jsonl", {})


def test_a_sample_of_a_problem_that_is_not_in_the_suite(tmp_path):
    (tmp_path / "s.jsonl").write_text(f'{{"settings": {{}}}}\n{json.dumps(SAMPLE | {"problem": 5})}\n')
    with pytest.raises(EvaluationError, match="a sample of problem 5, the suite has 2"):
        list(SampleFile(tmp_path / "s.jsonl", {}).missing(2, 1))


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("import no_such_module_here", "ModuleNotFoundError: No module named 'no_such_module_here'"),
        ("1 +", "SyntaxError"),
        ("raise KeyError('oh')", r"KeyError: 'oh' \(.*mine.py:1\)"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("x = 1", "judge"),
        ("judge = 1", "is not a function"),
    ],
)
def test_a_reward_that_cannot_be_loaded(tmp_path, content, wanted):
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(EvaluationError, match=rf"--reward .*mine.py:judge.*{wanted}"):
        load_reward(f"{tmp_path}/mine.py:judge")


def test_a_reward_that_raises_says_on_what_and_where():
    def judge(data_source, solution_str, ground_truth, extra_info):
        raise KeyError("oh")

    scorer = Scorer(judge)
    responses = [Response(("one", 0, 3), "2", 1, False)]
    with pytest.raises(EvaluationError, match=r"sample 3 of problem 0 of one: KeyError: 'oh' \(.*refusals.py:\d+\)"):
        list(_scored(responses, {"one": Suite("one", [row()], "")}, scorer))
    scorer.close()


def test_a_chat_template_that_does_not_take_a_prompt(tmp_path):
    tokenizer = make_tokenizer(distinct_problems("warm", 64, 0))
    one = Suite("one", [row(), row() | {"prompt": [{"role": "system", "content": "x"}]}], "")
    for name in ("tokenize", "return_dict", "conversation", "return_tensors", "padding"):
        tokenizer.save_pretrained(tmp_path)
        with pytest.raises(EvaluationError, match=f"{name} is no variable of a chat template"):
            render(tmp_path, [one], {name: True})
    tokenizer.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}x"
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(
        EvaluationError, match=r"problem 1 of one: .*does not take this prompt \(TemplateError: no system"
    ):
        render(tmp_path, [one], {"enable_thinking": False})


@pytest.mark.parametrize("config", ["{", "[]", '{"model_type": "no_such_kind"}', "{}", "\xff"])
def test_a_configuration_that_cannot_be_read(tmp_path, config):
    (tmp_path / "config.json").write_text(config, encoding="latin-1")
    with pytest.raises(EvaluationError, match=r"config.json does not say how many tokens.*--max-model-len"):
        context_of(tmp_path)


def test_code_beside_a_model_is_not_run(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nclass Evil: pass\n")
    auto = {"AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text(json.dumps({"model_type": "evil", "tokenizer_class": "Evil", "auto_map": auto}))
    monkeypatch.setattr("builtins.input", lambda _: "y")  # transformers asks by default; nobody is to be asked
    with pytest.raises(EvaluationError, match="custom code"):
        context_of(tmp_path)
    with pytest.raises(ValueError, match="custom code"):
        render(tmp_path, [Suite("one", [row()], "")], {})
    assert not (tmp_path / "ran").exists()


class Payload:
    """What a pickle would run."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_shards_that_would_run_code_are_not_merged(tmp_path):
    actor = tmp_path / "global_step_1/actor"
    actor.mkdir(parents=True)
    (actor / "fsdp_config.json").write_text('{"world_size": 1}')
    shard = actor / "model_world_size_1_rank_0.pt"
    torch.save({"w": torch.zeros(2), "x": Payload(tmp_path / "ran")}, shard)
    with pytest.raises(EvaluationError, match=r"rank_0.pt is not only weights: loading it would call posix.mkdir"):
        resolve(str(actor.parent))
    shard.write_bytes(b"rubbish")
    with pytest.raises(EvaluationError, match="is no checkpoint that torch can read"):
        resolve(str(actor.parent))
    assert not (tmp_path / "ran").exists()
    torch.save(Payload(tmp_path / "ran"), shard)
    torch.load(shard, weights_only=False)  # as verl's merger does: the payload is one
    assert (tmp_path / "ran").exists()


def test_shards_as_fsdp_writes_them_are_merged(tmp_path):
    """In a process of its own, for a process group has to be made."""
    program = f"""
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
dist.init_process_group("gloo", init_method="file://{tmp_path}/meeting", rank=0, world_size=1)
layer = torch.nn.Linear(4, 4)
fully_shard(layer, mesh=init_device_mesh("cpu", (1,), mesh_dim_names=("fsdp",)))
torch.save(layer.state_dict(), "{tmp_path}/shard.pt")
dist.destroy_process_group()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    check_shards([tmp_path / "shard.pt"])
