"""Records of runs: the same numbers as the run's folder, no place in them, made once; what is no run is refused."""

import json

import pytest

from launch.attempts import Attempts
from recipe.poise.compare import measures
from recipe.poise.compare.__main__ import main
from recipe.poise.compare.readers import ReadError, read_run
from recipe.poise.compare.records import rate_text, read_all_records, read_record, record_run, without_place


def test_a_record_tells_what_the_folder_tells(left, tmp_path):
    folder = left(overrides=("actor_rollout_ref.actor.optim.lr=3e-4",), seed=3)
    record = record_run(str(folder))
    mine, its = measures.measure(record.run), measures.measure(read_run(str(folder)))
    for name in ("updates", "start", "final", "sources", "seconds", "tokens", "tokens_exact", "discarded_share"):
        assert getattr(mine, name) == pytest.approx(getattr(its, name)), name
    assert (mine.final, mine.tokens, mine.seconds) == pytest.approx((0.6, 8000, 80))
    assert mine.discarded_share == pytest.approx(100 / 8000)
    assert (record.task, record.method, record.seed, record.rate, record.finished) == (
        "quickstart",
        "poise",
        3,
        3e-4,
        True,
    )
    assert record.overrides == ("actor_rollout_ref.actor.optim.lr=3e-4",)
    assert record.settings["actor_rollout_ref.rollout.n"] == 2 and record.settings["data.train_batch_size"] == 16
    assert record.medians["timing_s/gen"] == 4.5 and record.medians["poise/weight_probe"] == 0.3
    attempt = Attempts.read(folder).items[0]
    assert (record.commit, record.machine) == (attempt.commit, attempt.machine) and attempt.machine
    assert str(tmp_path) not in record.text() and set(record.read) == {"metrics.jsonl", "config.yaml"}


def test_a_second_call_changes_nothing(left, tmp_path, capsys):
    folders = [str(left(seed=seed, task=task)) for seed, task in ((0, "quickstart"), (100, "uneven"))]
    command = ["record", *folders, "--out", str(tmp_path / "records")]
    assert main(command) == 0
    paths = [
        tmp_path / "records" / name for name in ("quickstart/poise_lr2e-4_s0.json", "uneven/poise_lr2e-4_s100.json")
    ]
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths]
    assert all(len(content) < 5000 for content, _ in before)
    capsys.readouterr()
    assert main(command) == 0
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths] == before
    assert capsys.readouterr().out.splitlines() == [f"as it was {path}" for path in paths]
    assert [record.text() for record in read_all_records([str(tmp_path / "records")])] == [
        content.decode() for content, _ in before
    ]


def test_another_run_of_the_same_name_is_kept_apart(left, tmp_path, capsys):
    folder = left()
    assert main(["record", str(folder), "--out", str(tmp_path / "records")]) == 0
    path = tmp_path / "records/quickstart/poise_lr2e-4_s0.json"
    before = path.read_bytes()
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 9, "data": {"timing_s/step": 1.0, "rollout/generated_tokens": 5.0}}) + "\n")
    assert main(["record", str(folder), "--out", str(tmp_path / "records")]) == 2
    assert "the record of another run: say --replace" in capsys.readouterr().err and path.read_bytes() == before
    assert main(["record", f"other={folder}", "--out", str(tmp_path / "records")]) == 0
    assert read_record(tmp_path / "records/quickstart/other_lr2e-4_s0.json").method == "other"
    assert main(["record", str(folder), "--replace", "--out", str(tmp_path / "records")]) == 0
    assert path.read_bytes() != before


def test_a_run_that_is_not_done_is_refused_unless_told(left, tmp_path, capsys):
    folder = left(outcome="crashed")
    assert main(["record", str(folder), "--out", str(tmp_path / "records")]) == 2
    assert "not finished (last attempt: crashed). Let it end, or say --unfinished" in capsys.readouterr().err
    record = record_run(str(folder), unfinished=True)
    assert not record.finished and record.run.notes == ["the run is not finished"]
    assert main(["record", str(folder), "--unfinished", "--out", str(tmp_path / "records")]) == 0
    board = ["leaderboard", str(tmp_path / "records"), "--out", str(tmp_path / "page.md")]
    assert main(board) == 2 and "a run that is not finished: leave it out" in capsys.readouterr().err
    assert main([*board, "--unfinished"]) == 0 and "the run is not finished" in (tmp_path / "page.md").read_text()
    going = record_run(str(left(outcome="running", seed=1)), unfinished=True)
    assert going.updates == record.updates


def test_a_run_without_what_a_record_holds_is_refused(left):
    folder = left()
    whole = (folder / "metrics.jsonl").read_text()
    for metric, message in (
        ("val-core/", "validation accuracy is not known"),
        ("timing_s/step", "timing_s/step is not known of every update"),
        ("rollout/generated_tokens", "rollout/generated_tokens is not known"),
    ):
        (folder / "metrics.jsonl").write_text(whole.replace(metric, "other/"))
        with pytest.raises(ReadError, match=message):
            record_run(str(folder))


def test_attempts_with_different_overrides_are_not_one_run(left):
    folder = left(outcome="crashed")
    assert left(overrides=("actor_rollout_ref.actor.optim.lr=3e-4",)) == folder
    with pytest.raises(ReadError, match="different overrides"):
        record_run(str(folder))
    (folder / "logs/attempt_2/run.json").unlink()
    with pytest.raises(ReadError, match=r"attempt_2/run.json does not exist"):
        record_run(str(folder))


def test_the_digest_of_the_config_is_that_of_the_method(left):
    """Seeds and places leave it as it is; a setting changes it."""
    same, seed = record_run(str(left())), record_run(str(left(seed=5)))
    other = record_run(str(left(seed=6, overrides=("poise.probe.rank=48",))))
    assert same.config == seed.config != other.config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format=2: want 1: make the record anew"),
        ({"seed": "0"}, "seed='0': want a whole number"),
        ({"surplus": 1}, "unknown setting surplus"),
        ({"settings": {}}, "settings.actor_rollout_ref.actor.optim.lr"),
        ({"updates": {"step": [1, 2], "tokens": [5, 4], "seconds": [1.0, 2.0]}}, "updates.tokens=.*do not fall"),
        ({"updates": {"step": [1, 2], "tokens": [5], "seconds": [1.0, 2.0]}}, "as many numbers as there are steps"),
        ({"validation": {"step": [0], "accuracy": [0.1], "sources": {"sums": [0.1]}}}, "names of validation metrics"),
    ],
)
def test_a_file_that_is_no_record_is_refused_by_name(pattern, tmp_path, change, message):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(json.loads(pattern.text()) | change))
    with pytest.raises(ReadError, match=message) as error:
        read_record(path)
    assert str(path) in str(error.value)


def test_paths_that_hold_no_records_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReadError, match="neither records"):
        read_all_records([str(tmp_path / "empty")])
    with pytest.raises(ReadError, match="does not exist"):
        read_all_records([str(tmp_path / "none")])


def test_texts():
    assert [rate_text(rate) for rate in (1e-4, 5e-5, 0.00025, 1.0)] == ["1e-4", "5e-5", "2.5e-4", "1e0"]
    assert without_place("data.train_files=/home/me/data/train.parquet") == "data.train_files=train.parquet"
    assert without_place("a=[/x/y/b.parquet,/x/c.parquet]") == "a=[b.parquet,c.parquet]"
    assert without_place("actor.optim.lr=1e-4") == "actor.optim.lr=1e-4"
