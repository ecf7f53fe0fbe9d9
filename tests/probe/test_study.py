"""The offline study: dumps that come back whole or are refused, folds by prompt, and the program on planted rows."""

import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from probe import FeatureLayout
from probe.planted import PlantedWorld
from probe.settings import ProbeSettings
from probe.study.__main__ import main
from probe.study.compare import Choice, first_as_good, folds_of, judge, out_of_fold, pass_rate_spread
from probe.study.dump import read_dumps, write_dump

D, PROMPTS, ROLLOUTS = 24, 120, 4
SIGNALS = ("entropy_response", "entropy_reasoning", "entropy_answer")


def layout_of(blocks=(3, 7)):
    states = [f"{kind}@{block}/4" for block in blocks for kind in ("prompt", "response")]
    return FeatureLayout((*states, *SIGNALS, "reward"), (D,) * len(states) + (1,) * 4)


def write_run(folder, steps=3, seed=0):
    """Rows whose prompt decides the reward: block 7 shows it, block 3 is noise; two ranks."""
    generator = torch.Generator().manual_seed(seed)
    ease_P = torch.rand(PROMPTS, generator=generator)
    direction_D = torch.randn(D, generator=generator)
    for step in range(steps):
        prompts = torch.randperm(PROMPTS, generator=generator)[: PROMPTS // 2]
        for rank, part in enumerate(prompts.chunk(2)):
            prompt_N = part.repeat_interleave(ROLLOUTS)
            reward_N = (torch.rand(len(prompt_N), generator=generator) < ease_P[prompt_N]).float()
            told_ND = (ease_P[prompt_N, None] - 0.5) * direction_D
            noise = torch.randn(4, len(prompt_N), D, generator=generator)
            states = [noise[0], noise[1], told_ND + 0.2 * noise[2], told_ND + 0.2 * noise[3]]
            scalars = [torch.rand(len(prompt_N), 3, generator=generator), reward_N[:, None]]
            group_N = torch.arange(len(part)).repeat_interleave(ROLLOUTS) + 1000 * rank
            x_NF = torch.cat([*states, *scalars], dim=1)
            write_dump(folder, step, rank, layout_of(), x_NF, reward_N, prompt_N * 7919, group_N)
    return folder


def test_rows_come_back(tmp_path):
    dump = read_dumps([write_run(tmp_path / "a")])
    assert dump.files == 6 and len(dump.reward_N) == 3 * PROMPTS // 2 * ROLLOUTS
    assert len(dump.group_N.unique()) == 3 * PROMPTS // 2  # a prompt of two steps is two groups
    assert len(dump.prompt_N.unique()) <= PROMPTS
    x_NF, layout = dump.columns(("reward", "prompt@7/4"))
    assert layout.names == ("prompt@7/4", "reward") and torch.equal(x_NF[:, -1], dump.reward_N)


def test_groups_of_two_folders_are_kept_apart(tmp_path):
    one, two = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    assert len(read_dumps([one, two]).group_N.unique()) == 2 * len(read_dumps([one]).group_N.unique())


def test_rows_without_a_sibling_or_with_numbers_that_are_not_finite_are_left_out(tmp_path):
    layout = FeatureLayout(("prompt@0/1",), (2,))
    x_NF = torch.arange(12.0).view(6, 2)
    x_NF[0, 1] = float("nan")
    reward_N = torch.tensor([1.0, 0.0, 1.0, float("nan"), 1.0, 0.0])
    write_dump(tmp_path, 1, 0, layout, x_NF, reward_N, torch.arange(6), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert read_dumps([tmp_path]).x_NF.tolist() == [[8.0, 9.0], [10.0, 11.0]]


def test_a_step_dumped_again_replaces_the_first_time(tmp_path):
    layout = FeatureLayout(("prompt@0/1",), (2,))
    for value in (1.0, 2.0):
        write_dump(tmp_path, 1, 0, layout, torch.full((2, 2), value), torch.ones(2), torch.zeros(2), torch.zeros(2))
    assert read_dumps([tmp_path]).x_NF.unique().tolist() == [2.0]
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001_rank_0.safetensors"]


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"\xff" * 64, lambda b: b"", lambda b: b"{}"])
def test_a_damaged_file_is_named(tmp_path, damage, capsys):
    path = sorted(write_run(tmp_path / "a").iterdir())[2]
    path.write_bytes(damage(path.read_bytes()))
    assert main([str(tmp_path / "a"), "--out", str(tmp_path / "out")]) == 2
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "0"}, "no feature dump of version 1"),
        ({"names": "5"}, "is damaged .names=5: want a list"),
        ({"sizes": "[2.5]"}, "is damaged .sizes.0.=2.5: want a whole number"),
        ({"sizes": "[3]"}, "is damaged .shapes"),
        ({"sizes": "{"}, "is damaged"),
    ],
)
def test_a_file_that_says_something_else_of_itself_is_named(tmp_path, change, message):
    layout = FeatureLayout(("prompt@0/1",), (2,))
    path = write_dump(tmp_path, 1, 0, layout, torch.ones(2, 2), torch.ones(2), torch.zeros(2), torch.zeros(2))
    save_file(load_file(path), path, {"version": "1", "names": '["prompt@0/1"]', "sizes": "[2]"} | change)
    with pytest.raises(ValueError, match=f"{path} .*{message}"):
        read_dumps([tmp_path])


