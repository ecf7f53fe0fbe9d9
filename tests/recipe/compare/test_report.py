"""The comparison: readers of every format, measures against values known by construction, what is said of bad runs."""

import csv
import json

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from recipe.poise.compare import measures, summary
from recipe.poise.compare.__main__ import main
from recipe.poise.compare.readers import ReadError, read_run


def steps_of(final: float, updates: int = 8, seconds: float = 10.0, tokens: float = 1000.0, **extra) -> dict:
    """A run whose accuracy rises linearly from 0.2 to `final`, validated at every second update."""
    found: dict = {0: {"val-core/sums/acc/mean@4": 0.2, "val-core/products/acc/mean@4": 0.2}}
    for step in range(1, updates + 1):
        found[step] = {
            "timing_s/step": seconds, "timing_s/gen": seconds / 2, "actor/grad_norm": 1.0 + step % 2,
            "rollout/generated_tokens": tokens, "rollout/discarded_tokens": 0.0, "advantage/variance": 0.25, **extra,
        }  # fmt: skip
        if step % 2 == 0:
            level = 0.2 + (final - 0.2) * step / updates
            found[step] |= {"val-core/sums/acc/mean@4": level + 0.1, "val-core/products/acc/mean@4": level - 0.1}
    return found


def write_jsonl(path, steps):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"step": step, "data": data}) + "\n" for step, data in steps.items()))
    return path


def write_wandb(path, steps, name=""):
    columns = sorted({key for data in steps.values() for key in data})
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Step", *(f"{name}{column}" for column in columns)])
        for step, data in steps.items():
            table.writerow([step, *(data.get(column, "") for column in columns)])
    return path


def test_every_format_gives_the_same_run(tmp_path):
    steps = steps_of(0.6)
    writer = SummaryWriter(str(tmp_path / "board"))
    for step, data in steps.items():
        for name, value in data.items():
            writer.add_scalar(name, value, step)
    writer.close()
    exported = tmp_path / "export.jsonl"
    exported.write_text("".join(json.dumps({"_step": s, "_runtime": 1, **d}) + "\n" for s, d in steps.items()))
    paths = [
        write_jsonl(tmp_path / "run/metrics.jsonl", steps).parent,
        tmp_path / "run/metrics.jsonl",
        write_jsonl(tmp_path / "going/logs/attempt_1/metrics.jsonl", steps).parents[2],
        write_wandb(tmp_path / "export.csv", steps),
        write_wandb(tmp_path / "chart.csv", steps, "run-7 - "),
        tmp_path / "board",
        exported,
    ]
    expected = None
    for path in paths:
        run = read_run(f"m={path}")
        found = measures.measure(run)
        assert run.method == "m" and found.updates == 8, path
        assert (found.start, found.final) == pytest.approx((0.2, 0.6)), path
        assert (found.seconds, found.tokens, found.tokens_exact) == (80.0, 8000.0, True), path
        expected = expected or found.means
        assert found.means == pytest.approx(expected), path


def test_method_and_seed_come_from_the_config(tmp_path):
    folder = write_jsonl(tmp_path / "x/metrics.jsonl", steps_of(0.5)).parent
    (folder / "config.yaml").write_text("trainer: {experiment_name: grpo_s2}\ndata: {seed: 7}\n")
    run = read_run(str(folder))
    assert (run.method, run.seed) == ("grpo", 7)
    assert read_run(str(write_jsonl(tmp_path / "rloo-seed3/metrics.jsonl", steps_of(0.5)).parent)).seed == 3


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", "no step was logged"),
        ("a.jsonl", 'nonsense\n{"step": 1, "data": {"x": 1}}\n', "a.jsonl:1: neither a line of verl's file logger"),
        ("a.csv", "loss,acc\n1,2\n", "no column Step or _step; columns: loss, acc"),
        ("a.csv", "Step,run-1 - loss,run-2 - loss\n1,2,3\n", "columns of 2 runs .run-1, run-2.; export each"),
        ("a.txt", "x", "want .jsonl"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ReadError, match=message):
        read_run(str(tmp_path / name))
    with pytest.raises(ReadError, match="does not exist"):
        read_run(str(tmp_path / "none"))


def test_a_killed_run_loses_its_last_line_only(tmp_path):
    path = write_jsonl(tmp_path / "metrics.jsonl", steps_of(0.5))
    path.write_text(path.read_text()[:-20])
    assert measures.measure(read_run(str(path))).updates == 7


