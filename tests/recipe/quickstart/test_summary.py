"""The quickstart's summary on metrics files as verl's file logger writes them."""

import subprocess
import sys

import pytest
from verl.utils.tracking import FileLogger

from recipe.poise.quickstart.summary import Metrics, draw, phase, table, where_time_went


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A function that writes (step, data) pairs with verl's own logger and returns the file's path."""

    def write(*lines):
        monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / "metrics.jsonl"))
        logger = FileLogger("poise", "test")
        for step, data in lines:
            logger.log(data, step)
        logger.finish()
        return tmp_path / "metrics.jsonl"

    return write


def step_data(step):
    return {
        "critic/score/mean": 0.3 + step / 100,
        "poise/correlation": float("nan") if step == 1 else 0.5,
        "poise/gradient_variance_ratio": 0.25,
        "poise/advantage_variance": 0.1,
        "poise/advantage_variance_rloo": 0.2,
        "training/rollout_actor_probs_pearson_corr": 0.9999999 - step / 1e6,
        "timing_s/step": 30.0,
        "timing_s/gen": 20.0,
        "timing_s/update_actor": 10.0,
    }


def test_table_of_a_whole_run(write):
    names = ["val-core/chain_sum/acc/mean@4", "val-core/count_bits/acc/mean@4"]
    lines = [(0, dict.fromkeys(names, 0.25))] + [(step, step_data(step)) for step in range(1, 5)]
    lines.append((4, {names[0]: 0.75, names[1]: 0.5, "val-aux/chain_sum/acc/std@4": 0.1}))
    rows = dict(table(Metrics(write(*lines))))
    assert rows["validation accuracy, mean"] == "0.250 -> 0.625 (+0.375), steps 0 to 4"
    assert rows["validation accuracy, chain_sum"] == "0.250 -> 0.750 (+0.500), steps 0 to 4"
    assert rows["training steps"] == "4"
    assert rows["minutes in steps, validation apart"] == "2.0"
    assert rows["probe correlation, last 10 steps"] == "0.500"
    assert rows["gradient variance over RLOO's, last 10 steps"] == "0.250"
    assert rows["advantage variance over RLOO's, last 10 steps"] == "0.500"
    assert rows["rollout and actor agree (Pearson), lowest"] == "0.999996"


def test_one_source_has_no_mean_row(write):
    rows = dict(table(Metrics(write((0, {"val-core/chain_sum/acc/mean@4": 0.5})))))
    assert "validation accuracy, mean" not in rows
    assert rows["validation accuracy, chain_sum"] == "0.500 -> 0.500 (+0.000), steps 0 to 0"


@pytest.mark.parametrize("lines", [[], [(1, {})], [(1, {"critic/score/mean": float("nan")})]])
def test_what_is_not_there_is_shown_as_missing(write, tmp_path, lines):
    metrics = Metrics(write(*lines))
    values = [value for name, value in table(metrics) if name != "training steps"]
    assert set(values) == {"missing"}
    draw(metrics, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_half_a_last_line_is_left_out_and_a_broken_line_is_named(write):
    path = write((1, step_data(1)), (2, step_data(2)))
    whole = path.read_text()
    path.write_text(whole + '{"step": 3, "da')
    assert Metrics(path).series("critic/score/mean").steps == [1, 2]
    path.write_text('{"step": 3, "da\n' + whole)
    with pytest.raises(ValueError, match="metrics.jsonl:1"):
        Metrics(path)


def test_command_line(write, tmp_path):
    path = write(*[(step, step_data(step)) for step in range(1, 4)])
    command = [sys.executable, "-m", "recipe.poise.quickstart.summary", "--out", str(tmp_path / "new"), "--metrics"]
    run = subprocess.run([*command, str(path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "training steps" in run.stdout and (tmp_path / "new" / "figure.png").is_file()
    run = subprocess.run([*command, str(tmp_path / "nothing.jsonl")], capture_output=True, text=True)
    assert run.returncode == 1 and "no metrics at" in run.stderr and "Traceback" not in run.stderr


def test_minutes_of_all_phases_add_up(write):
    path = write((1, {"timing_s/step": 60.0}), (2, {"timing_s/step": 120.0, "timing_s/testing": 30.0}))
    phases = dict(map(phase, ["environment=6", "model and data=12", "training=300"]))
    assert where_time_went(Metrics(path), phases) == (
        "5.3: environment 0.1, model and data 0.2, start of Ray and vLLM, first validation 1.5, training's steps 3.0, "
        "later validations 0.5"
    )


def test_follow_prints_steps_as_they_come_and_ends_with_its_parent(tmp_path):
    path = tmp_path / "metrics.jsonl"
    follow = f"{sys.executable} -m recipe.poise.quickstart.summary --follow --metrics {path} --out {tmp_path}"
    parent = subprocess.Popen(
        ["bash", "-c", f"{follow} & read -r _"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    path.write_text(
        '{"step": 0, "data": {"val-core/chain_sum/acc/mean@4": 0.25}}\n'
        '{"step": 1, "data": {"critic/score/mean": 0.5, "poise/correlation": null, "timing_s/step": 4}}\n'
        '{"step": 2, "da'
    )
    assert parent.stdout.readline() == "step    0  validation chain_sum 0.250\n"
    assert parent.stdout.readline() == "step    1  reward 0.500  probe correlation missing  seconds 4.0\n"
    output, _ = parent.communicate("\n", timeout=20)  # the pipe closes when the follower has ended, too
    assert output == ""
