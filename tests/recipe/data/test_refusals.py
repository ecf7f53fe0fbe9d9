"""Damaged files, odd values, names and links that lead elsewhere: one sentence, and nothing is lost or executed."""

import datetime
import decimal
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recipe.poise.data import build as building
from recipe.poise.data.__main__ import main, make, parser
from recipe.poise.data.catalogue import CATALOGUE
from recipe.poise.data.clean import select
from recipe.poise.data.errors import DataError
from recipe.poise.data.lengths import Limit
from recipe.poise.data.manifest import MANIFEST
from recipe.poise.data.names import LONGEST
from recipe.poise.data.schema import load

ROOT = Path(__file__).parents[3]
ROW = '{"prompt": "1 + 1?", "answer": 2, "data_source": "mine"}\n'
TABLE = [{"prompt": f"{i} + 1?", "answer": "2", "data_source": "mine"} for i in range(50)]


def run(*arguments: object) -> None:
    make(parser().parse_args(["--no-progress", *map(str, arguments)]))


def mine(folder: Path, content: str | bytes = ROW, name: str = "mine.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


def parquet(path: Path, rows: list[dict]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "mine.jsonl",
            ROW.encode() + b'{"prompt": "caf\xe9"}\n',
            r"mine.jsonl:2 is not UTF-8 \(byte 15: 0xe9\).*iconv",
        ),
        ("mine.jsonl", ROW.encode("utf-16"), r"mine.jsonl:1 is UTF-16.*save it as UTF-8"),
        ("mine.json", f"[{ROW}]".encode("utf-16"), r"mine.json is UTF-16"),
        ("mine.json", f"[{ROW}]".encode("utf-32"), r"mine.json is UTF-16 or UTF-32"),
        ("mine.json", b'[{"prompt": "caf\xe9"}]', r"mine.json is not UTF-8 \(byte 16"),
        ("mine.jsonl", "[" * 100_000, r"mine.jsonl:1 is nested too deeply"),
        ("mine.json", "[" * 100_000, r"mine.json is nested too deeply"),
        ("mine.jsonl", '{"answer": ' + "1" * 5000 + "}", r"mine.jsonl:1 holds a number that is too long.*as text"),
        ("mine.parquet", b"", r"mine.parquet cannot be read as parquet.*anew"),
        ("mine.parquet", b"no parquet at all", r"mine.parquet cannot be read as parquet"),
        ("mine.parquet", b"PAR1" + b"x" * 40 + b"PAR1", r"mine.parquet cannot be read as parquet"),
    ],
)
def test_damaged_files(tmp_path, name, content, said):
    with pytest.raises(DataError, match=said):
        run("jsonl", "--source", mine(tmp_path, content, name), "--out", tmp_path / "o")
    assert not list((tmp_path / "o").glob("*"))


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.99])
def test_a_torn_parquet_file(tmp_path, cut):
    whole = parquet(tmp_path / "mine.parquet", TABLE).read_bytes()
    (tmp_path / "mine.parquet").write_bytes(whole[: int(len(whole) * cut)])
    with pytest.raises(DataError, match=r"mine.parquet cannot be read as parquet"):
        run("jsonl", "--source", tmp_path / "mine.parquet", "--out", tmp_path / "o")


def test_damaged_pages_behind_a_good_footer(tmp_path):
    file = parquet(tmp_path / "mine.parquet", [row | {"reward_model": {"ground_truth": "2"}} for row in TABLE])
    content = file.read_bytes()
    file.write_bytes(content[:4] + b"\xff" * 200 + content[204:])
    for read in (lambda: run("jsonl", "--source", file, "--out", tmp_path / "o"), lambda: load(file)):
        with pytest.raises(DataError, match=r"mine.parquet cannot be read as parquet"):
            read()


