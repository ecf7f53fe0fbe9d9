"""The evaluation on options, suites and stored samples that nobody would write: a result or one sentence.

No engine starts: every sample is stored already, or else the model's folder turns out to have no tokenizer.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from recipe.poise.evaluate.__main__ import asked_of, main, parser
from recipe.poise.evaluate.samples import Sample, SampleFile

fuzzed = settings(max_examples=60, deadline=None, derandomize=True)
K = 3
MESSAGE = {"role": "user", "content": "1 + 1"}
ROWS = [
    {"data_source": "math", "prompt": [MESSAGE], "reward_model": {"style": "rule", "ground_truth": str(i)}}
    for i in range(2)
]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> Callable[..., int]:
    """A function that runs the program on a finished evaluation after `spoil` has been at its folder; its status."""
    home = tmp_path_factory.mktemp("finished")
    (home / "model").mkdir()
    (home / "model/config.json").write_text('{"model_type": "qwen3"}')
    save_file({"w": np.zeros(2, np.float32)}, home / "model/model.safetensors")
    pq.write_table(pa.Table.from_pylist(ROWS), home / "one.parquet")

    def run(options: list[str], spoil: Callable[[Path], None] = lambda folder: None) -> int:
        with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
            folder = Path(scratch)
            (folder / "one.parquet").write_bytes((home / "one.parquet").read_bytes())
            command = ["--no-progress", "--model", str(home / "model"), "--suites", str(folder / "one.parquet")]
            command += ["--out", str(folder / "out"), "-k", str(K)]
            asked = asked_of(parser().parse_args(command))
            file = SampleFile(folder / "out/samples/one.jsonl", asked.stored_with(asked.suites[0]))
            for problem in range(len(ROWS)):
                for sample in range(K):
                    file.add(Sample(problem, sample, "2", 1, False, 1.0, 1.0, False))
            file.close()
            spoil(folder)
            patch.setattr("sys.argv", ["evaluate", *command, *options])
            patch.setattr("sys.stdout", said := Said())
            patch.setattr("sys.stderr", said)
            try:
                status = main()
            except SystemExit as error:  # argparse
                status = int(str(error.code))
            text = "".join(said.parts)
            assert status in (0, 1, 2) and "Traceback" not in text
            if status == 0:
                assert json.loads((folder / "out/results.json").read_text())["suites"]["one"]["problems"] == len(ROWS)
            else:
                assert "error: " in text and not (folder / "out/results.json").exists()
            return status

    return run


class Said:
    """A stream of text, in place of both outputs."""

    encoding = "utf-8"

    def __init__(self):
        self.parts: list[str] = []

    def write(self, text: str) -> int:
        self.parts.append(text.encode("utf-8", "backslashreplace").decode())
        return len(text)

    def flush(self) -> None: ...

    def reconfigure(self, **_) -> None: ...


def test_a_finished_evaluation_gives_its_result(outcome):
    assert outcome([]) == 0


numbers = st.one_of(
    st.integers(-3, K).map(str), st.integers().map(str), st.floats().map(str), st.text(st.characters(codec="utf-8"))
).filter(lambda text: "\0" not in text)
names = ["-k", "--temperature", "--top-p", "--top-k", "--max-tokens", "--seed", "--data-parallel", "--tensor-parallel"]
names += ["--max-num-seqs", "--max-model-len", "--gpu-memory-utilization", "--dtype", "--chat-template", "--reward"]


@fuzzed
@given(st.lists(st.tuples(st.sampled_from(names), numbers), min_size=1, max_size=2))
def test_any_options(outcome, chosen):
    outcome([f"{name}{'=' if len(name) > 2 else ''}{value}" for name, value in chosen])


@fuzzed
@given(
    st.integers(0, 6),
    st.binary(max_size=20)
    | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(json.dumps).map(str.encode),
    st.sampled_from(["in place of", "after"]),
)
def test_any_line_among_the_samples(outcome, place, line, how):
    def spoil(folder: Path) -> None:
        path = folder / "out/samples/one.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        lines[place : place + (how == "in place of")] = [line + b"\n"]
        path.write_bytes(b"".join(lines))

    outcome([], spoil)


@fuzzed
@given(
    st.dictionaries(
        st.sampled_from(
            ["problem", "sample", "response", "tokens", "truncated", "score", "acc", "verifier_failed", "x"]
        ),
        st.none() | st.booleans() | st.integers(-2, 5) | st.floats() | st.text(max_size=3) | st.just([]),
        max_size=2,
    ),
)
def test_any_sample(outcome, changes):
    def spoil(folder: Path) -> None:
        path = folder / "out/samples/one.jsonl"
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*lines[:-1], json.dumps(json.loads(lines[-1]) | changes), ""]))

    outcome([], spoil)


@fuzzed
@given(st.lists(st.tuples(st.integers(0, 5000), st.binary(min_size=1, max_size=4)), max_size=3), st.integers(0, 200))
def test_damaged_suites(outcome, changes, cut):
    def spoil(folder: Path) -> None:
        content = bytearray((folder / "one.parquet").read_bytes())
        for place, new in changes:
            place %= len(content)
            content[place : place + len(new)] = new
        (folder / "one.parquet").write_bytes(bytes(content[: len(content) - cut]))

    outcome([], spoil)


values = st.recursive(st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3), st.lists, max_leaves=3)


@fuzzed
@given(
    st.dictionaries(
        st.sampled_from(["data_source", "prompt", "reward_model", "extra_info", "ability"]), values, max_size=2
    )
)
def test_suites_of_any_rows(outcome, changes):
    def spoil(folder: Path) -> None:
        try:
            pq.write_table(pa.Table.from_pylist([row | changes for row in ROWS]), folder / "one.parquet")
        except (pa.ArrowException, TypeError, OverflowError):
            pass  # values that no column can hold together

    outcome([], spoil)