def test_what_cannot_be_studied_is_said(tmp_path, capsys):
    def error_of(*folders, options=()):
        assert main([*map(str, folders), "--out", str(tmp_path / "out"), *options]) == 2
        return capsys.readouterr().err

    (tmp_path / "empty").mkdir()
    assert "poise.dump_features.folder" in error_of(tmp_path / "empty")
    small = FeatureLayout(("prompt@0/1",), (2,))
    write_dump(tmp_path / "s", 1, 0, small, torch.ones(4, 2), torch.ones(4), torch.tensor([0, 0, 1, 1]), torch.zeros(4))
    assert "different features" in error_of(write_run(tmp_path / "a"), tmp_path / "s")
    assert "cannot be dealt into 5 folds" in error_of(tmp_path / "s")
    write_dump(tmp_path / "one", 1, 0, small, torch.ones(2, 2), torch.ones(2), torch.arange(2), torch.arange(2))
    assert "two rollouts" in error_of(tmp_path / "one")
    scalars = FeatureLayout(("length",), (1,))
    write_dump(tmp_path / "t", 1, 0, scalars, torch.ones(9, 1), torch.ones(9), torch.arange(9), torch.zeros(9))
    assert "no hidden states" in error_of(tmp_path / "t")
    assert "rank=0: want a whole number" in error_of(tmp_path / "a", options=["--rank", "0"])


def test_what_a_perfect_predictor_could_reach(tmp_path):
    """Pass rates are uniform: variance 1/12; the mean of three siblings adds a noise of (1/6) / 3."""
    spread, ceiling = pass_rate_spread(read_dumps([write_run(tmp_path, steps=40)]))
    assert spread == pytest.approx((1 / 12) ** 0.5, abs=0.03)
    assert ceiling == pytest.approx((1 / 12 / (1 / 12 + 1 / 18)) ** 0.5, abs=0.03)
    layout = FeatureLayout(("prompt@0/1",), (2,))
    write_dump(tmp_path / "one", 1, 0, layout, torch.zeros(4, 2), torch.ones(4), torch.arange(4) // 2, torch.zeros(4))
    assert pass_rate_spread(read_dumps([tmp_path / "one"])) == (0.0, 0.0)


def test_the_first_is_taken_unless_another_is_clearly_better(tmp_path):
    dump = read_dumps([write_run(tmp_path)])
    fold_N = folds_of(dump.prompt_N, 5, 0)

    def result_of(block, kind):
        choice = Choice(block, 4, ("prompt", "response"), (), kind)
        return judge(dump, choice, ProbeSettings(), fold_N)

    blind, ridge, same = result_of(3, "ridge"), result_of(7, "ridge"), result_of(7, "subspace_ridge")
    assert first_as_good([blind, ridge, same], dump) is ridge
    assert first_as_good([same, ridge, blind], dump) is same


def test_rows_of_one_prompt_share_a_fold():
    prompt_N = torch.randint(0, 50, (400,), generator=torch.Generator().manual_seed(0))
    fold_N = folds_of(prompt_N, 5, 0)
    for prompt in prompt_N.unique():
        assert len(fold_N[prompt_N == prompt].unique()) == 1
    assert fold_N.unique().tolist() == [0, 1, 2, 3, 4]


def test_predictions_do_not_know_the_rows_own_prompt(tmp_path):
    """A feature that names the prompt and nothing else: useless on unseen prompts, perfect on seen ones."""
    generator = torch.Generator().manual_seed(0)
    prompt_N = torch.arange(60).repeat_interleave(4)
    pass_P = (torch.rand(60, generator=generator) < 0.5).float()
    name_PD = torch.randn(60, 64, generator=generator)
    layout = FeatureLayout(("prompt@0/1",), (64,))
    write_dump(tmp_path, 1, 0, layout, name_PD[prompt_N], pass_P[prompt_N], prompt_N, prompt_N)
    dump = read_dumps([tmp_path])
    choice = Choice(0, 1, ("prompt",), (), "ridge")
    honest, _ = out_of_fold(dump, choice, ProbeSettings(), folds_of(dump.prompt_N, 5, 0))
    leaking, _ = out_of_fold(dump, choice, ProbeSettings(), torch.arange(240) % 4)
    correlation = [torch.corrcoef(torch.stack([v, dump.reward_N]))[0, 1].nan_to_num() for v in (honest, leaking)]
    assert correlation[0] < 0.2 and correlation[1] > 0.5


def test_the_program(tmp_path):
    write_run(tmp_path / "dump")
    command = [
        sys.executable, "-m", "probe.study", str(tmp_path / "dump"), "--out", str(tmp_path / "out"),
        "--estimators", "subspace_ridge", "ridge", "--rank", "12",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    best = yaml.safe_load((tmp_path / "out/poise.yaml").read_text())["poise"]
    assert best["block"] == 7 and best["num_tokens"] == 4 and best["probe"]["kind"] in ("subspace_ridge", "ridge")
    assert best["probe"]["rank"] == 12  # what was compared is what is pasted
    for name in ("calibration.png", "blocks.png", "learning_curve.png"):
        assert (tmp_path / "out" / name).read_bytes()[:4] == b"\x89PNG"
    for word in ("block and pooling", "states", "signals", "estimator", "Pearson", "var/RLOO"):
        assert word in result.stdout


def test_planted_values_are_the_rewards_means():
    world = PlantedWorld(16, seed=3)
    rows = world.draw(20_000)
    assert 0.2 < float(rows.value_N.std()) < 0.4
    for low in (0.0, 0.25, 0.5, 0.75):
        inside = (rows.value_N >= low) & (rows.value_N < low + 0.25)
        assert float(rows.target_N[inside].mean()) == pytest.approx(float(rows.value_N[inside].mean()), abs=0.03)
    assert torch.equal(rows.reward_N.view(-1, 2).flip(1).flatten(), rows.target_N)
    with pytest.raises(ValueError, match="pairs"):
        world.draw(3)