def test_text_that_is_no_text_in_parquet(tmp_path):
    raw = pa.array([b"caf\xe9?"]).cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), 1, raw.buffers())
    pq.write_table(pa.table({"prompt": text, "answer": ["1"], "data_source": ["mine"]}), tmp_path / "mine.parquet")
    with pytest.raises(DataError, match=r"mine.parquet cannot be read as parquet \(UnicodeDecodeError"):
        run("jsonl", "--source", tmp_path / "mine.parquet", "--out", tmp_path / "o")


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    for name, content in (("a.jsonl", ROW), ("b.json", f"[{ROW}]")):
        run("jsonl", "--source", mine(tmp_path, content.encode("utf-8-sig"), name), "--out", tmp_path / "o")
        assert len(load(tmp_path / "o" / name[0] / "train.parquet")) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [("27.00", "27"), ("0.50", "0.5"), ("-1200", "-1200"), ("12345678901234567890123456789012.5", None)],
)
def test_decimal_answers(tmp_path, value, text):
    source = parquet(tmp_path / "mine.parquet", [{**TABLE[0], "answer": decimal.Decimal(value)}])
    run("jsonl", "--source", source, "--out", tmp_path / "o")
    assert load(tmp_path / "o/mine/train.parquet")[0]["reward_model"]["ground_truth"] == (text or value)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (datetime.datetime(2024, 1, 2), "the answer holds a datetime; write it as text"),
        (datetime.date(2024, 1, 2), "the answer holds a date;"),
        (b"4", "the answer holds a bytes;"),
        ([decimal.Decimal("1.5")], "the answer holds a Decimal;"),
        ([float("nan")], "the answer holds a number that is not finite"),
        (None, r"the answer is null \(None\)"),
    ],
)
def test_answers_that_are_no_text(tmp_path, answer, said):
    source = parquet(tmp_path / "mine.parquet", [{**TABLE[0], "answer": answer}])
    with pytest.raises(DataError, match=rf"1 malformed of 1 rows. mine.parquet, row 0: {said}"):
        run("jsonl", "--source", source, "--out", tmp_path / "o")


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_ground_truth_of_none_is_refused_with_its_row(tmp_path, place, nested, suffix):
    rows: list[dict] = [{**TABLE[i], "reward_model": {"ground_truth": "1", "style": "rule"}} for i in range(3)]
    rows[place] |= {"reward_model": None} if nested else {"reward_model": {"ground_truth": None, "style": "rule"}}
    file = tmp_path / f"mine.{suffix}"
    if suffix == "parquet":
        parquet(file, rows)
    else:
        mine(tmp_path, "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        DataError, match=rf"1 malformed of 3 rows. mine.{suffix}, row {place}: (no reward|the answer is n)"
    ):
        run("jsonl", "--source", file, "--out", tmp_path / "o", "--field", "answer=reward_model.ground_truth")
    assert not list((tmp_path / "o").glob("*"))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "half \ud83d"}, "half of a character"),
        ({"answer": "half \ud83d"}, "half of a character"),
        ({"data_source": "half \ud83d"}, "half of a character"),
        ({"ability": "half \ud83d"}, "half of a character"),
        ({"more": "half \ud83d"}, "half of a character"),
        ({"ability": ["maths"]}, "ability is not text"),
        ({"prompt": [{"role": ["user"], "content": "?"}]}, "message of role"),
    ],
)
def test_rows_that_no_parquet_file_can_hold(tmp_path, row, said):
    source = mine(tmp_path, json.dumps(json.loads(ROW) | row))
    plain = ("--template", "plain") if isinstance(row.get("prompt"), list) else ()
    with pytest.raises(DataError, match=rf"1 malformed of 1 rows. mine.jsonl, row 0: .*{said}"):
        options = ("--ability", "") if "ability" in row else ()
        run("jsonl", "--source", source, "--out", tmp_path / "o", "--field", "extra=more", *plain, *options)


def test_deep_values_in_a_row(tmp_path):
    """Deep enough that Python reads it in one place and gives up in the next."""
    for column in ("answer", "more"):
        for depth in range(sys.getrecursionlimit() - 150, sys.getrecursionlimit()):
            deep = "[" * depth + "]" * depth
            source = mine(tmp_path, f'{{"prompt": "?", "answer": 1, "data_source": "m", "{column}": {deep}}}')
            try:
                run("jsonl", "--source", source, "--out", tmp_path / f"{column}{depth}", "--field", "extra=more")
            except DataError as error:
                assert "too deeply" in str(error)


