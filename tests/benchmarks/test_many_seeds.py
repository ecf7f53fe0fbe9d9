"""Many seeds at once: the stacked model is transformers' model, verdicts are the verifier's, and the program runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from benchmarks.many_seeds import table
from benchmarks.many_seeds.banks import BankSettings
from benchmarks.many_seeds.loop import BLOCK, STATE_TOKENS, Method, Settings, Trainer, of_group
from benchmarks.many_seeds.sampling import Sampler
from benchmarks.many_seeds.stacked import Stacked
from benchmarks.many_seeds.task import TaskData
from recipe.poise.quickstart.prepare import parser, prepare, settings_of
from recipe.poise.studies.advantages import grpo, rloo
from recipe.poise.studies.rollout_pool import Policy
from reward.reasoning_gym_verifier import compute_score

ROOT, LIMIT = Path(__file__).parents[2], 64


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many_seeds") / "assets"
    prepare(folder, settings_of(parser().parse_args(["--out", "", "--train-prompts", "64", "--val-prompts", "16"])))
    return folder


@pytest.fixture(scope="module")
def sampled(assets):
    """Data, two copies of the model that have gone apart, prompts of several lengths and responses to them."""
    data = TaskData(assets, LIMIT, "cpu")
    model, generator = Stacked(data.model, 2, "cpu"), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters:
            weight[1] += 0.003 * torch.randn(weight[1].shape, generator=generator)
    number_SB = torch.arange(64).view(2, 32)
    prompts = (data.train.prompt_NL[number_SB], data.train.mask_NL[number_SB])
    sampler = Sampler(model, 32, prompts[0].shape[2], LIMIT, data.end, data.pad)
    rollouts = sampler(*prompts, generator)
    ids_SBL = torch.cat([prompts[0], rollouts.token_SBT], dim=2)
    return data, model, number_SB, rollouts, ids_SBL, torch.cat([prompts[1], rollouts.mask_SBT], dim=2)


@torch.no_grad()
def test_each_copy_is_transformers_model(sampled):
    data, model, _, _, ids_SBL, mask_SBL = sampled
    state, block = model.states(ids_SBL, mask_SBL, block=1)
    logits, reference = model.logits(state), data.model
    assert len(set(mask_SBL.sum(2).flatten().tolist())) > 5, "rows of several lengths"
    for copy in range(2):
        for name, weight in reference.named_parameters():
            weight.copy_(model.weights[name][copy])
        for row in range(8):
            keep = mask_SBL[copy, row]
            out = reference(ids_SBL[copy, row][keep].unsqueeze(0), output_hidden_states=True)
            torch.testing.assert_close(logits[copy, row][keep], out.logits[0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(block[copy, row][keep], out.hidden_states[2][0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_what_sampling_says_of_its_tokens_the_pass_says_too(sampled):
    _, model, _, rollouts, ids_SBL, mask_SBL = sampled
    log_p = model.logits(model.states(ids_SBL, mask_SBL)[0])[:, :, -LIMIT - 1 : -1].log_softmax(-1)
    found = log_p.gather(-1, rollouts.token_SBT.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(found[rollouts.mask_SBT], rollouts.log_prob_SBT[rollouts.mask_SBT], atol=1e-4, rtol=0)
    # a policy's own samples are as likely as it says, on average: minus the entropy
    entropy = -(log_p.exp() * log_p).sum(-1)[rollouts.mask_SBT]
    assert abs(float(entropy.mean() + rollouts.log_prob_SBT[rollouts.mask_SBT].mean())) < 0.1


def test_verdicts_are_the_verifiers(sampled, assets):
    data, _, number_SB, rollouts, _, _ = sampled
    rows = pd.read_parquet(assets / "train.parquet").to_dict("records")
    found, expected = data.right(data.train, number_SB, rollouts).flatten(), []
    pairs = zip(rollouts.token_SBT.flatten(0, 1), rollouts.mask_SBT.flatten(0, 1), number_SB.flatten(), strict=True)
    for token_T, mask_T, number in pairs:
        row, text = rows[int(number)], data.tokenizer.decode(token_T[mask_T], skip_special_tokens=True)
        expected.append(compute_score(row["data_source"], text, row["reward_model"]["ground_truth"])["score"])
    assert found.tolist() == expected and 0 < sum(expected) < 64


@pytest.mark.parametrize("n", [1, 2])
@torch.no_grad()
def test_features_are_those_of_training(sampled, assets, n):
    """As the studies read them, with the capture that training uses; with one rollout, the prompt's state alone."""
    data, model, _, rollouts, ids_SBL, mask_SBL = sampled
    trainer = Trainer(data, Method("bank", n), Settings(), [0, 1], None)
    policy = Policy(str(assets / "model"))
    state, block = model.states(ids_SBL, mask_SBL, trainer.block)
    log_p = model.logits(state)[:, :, -LIMIT - 1 : -1].log_softmax(-1)
    found = trainer._features(rollouts, ids_SBL, mask_SBL, block, log_p)[0]  # the first copy is as it was read
    rows = [ids_L[mask_L] for ids_L, mask_L in zip(ids_SBL[0], mask_SBL[0], strict=True)]
    expected = policy.features(rows, rollouts.mask_SBT[0].sum(1).tolist(), LIMIT)
    hidden = data.model.config.hidden_size
    assert expected.shape[1] == 2 * hidden + 3
    torch.testing.assert_close(found, expected[:, :hidden] if n == 1 else expected, atol=1e-3, rtol=1e-3)


