"""The program that makes data sets, on files and options that nobody would write: a result or one sentence."""

import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recipe.poise.data.__main__ import main
from recipe.poise.data.manifest import MANIFEST, is_whole
from recipe.poise.data.schema import load

fuzzed = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

letters = st.text(st.characters(), max_size=8)  # halves of characters too
scalars = st.none() | st.booleans() | st.integers() | st.floats() | letters
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(letters, inner, max_size=3), max_leaves=6
)
message = st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]) | values, "content": letters | values})
rows = st.fixed_dictionaries(
    {},
    optional={
        "prompt": letters | st.lists(message, max_size=2) | values,
        "answer": letters | values,
        "data_source": st.sampled_from(["math", "mine"]) | values,
        "ability": values,
        "a": values,
    },
)
GOOD = [{"prompt": f"{i} + 1?", "answer": str(i), "data_source": "math", "ability": "é"} for i in range(3)]


def parquet_of(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


WHOLE = {
    "parquet": parquet_of(pa.Table.from_pylist(GOOD)),
    "jsonl": "".join(json.dumps(row) + "\n" for row in GOOD).encode(),
    "json": json.dumps(GOOD).encode(),
}


def outcome(monkeypatch, capsys, content: bytes, suffix: str, options: list[str]) -> int:
    """Run the program; check that its outcome is whole and stays in its folder. Its exit status."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        (root / "in").mkdir()
        source = root / "in" / f"mine.{suffix}"
        source.write_bytes(content)
        command = ["data", "jsonl", "--no-progress", "--source", str(source), "--out", str(root / "out/o"), *options]
        monkeypatch.setattr("sys.argv", command)
        try:
            status = main()
        except SystemExit as error:  # argparse
            status = error.code
        said = capsys.readouterr().err
        made = [path for path in root.rglob("*") if path.is_file() and path != source]
        if status == 0:
            [folder] = (root / "out/o").iterdir()
            manifest = json.loads((folder / MANIFEST).read_text())
            assert is_whole(folder, manifest) and {path.parent for path in made} == {folder}
            for split in manifest["splits"].values():
                assert len(load(folder / split["file"])) == split["written"] > 0
        else:
            assert status in (1, 2) and "error: " in said and "Traceback" not in said
            assert not made, made
        return status


@fuzzed
@given(st.binary(max_size=60), st.sampled_from(["jsonl", "json", "parquet"]))
def test_any_bytes(monkeypatch, capsys, content, suffix):
    outcome(monkeypatch, capsys, content, suffix, [])


@fuzzed
@given(
    st.sampled_from(sorted(WHOLE)),
    st.lists(st.tuples(st.integers(0, 5000), st.binary(min_size=1, max_size=4)), max_size=3),
    st.integers(0, 200),
)
def test_damaged_files(monkeypatch, capsys, suffix, changes, cut):
    content = bytearray(WHOLE[suffix])
    for place, new in changes:
        place %= len(content)
        content[place : place + len(new)] = new
    outcome(monkeypatch, capsys, bytes(content[: len(content) - cut]), suffix, [])


@fuzzed
@given(st.lists(rows, min_size=1, max_size=3), st.booleans(), st.booleans())
def test_any_rows(monkeypatch, capsys, made, drop, keep):
    content = "".join(json.dumps(row) + "\n" for row in [*GOOD, *made]).encode()
    options = ["--template", "plain", *(["--drop", "malformed", "--drop", "duplicates"] if drop else [])]
    status = outcome(monkeypatch, capsys, content, "jsonl", [*options, *(["--field", "extra=a"] if keep else [])])
    assert status == 0 or not drop  # the three good rows are left


option_text = st.text(st.characters(codec="utf-8") | st.sampled_from("./\\\n\0=~*[]{}"), max_size=12)


@fuzzed
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["--as", "--split", "--field", "--files", "--data-source", "--ability", "--template", "--answer-form"]
            ),
            option_text | option_text.map("answer={}".format) | option_text.map("../{}".format),
        ),
        max_size=3,
    )
)
def test_any_options(monkeypatch, capsys, chosen):
    outcome(monkeypatch, capsys, WHOLE["jsonl"], "jsonl", [f"{name}={value}" for name, value in chosen])