def test_whole_messages_stay_as_they_are(tmp_path):
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1 + 1"}]
    source = mine(tmp_path, json.dumps(json.loads(ROW) | {"prompt": messages}))
    with pytest.raises(DataError, match="row 0: the prompt is whole messages.*--template plain"):
        run("jsonl", "--source", source, "--out", tmp_path / "o")
    run("jsonl", "--source", source, "--out", tmp_path / "o", "--template", "plain")
    assert load(tmp_path / "o/mine/train.parquet")[0]["prompt"] == messages


BAD_NAMES = [
    "../evil",
    "../../evil",
    "/tmp/evil",
    "a/b",
    "..",
    ".",
    ".hidden",
    "a\0b",
    "a\nb",
    "a b",
    "-a",
    "é\ud83d",
    "~x",
]


@pytest.mark.parametrize("name", [*BAD_NAMES, "x" * (LONGEST + 1)])
@pytest.mark.parametrize("option", ["--as", "--split", "--files"])
def test_names_that_lead_elsewhere(tmp_path, name, option):
    source = mine(tmp_path / "in")
    value = f"{name}=*.jsonl" if option == "--files" else name
    with pytest.raises(DataError, match="want letters, digits"):
        run("jsonl", "--source", source, "--out", tmp_path / "a/b/o", f"{option}={value}")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [source]


@pytest.mark.parametrize("name", ["", "a b.jsonl", "-x.jsonl", "ü(1).jsonl"])
def test_a_file_whose_name_cannot_name_the_result(tmp_path, name):
    with pytest.raises(DataError, match=r"give --as NAME|no home on the hub"):
        run("jsonl", "--source", mine(tmp_path / "in", name=name) if name else "", "--out", tmp_path / "o")


@pytest.mark.parametrize("pattern", ["/etc/*.json", "../*.jsonl", "a/../../*.jsonl", "a**b", ".", "a\0b", "a\nb"])
def test_patterns_that_lead_out_of_the_source(tmp_path, pattern):
    mine(tmp_path / "in")
    with pytest.raises(DataError, match=r"want files below the source's folder"):
        run("jsonl", "--source", tmp_path / "in", "--out", tmp_path / "o", "--as", "x", f"--files=train={pattern}")


def test_an_option_given_twice_is_not_swallowed(tmp_path):
    twice = ("--files", "train=a.jsonl", "--files", "train=b.jsonl")
    with pytest.raises(DataError, match="--files train=... is given twice"):
        run("jsonl", "--source", mine(tmp_path).parent, "--out", tmp_path / "o", *twice)


def test_a_link_in_the_results_place_is_left_alone(tmp_path):
    source = mine(tmp_path / "in")
    run("jsonl", "--source", source, "--out", tmp_path / "real")
    before = sorted(tmp_path.rglob("*"))
    for target in (tmp_path / "real/mine", tmp_path / "nowhere"):
        (tmp_path / "o").mkdir(exist_ok=True)
        (tmp_path / "o/mine").symlink_to(target)
        with pytest.raises(DataError, match="is a link"):
            run("jsonl", "--source", source, "--out", tmp_path / "o", "--template", "plain")
        assert (tmp_path / "o/mine").is_symlink()
        (tmp_path / "o/mine").unlink()
    (tmp_path / "o").rmdir()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"request": {"format": 1}', b"\xff\xfe", b"[]", b'{"splits": {}}', b'{"name": "my web page"}'],
)
def test_a_damaged_or_foreign_manifest_is_not_replaced(tmp_path, content):
    source = mine(tmp_path / "in")
    run("jsonl", "--source", source, "--out", tmp_path / "o")
    (tmp_path / "o/mine" / MANIFEST).write_bytes(content)
    for more in ((), ("--template", "plain")):
        with pytest.raises(FileExistsError, match=rf"{MANIFEST} is damaged, or not of this program.*remove its folder"):
            run("jsonl", "--source", source, "--out", tmp_path / "o", *more)
    assert (tmp_path / "o/mine" / MANIFEST).read_bytes() == content