def test_costs_are_those_of_the_crossing(tmp_path):
    fast, slow = ({"final": 0.6, "seconds": 10.0, "tokens": 500.0}, {"final": 0.6, "seconds": 20.0})
    runs = [read_run(f"fast={write_jsonl(tmp_path / f'f{i}.jsonl', steps_of(**fast))}") for i in range(2)]
    runs += [read_run(f"dapo={write_jsonl(tmp_path / f'd{i}.jsonl', steps_of(**slow))}") for i in range(2)]
    methods = summary.group(runs)
    level, what = summary.target_level(methods, "dapo")
    assert level == pytest.approx(0.6) and what == "dapo's final accuracy"
    cost = summary.cost_of(methods[0], 0.4)  # half way
    assert (cost.updates.mean, cost.seconds.mean, cost.tokens.mean) == pytest.approx((4, 40, 2000))
    assert summary.cost_of(methods[1], 0.4).seconds.mean == pytest.approx(80)
    assert summary.cost_of(methods[1], 0.7).reached == 0


def test_costs_are_compared_seed_by_seed(tmp_path):
    """The baseline's run of the same seed sets the accuracy; half of the seeds would never reach a mean of all."""
    runs = []
    for seed, (mine, its) in enumerate(((0.6, 0.4), (0.8, 0.6), (0.5, 0.6))):
        for name, final, seconds in (("fast", mine, 10.0), ("dapo", its, 20.0)):
            path = write_jsonl(tmp_path / f"{name}_s{seed}/metrics.jsonl", steps_of(final, seconds=seconds))
            runs.append(read_run(f"{name}={path.parent}"))
    fast, dapo = summary.group(runs)
    found = summary.relative_cost(fast, dapo)
    assert (found.reached, found.seeds) == (2, 3)
    # to 0.4 on the way to 0.6: half of 80 s, over 160 s; to 0.6 on the way to 0.8: two thirds
    assert (found.seconds.low, found.seconds.high) == pytest.approx((0.25, 1 / 3))
    assert found.tokens.mean == pytest.approx((1 / 2 + 2 / 3) / 2)
    main(["report", *(str(run.path) for run in runs), "--out", str(tmp_path / "out")])
    text = (tmp_path / "out/report.md").read_text()
    assert "fast reached dapo's final accuracy in 29% of its seconds (2 of 3 seeds, 25% to 33%)" in text
    other = [read_run(f"fast={write_jsonl(tmp_path / 'alone.jsonl', steps_of(0.6))}")]
    assert summary.relative_cost(summary.group(other)[0], dapo) is None


def test_calibration_is_the_mean_of_late_steps(tmp_path):
    steps = steps_of(0.5)
    for step in range(1, 9):
        for bin in range(1, 6):
            steps[step][f"poise/calibration_value_{bin}"] = bin / 5
            steps[step][f"poise/calibration_target_{bin}"] = bin / 5 + (0.5 if step < 5 else 0.01 * (-1) ** step)
    curve = measures.calibration(read_run(str(write_jsonl(tmp_path / "c.jsonl", steps))))
    assert curve.x == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and curve.y == pytest.approx(curve.x)
    assert not len(measures.calibration(read_run(str(write_jsonl(tmp_path / "n.jsonl", steps_of(0.5))))).x)


def test_bands_end_with_the_shortest_run():
    curves = [measures.Curve(np.arange(5.0), np.arange(5.0)), measures.Curve(np.arange(3.0), np.arange(3.0) + 1)]
    found = summary.band(curves)
    assert found.x.tolist() == [0, 1, 2] and found.mean.tolist() == [0.5, 1.5, 2.5] and found.seeds == 2
    other_axis = measures.Curve(np.array([0.5, 2.5]), np.array([0.5, 2.5]))
    found = summary.band([curves[0], other_axis])
    assert (found.x[0], found.x[-1]) == (0.5, 2.5) and np.allclose(found.low, found.high)
    assert summary.band([measures.Curve(np.empty(0), np.empty(0))]) is None


def test_tokens_of_other_entries_are_estimated_with_what_dapo_threw_away(tmp_path):
    steps = {
        step: {"timing_s/step": 1.0, "response_length/mean": 10.0, "training/filter_groups/evicted_samples": 3}
        for step in (1, 2)
    }
    folder = write_jsonl(tmp_path / "run/metrics.jsonl", steps).parent
    (folder / "config.yaml").write_text("data: {train_batch_size: 5}\nactor_rollout_ref: {rollout: {n: 8}}\n")
    found = measures.measure(read_run(str(folder)))
    assert found.tokens == 2 * (5 + 3) * 8 * 10 and not found.tokens_exact


