"""The study of windows: rows of a saved probe, steps gone through again, the table."""

import json

import numpy as np
import pytest
import torch

from probe import Crossing, FeatureLayout, ProbeBank, ProbeSettings
from probe.estimators import Ridge
from recipe.poise.studies.window_study import CONSTANT, FORMS, errors, main, newest, read_window

LAYOUT = FeatureLayout(("prompt", "response", "length"), (4, 3, 1))
LINK, REGRESSION = "weights in the link (the default)", "weights in the regression"


def saved(folder, rollouts=2, steps=14, prompts=32, layout=LAYOUT, **crossing):
    """A run's folder with a bank that has learned prompts whose state tells their rate; failures weigh tenfold, and
    unequally. Its rows: a list of (features, rewards, energies, step)."""
    generator = torch.Generator().manual_seed(3)
    crossing = Crossing(**{"weights": "energy", "fit": "fresh", "prompt_blocks": ("prompt",)} | crossing)
    settings = ProbeSettings(min_rows=16, exact_features=64)
    bank = ProbeBank(settings, layout, self_target=rollouts == 1, crossing=crossing)
    rows = []
    for step in range(1, steps + 1):
        group = torch.arange(prompts).repeat_interleave(rollouts)
        prompt = torch.randn(prompts, 4, generator=generator)[group]
        rate = (2.5 * prompt[:, 0]).sigmoid()
        reward = (torch.rand(len(group), generator=generator) < rate).float()
        x = torch.cat([prompt, torch.randn(len(group), layout.num_features - 4, generator=generator)], dim=1)
        heavy = torch.randn(len(group), generator=generator).exp()
        energy = heavy * torch.where(reward > 0, 1.0, 10.0)
        bank.update(x, reward, group, step=step, weight_R=energy if crossing.weights == "energy" else None)
        rows.append((x, reward, energy, step))
    bank.save(folder / f"checkpoints/global_step_{steps}/critic")
    return folder, rows


def test_rows_are_those_that_were_learned(tmp_path):
    run, rows = saved(tmp_path)
    window = read_window(newest(run), "prompt")
    assert window.feature_NF.shape == (14 * 64, 4)
    assert torch.equal(window.feature_NF[:64].float(), rows[0][0][:, :4])
    assert torch.equal(window.energy_N[-64:].float(), rows[-1][2])
    siblings = read_window(newest(run), "sibling")
    assert torch.equal(siblings.feature_NF[:2].float(), rows[0][0][[1, 0]])  # each row has the other's
    assert torch.equal(siblings.reward_N[:2].float(), rows[0][1][:2])


def test_the_constants_error_is_that_of_a_loop(tmp_path):
    window = read_window(newest(saved(tmp_path)[0]), "prompt")
    total, halving = 0.0, 0.0
    for step in range(9, 15):
        past, now = window.step_N < step, window.step_N == step
        e, r = window.energy_N, window.reward_N
        decayed = e[past] * 0.5 ** ((step - window.step_N[past]) / 4)
        for weight, add in ((e[past], True), (decayed, False)):
            b = (weight * r[past]).sum() / weight.sum()
            error = float((e[now] * (r[now] - b) ** 2).sum())
            total, halving = (total + error, halving) if add else (total, halving + error)
    found = errors(window)
    assert found[CONSTANT] == 1.0 and list(found) == list(FORMS)
    assert found[f"{CONSTANT}, halving in 4 steps"] == pytest.approx(halving / total, rel=1e-9)


def test_the_forms_are_those_of_the_probe_and_find_what_the_state_tells(tmp_path):
    """Step by step with the product's own estimator, weights here and there."""
    window = read_window(newest(saved(tmp_path)[0]), "prompt")
    found, total = errors(window), dict.fromkeys(("link", "fit", "constant"), 0.0)
    for step in range(9, 15):
        past, now = window.where(window.step_N < step), window.where(window.step_N == step)
        constant = (past.energy_N * past.reward_N).sum() / past.energy_N.sum()
        said = {"constant": constant.expand(len(now.reward_N))}
        for weighted in ("link", "fit"):
            ridge = Ridge(FeatureLayout(("prompt",), (4,)), weighted=weighted)
            ridge.fit(past.feature_NF, past.reward_N, past.group_N, past.energy_N)
            said[weighted] = ridge.predict(now.feature_NF)
        for name, value in said.items():
            total[name] += float((now.energy_N * (now.reward_N - value) ** 2).sum())
    assert found[LINK] == pytest.approx(total["link"] / total["constant"], rel=1e-3)
    assert found[REGRESSION] == pytest.approx(total["fit"] / total["constant"], rel=1e-3)
    assert max(found[LINK], found[REGRESSION]) < 0.95
    assert found["the same, rows' counts halve in 4 steps"] > found[LINK]  # nothing changes here: old rows are as good


def test_the_table_has_a_column_for_what_the_runs_have(tmp_path, capsys):
    two, one = saved(tmp_path / "two_s0")[0], saved(tmp_path / "one_s0", rollouts=1)[0]
    assert main(["--runs", str(two), str(one), "--out", str(tmp_path / "out")]) == 0
    done = json.loads((tmp_path / "out/window_study.json").read_text())
    assert [(record["run"], record["features"]) for record in done] == [
        ("two_s0", "prompt"), ("two_s0", "sibling"), ("one_s0", "prompt"),
    ]  # fmt: skip
    text = (tmp_path / "out/window_study.md").read_text()
    assert "| form | prompt states, 2 runs | sibling states, 1 runs |" in text and text in capsys.readouterr().out
    mean = np.mean([record["errors"][LINK] for record in done if record["features"] == "prompt"])
    assert f"| {LINK} | {mean:.3f} (" in text


def test_what_cannot_be_studied_is_said(tmp_path, capsys):
    few = saved(tmp_path / "few", steps=8)[0]
    alike = saved(tmp_path / "alike", weights="uniform")[0]
    blind = saved(tmp_path / "blind", layout=FeatureLayout(("response", "length"), (7, 1)), prompt_blocks=())[0]
    for run, said in (
        (tmp_path / "none", "holds no probe's state"), (few, "want more than 8 steps"),
        (alike, "whose rows weigh by energy"), (blind, "have no prompt's state"),
    ):  # fmt: skip
        assert main(["--runs", str(run), "--out", str(tmp_path / "out")]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
