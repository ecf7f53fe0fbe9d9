"""The benchmark for a GPU, small and on a CPU: pack, run, tables."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks.gpu import pack, run, table, timing

ROOT = Path(__file__).parents[2]


def measured(folder: Path, *words: str) -> dict:
    """What the run wrote; its output is in `folder`/log."""
    command = [sys.executable, "benchmarks/gpu/run.py", "--device", "cpu", "--small", "--out", str(folder), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    (folder / "log").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "gpu.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return measured(tmp_path_factory.mktemp("gpu"), "--together")


def test_every_section_runs_in_verls_engine(whole):
    for part, (sections, _) in run.PARTS.items():
        said = whole["parts"][part]["sections"]
        assert list(said) == list(sections)
        for section, content in said.items():
            if part == "fsdp1":  # verl's FSDP1 does not work on a CPU: it fails, and the rest runs on
                assert "FSDP1 is not offered on a CPU" in content["failed"] and "Traceback" in content["traceback"]
            else:
                assert content["rows"] and "failed" not in content, (part, section, content)
                assert not any("failed" in row for row in content["rows"]), content


def test_capture_changes_no_bit(whole):
    for part in ("fsdp2", "lora"):
        said = whole["parts"][part]["sections"]
        rows = [*said["capture"]["rows"], *said.get("capture_torch", {"rows": []})["rows"]]
        assert all(row["same bits"] and row["features finite"] for row in rows)
        facts = [value for row in said["identical"]["rows"] for value in row.values() if isinstance(value, bool)]
        assert len(facts) == 6 and all(facts)


def test_an_update_is_an_update(whole):
    rows = whole["parts"]["fsdp2"]["sections"]["update"]["rows"]
    assert [row["log-probs"] for row in rows] == ["blocks", "verl's own"]
    assert (
        rows[0]["gradient norm"] == pytest.approx(rows[1]["gradient norm"], rel=0.05) and rows[0]["gradient norm"] > 0
    )


def test_the_tables_hold_what_was_measured_and_what_failed(whole):
    text = table.render(whole)
    for heading, _ in table.SECTIONS.values():
        assert f"### {heading}\n" in text
    assert "fsdp1 failed: NotImplementedError" in text and "the figures mean nothing" in text
    assert "| blocks | 4 x 32 |" in text.partition("### Shares of a step")[2]
    assert "all ms" not in text
    widths = {line.count("|") for line in text.partition("### The probe's step")[2].split("\n\n")[2].splitlines()}
    assert len(widths) == 1


def test_no_name_of_a_machine_is_written(whole):
    assert os.uname().nodename not in json.dumps(whole["environment"])
    assert str(ROOT) not in json.dumps(whole["environment"])


def test_a_part_is_a_process_that_can_fail_alone(tmp_path):
    """Where verl cannot be imported the probe is measured all the same, and what was written is taken away."""
    words = ("--sections", "fsdp2.prompts,probe", "--scratch", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    code = "import sys; sys.modules['verl'] = None"
    (tmp_path / "sitecustomize.py").write_text(code)
    command = [sys.executable, "benchmarks/gpu/run.py", "--device", "cpu", "--small", "--out", str(tmp_path), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert "verl" in parts["fsdp2"]["sections"]["prompts"]["failed"]
    assert len(parts["probe"]["sections"]["probe"]["rows"]) == 4
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_part_that_wrote_nothing_is_said(tmp_path):
    options = run.parser().parse_args(["--out", str(tmp_path)])
    whole = run.collect(options, {"lora": ["capture"]})
    assert "lora failed: it wrote nothing" in table.render(whole)


def test_sections_by_name():
    assert run.wanted("probe,fsdp2.identical,fsdp2.capture") == {
        "fsdp2": ["capture", "identical"],
        "probe": ["probe", "kernels"],
    }
    with pytest.raises(SystemExit, match="no section 'fsdp3'; there are fsdp2, probe"):
        run.wanted("fsdp3")


def test_files_of_two_machines_are_not_one_table(whole, tmp_path):
    for name, device in (("one", "A"), ("two", "B")):
        (tmp_path / name).write_text(json.dumps(whole | {"environment": whole["environment"] | {"device": device}}))
    with pytest.raises(SystemExit, match="disagree about device"):
        table.merged([tmp_path / "one", tmp_path / "two"])
    other = json.loads((tmp_path / "one").read_text())
    other["parts"] = {"fsdp1": {"sections": {"capture": {"rows": [{"engine": "FSDP", "ratio": 1.0}]}}}}
    (tmp_path / "two").write_text(json.dumps(other))
    merged = table.merged([tmp_path / "one", tmp_path / "two"])
    assert merged["parts"]["fsdp1"]["sections"]["capture"]["rows"] == [{"engine": "FSDP", "ratio": 1.0}]
    assert merged["parts"]["lora"] == whole["parts"]["lora"]


def test_ratios_are_of_neighbours():
    """A machine that slows down halfway changes no ratio."""
    base = timing.Runs([1.0, 2.0, 4.0, 8.0], [10, 10, 10, 10])
    other = timing.Runs([1.1, 2.2, 4.4, 8.8], [12, 10, 10, 10])
    said = timing.against(base, other)
    assert said["ratio"] == 1.1 and said["quartiles"] == "1.1000-1.1000" and said["added MB"] == 2e-6


def test_repetitions_end_with_the_time():
    order = []
    variants = {name: lambda name=name: order.append(name) for name in "ab"}
    runs = timing.compare(variants, 10, "cpu", seconds=0.0)
    assert len(runs["a"].seconds) == 3
    assert "".join(order) == "ab" + "ba" + "ab" + "ba"


def test_a_packed_wheel_holds_what_is_imported(tmp_path):
    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    files = ("thing/a.py", "thing/tests/b.py", "tests/c.py", "thing/big/d.so", "thing-1.0.dist-info/METADATA")
    files += ("thing-1.0.data/purelib/thing/e.py",)
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in files:
            archive.writestr(name, name)
    size = pack.repack(wheel, ("thing/big/*",), tmp_path / "thing.tar.xz")
    run.unpack(tmp_path, tmp_path / "out")
    kept = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert kept == {"thing/a.py", "thing/e.py", "thing-1.0.dist-info/METADATA"}
    assert size == sum(len(name) for name in ("thing/a.py", files[-1], files[-2]))
    with pytest.raises(SystemExit, match="no packages in"):
        run.unpack(tmp_path / "out", tmp_path / "nothing")


def test_the_pack_has_the_tested_versions():
    pinned = pack.versions()
    assert {pack.normal(name) for name in pack.PACKAGES} <= set(pinned)
    assert pinned["filelock"] == "4.3.1"  # of two lines, that of new Pythons
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert f"{Path(pack.parser().get_default('out')).name}/" in ignored


def test_verls_own_needs_are_in_the_pack_or_said():
    """What verl's wheel requires is packed, brought by the machine, or not reached by its engines."""
    from importlib.metadata import requires

    plain = [line for line in requires("verl") if "extra ==" not in line]
    names = {pack.normal(re.split(r"[^\w.-]", line)[0]) for line in plain}
    packed = {pack.normal(name) for name in pack.PACKAGES}
    there = {pack.normal(name) for name in run.THERE}
    assert names - packed - there == {"pybind11", "tensorboard", "wandb"}  # loaded where they are asked for