def test_a_file_of_ones_own_beside_the_data_is_not_lost(tmp_path):
    source = mine(tmp_path / "in")
    run("jsonl", "--source", source, "--out", tmp_path / "o")
    (tmp_path / "o/mine/notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="notes.txt.*would be lost"):
        run("jsonl", "--source", source, "--out", tmp_path / "o", "--template", "plain")
    assert (tmp_path / "o/mine/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("failing", ["fresh", "write"])
def test_a_failure_leaves_the_old_data_whole(tmp_path, failing, monkeypatch):
    source = mine(tmp_path / "in")
    run("jsonl", "--source", source, "--out", tmp_path / "o")
    before = {path.name: path.read_bytes() for path in (tmp_path / "o/mine").iterdir()}
    rename, replaced = os.rename, []

    def interrupted(old, new):
        if Path(old).name == "fresh" and not replaced:
            replaced.append(old)
            raise KeyboardInterrupt
        rename(old, new)

    if failing == "fresh":
        monkeypatch.setattr(building.os, "rename", interrupted)
        expected: type[BaseException] = KeyboardInterrupt
    else:
        source.write_text(ROW + "{")
        expected = DataError
    with pytest.raises(expected):
        run("jsonl", "--source", source, "--out", tmp_path / "o", "--template", "plain")
    assert {path.name: path.read_bytes() for path in (tmp_path / "o/mine").iterdir()} == before
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["mine"]


def test_a_source_that_shrinks_while_it_is_read_is_told(tmp_path):
    source = mine(tmp_path, ROW + ROW.replace("1 + 1", "2 + 2"))
    kept = select([source], CATALOGUE["jsonl"], None, frozenset())
    source.write_text(ROW)
    with pytest.raises(DataError, match="became shorter"):
        list(building._chosen([source], CATALOGUE["jsonl"], "train", kept))


def test_a_tokenizer_that_cannot_be_had(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/tokenizer.json").write_text("{")
    (tmp_path / "broken/tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    for folder in (tmp_path / "broken", tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"no tokenizer that can be read"):
            Limit(str(folder), 5).length([{"role": "user", "content": "x"}])


def program(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "recipe.poise.data", "jsonl", "--no-progress", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


def test_the_systems_refusals_are_sentences(tmp_path):
    source = mine(tmp_path)
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "p").mkdir()
    (tmp_path / "p/mine").write_text("in the way")
    for out, said in (("file", "File exists"), ("file/x", "Not a directory"), ("p", "is in the way")):
        done = program("--source", source, "--out", tmp_path / out)
        assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


class Payload:
    """What a pickle would run."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_no_file_is_executed(tmp_path, monkeypatch, capsys):
    """A pickle under a data file's name, one in a parquet file's metadata (as Arrow's Python types once had), and a
    tokenizer that brings its own code."""
    payload = pickle.dumps(Payload(tmp_path / "ran"))
    for name in ("mine.jsonl", "mine.json", "mine.parquet"):
        with pytest.raises(DataError):
            run("jsonl", "--source", mine(tmp_path, payload, name), "--out", tmp_path / "o")
    extension = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": payload}
    schema = pa.schema(
        [pa.field(name, pa.string(), metadata=extension) for name in ("prompt", "answer", "data_source")]
    )
    pq.write_table(pa.Table.from_pylist(TABLE, schema=schema), tmp_path / "mine.parquet")
    run("jsonl", "--source", tmp_path / "mine.parquet", "--out", tmp_path / "o")
    assert len(load(tmp_path / "o/mine/train.parquet")) == 50

    model = tmp_path / "model"
    model.mkdir()
    (model / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nclass Evil: pass\n")
    auto = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"], "AutoConfig": "evil.Evil"}}
    (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Evil"} | auto))
    (model / "config.json").write_text(json.dumps({"model_type": "evil"} | auto))
    options = ("--max-prompt-length", "9", "--tokenizer", str(model), "--template", "plain")
    monkeypatch.setattr(
        "sys.argv", ["data", "jsonl", "--source", str(mine(tmp_path)), "--out", str(tmp_path / "o2"), *options]
    )
    monkeypatch.setattr("builtins.input", lambda _: "y")  # transformers asks by default; nobody is to be asked
    assert main() == 1 and "custom code" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    pickle.loads(payload)  # and the payload is one
    assert (tmp_path / "ran").exists()