def test_what_is_written_twice_is_the_same():
    """Settings of the comparison's runs, which the loop does not compose."""
    base, quickstart, runs = (
        yaml.safe_load((ROOT / path).read_text())
        for path in (
            "recipe/poise/config/poise_base.yaml",
            "recipe/poise/config/quickstart_base.yaml",
            "launch/runs/compare/_base.yaml",
        )
    )
    assert (base["poise"]["block"], base["poise"]["num_tokens"]) == (pytest.approx(BLOCK), STATE_TOKENS)
    assert quickstart["poise"]["probe"]["min_rows"] == BankSettings(128, 2, "combine").min_rows
    overrides = runs["overrides"]
    assert float(overrides["actor_rollout_ref.actor.optim.lr"]) == Settings.learning_rate
    assert overrides["trainer.total_training_steps"] == Settings.updates


def test_group_baselines_are_those_of_the_studies():
    reward_SB = (torch.rand(3, 16) < 0.5).float()
    for kind, function in (("rloo", rloo), ("grpo", grpo)):
        expected = torch.stack([function(reward_B, 8) for reward_B in reward_SB])
        torch.testing.assert_close(of_group(kind, reward_SB, 8), expected.float(), atol=1e-5, rtol=0)


def test_the_program(assets, tmp_path):
    words = ["--limit", str(LIMIT), "--seeds", "2", "--updates", "1", "--validate-every", "1", "--rollouts", "16"]
    words += ["--methods", "energy_constant", "poise", "oracle", "rloo"]
    command = [sys.executable, "benchmarks/many_seeds/run.py", str(assets), *words, "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    out = tmp_path / "out.json"
    done = subprocess.run(
        [*command, "--out", str(out)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    whole = json.loads(out.read_text())
    assert list(whole["methods"]) == ["energy_constant", "poise", "oracle", "rloo"]
    for name, method in whole["methods"].items():
        assert method["at"] == [0, 1] and all(0 < x < 1 for x in method["accuracy"][-1]), name
        assert (method["ratio"][0] == method["ratio"][0]) == (name != "rloo")
    constant = whole["methods"]["energy_constant"]
    assert constant["ratio"] == pytest.approx([1.0])
    assert table.render(whole) == done.stdout
    wrong = subprocess.run(
        [*command, "--rollouts", "12"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100
    )
    assert wrong.returncode == 1 and "rloo wants a multiple of 8" in wrong.stderr
    missing = subprocess.run(
        [sys.executable, "benchmarks/many_seeds/run.py", "nowhere"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert missing.returncode == 1 and "recipe.poise.quickstart.prepare --out nowhere" in missing.stderr


def test_differences_are_paired():
    base = {"at": [0, 2], "accuracy": [[0.2, 0.6], [0.4, 0.8]], "ratio": [1.0, 1.0], "seconds": 1.0}
    mine = base | {"accuracy": [[0.2, 0.6], [0.5, 0.9]], "ratio": [2.0, 0.5]}
    text = table.render({"settings": {"task": "x"}, "methods": {"energy_constant": base, "poise": mine}})
    assert "| poise | 0.5500 " in text and "| +0.0500 (+0.0500 to +0.0500) |" in text, "no scatter where all gain alike"
    assert "| 2.00 | 0.50 | 1 |" in text
    turned = table.render({"settings": {"task": "x"}, "methods": {"energy_constant": base, "poise": mine}}, "poise")
    assert "area less poise's" in turned and "| -0.0500 (-0.0500 to -0.0500) |" in turned