def test_baseline_costs(tmp_path):
    probe = {"poise/time_capture_s": 0.2, "poise/time_predict_s": 0.1, "poise/time_fit_s": 0.3, "timing_s/values": 9.0}
    critic = {"timing_s/values": 2.0, "timing_s/update_critic": 3.0}
    thrown = {"rollout/discarded_tokens": 400.0}
    expected = ({"probe": 0.6}, {"critic": 5.0}, {"discarded generation": 5.0 * 0.4})
    for number, (extra, cost) in enumerate(zip((probe, critic, thrown), expected, strict=True)):
        run = read_run(str(write_jsonl(tmp_path / f"{number}.jsonl", steps_of(0.5, **extra))))
        assert measures.measure(run).baseline == pytest.approx(cost)


def test_what_keeps_runs_from_being_compared_is_said(tmp_path):
    write_jsonl(tmp_path / "short_s0/metrics.jsonl", steps_of(0.5, updates=4))
    write_jsonl(tmp_path / "long_s0/metrics.jsonl", steps_of(0.5))
    (tmp_path / "short_s0/attempts.json").write_text(
        json.dumps({"tracking_id": "t", "attempts": [{"outcome": "crashed", "machine": "9 cores", "commit": "abc"}]})
    )
    blind = {step: {"actor/grad_norm": 1.0} for step in range(1, 9)}
    write_jsonl(tmp_path / "blind_s0/metrics.jsonl", blind)
    paths = [str(tmp_path / name) for name in ("short_s0", "long_s0", "blind_s0")]
    said = "\n".join(summary.notes(summary.group([read_run(path) for path in paths])))
    for text in (
        "the run is not finished (last attempt: crashed)",
        "short, seed 0: 4 updates, the longest run has 8",
        "blind, seed 0: no validation accuracy was logged",
        "blind, seed 0: timing_s/step is missing",
        "blind, seed 0: generated tokens are not known",
        "long: one seed, so no spread",
    ):
        assert text in said, said
    empty = tmp_path / "crashed_s0/logs"  # before its first step
    empty.mkdir(parents=True)
    preflight = tmp_path / "long_s0/logs/attempt_1/preflight.txt"
    preflight.parent.mkdir(parents=True)
    preflight.write_text("pass  host versions         python 3.11, verl 0.9.1\n")
    command = ["report", *paths, str(empty.parent), "--out", str(tmp_path / "report"), "--baseline", "none"]
    assert main(command) == 0
    text = (tmp_path / "report/report.md").read_text()
    assert f"not in the report: {empty.parent}: no metrics.jsonl" in text
    assert "- versions of long_s0: python 3.11, verl 0.9.1" in text
    assert "- machine of short_s0: 9 cores" in text and "- commit of short_s0: abc" in text
    assert "| final, products | final, sums |" in text and "| 0.400 | 0.600 |" in text
    assert "last attempt: crashed" in text and "| blind | 0 | – | – |" in text


def test_runs_of_a_method_that_differ_in_more_than_the_seed_are_told(tmp_path):
    for seed, rate in enumerate(("1e-4", "1e-4", "3e-4")):
        folder = write_jsonl(tmp_path / f"grpo_s{seed}/metrics.jsonl", steps_of(0.5)).parent
        config = f"data: {{seed: {seed}}}\nactor: {{optim: {{lr: {rate}}}}}\n"
        (folder / "config.yaml").write_text(config)
    methods = summary.group([read_run(str(tmp_path / f"grpo_s{seed}")) for seed in range(3)])
    assert "grpo: its runs differ in more than the seed: actor.optim.lr (0.0001, 0.0003)" in summary.notes(methods)
    methods[0].runs.pop()
    methods[0].measures.pop()
    assert not any("differ" in note for note in summary.notes(methods))


def test_errors_of_the_command(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none"), "--out", str(tmp_path)]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["run", str(tmp_path / "none.yaml"), "--out", str(tmp_path)]) == 2
    assert "none.yaml does not exist" in capsys.readouterr().err
    (tmp_path / "same.yaml").write_text("name: same\nconfig: poise_quickstart\n")
    assert main(["run", str(tmp_path / "same.yaml"), "--seeds", "0", "1", "--out", str(tmp_path)]) == 2
    assert "must differ, and hold the seed" in capsys.readouterr().err
