"""Prompts are chosen in a real run: candidates through the actor's engine, the same choices after a resume; open ones
get more rollouts, whose rows weigh by the energy of their scores."""

import json
import shutil
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file

from recipe.poise.studies import prompt_study

pytestmark = [pytest.mark.e2e, pytest.mark.extended, pytest.mark.timeout(1800)]


def asked(run, step: int) -> list[str]:
    """The prompts of a step's rollouts, sorted."""
    lines = (run.checkpoints.parent / f"rollouts/{step}.jsonl").read_text().splitlines()
    return sorted(json.loads(line)["input"] for line in lines)


@pytest.fixture(scope="module")
def start(run_poise, small, assets):
    """A function that starts such a run in a folder."""

    def run(folder, *overrides):
        return run_poise(
            folder, assets, *small, "poise.select.candidates=4", f"trainer.rollout_data_dir={folder}/rollouts",
            "trainer.max_actor_ckpt_to_keep=null", "trainer.max_critic_ckpt_to_keep=null", *overrides, limit_s=900,
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def unbroken(start, tmp_path_factory):
    """Four steps of one rank, checkpoints at steps 2 and 4."""
    return start(
        tmp_path_factory.mktemp("chosen"), "trainer.n_gpus_per_node=1", "trainer.total_training_steps=4",
        "trainer.save_freq=2",
    )  # fmt: skip


def test_candidates_are_judged_and_what_became_of_them_is_said(unbroken):
    assert sorted(unbroken.metrics) == [1, 2, 3, 4]
    prompts = [set(asked(unbroken, step)) for step in unbroken.metrics]
    assert [len(step) for step in prompts] == [16] * 4
    for number, step in unbroken.metrics.items():
        assert step["poise/select_candidates"] == 64
        assert step["poise/prompt_pass_tokens"] > 64 * 4 and step["poise/time_prompt_pass_s"] > 0
        assert step["poise/select_observed"] == pytest.approx(step["critic/score/mean"], abs=1e-6)
        assert 0 <= step["poise/select_equal_share"] <= 1
        assert ("poise/select_expected" in step) == (number > 1)  # nothing is known before the first fit
        assert step["poise/prompt_window_rows"] == number * 16
    assert unbroken.metrics[4]["poise/select_known"] >= 0
    assert "timing_s/prompt_pass" in unbroken.metrics[3] and "timing_s/prompt_pass" not in unbroken.metrics[4]


def test_what_was_known_of_prompts_can_be_studied_afterwards(unbroken, tmp_path):
    run = unbroken.checkpoints.parent
    shutil.copy(run / "hydra/.hydra/config.yaml", run / "config.yaml")  # where `launch` leaves it
    arguments = ["--run", str(run), "--prompts", "12", "--k", "4", "--bins", "2", "--out", str(tmp_path)]
    assert prompt_study.main(arguments) == 0
    records = json.loads((tmp_path / "prompt_study.json").read_text())[0]["records"]
    assert [(item["step"], item["prompts"]) for item in records] == [
        (step, kind) for step in (2, 4) for kind in (prompt_study.NEVER, prompt_study.BEFORE)
    ]
    for item in records:
        asked_before = item["prompts"] == prompt_study.BEFORE
        assert len(item["results"]) == (3 if asked_before else 2)
        assert all(0 <= found["mae"] <= 1 for found in item["results"].values())
        assert ("choices" in item) == (not asked_before)
    found = records[0]["choices"]["4"]
    assert found["chance"] > 0 and all(0 <= number <= 0.5 for number in found.values())
    assert f"| 2 | one in 4 | {found['chance']:.3f} |" in (tmp_path / "prompt_study.md").read_text()


def test_a_resumed_run_chooses_the_same_prompts(unbroken, start, tmp_path):
    run = start(
        tmp_path, "trainer.n_gpus_per_node=1", "trainer.total_training_steps=4", "trainer.save_freq=-1",
        "trainer.resume_mode=resume_path", f"trainer.resume_from_path={unbroken.checkpoints}/global_step_2",
    )  # fmt: skip
    assert sorted(run.metrics) == [3, 4]
    for step in (3, 4):
        assert asked(run, step) == asked(unbroken, step)
        names = [name for name in unbroken.metrics[step] if "select_" in name]
        assert {name: run.metrics[step][name] for name in names} == pytest.approx(
            {name: unbroken.metrics[step][name] for name in names}, rel=1e-3, abs=1e-4
        )


@pytest.fixture(scope="module")
def adaptive(start, tmp_path_factory):
    """Three steps with more rollouts for open prompts; the pass knows the exact energy, the heaviest tenth is cut."""
    return start(
        tmp_path_factory.mktemp("adaptive"), "trainer.n_gpus_per_node=1", "trainer.total_training_steps=3",
        "trainer.save_freq=3", "poise.rollouts=adaptive", "poise.weight_cap=0.9",
        "actor_rollout_ref.actor.calculate_sum_pi_squared=True",
    )  # fmt: skip


def test_open_prompts_get_more_rollouts_within_the_budget(adaptive):
    assert sorted(adaptive.metrics) == [1, 2, 3]
    for number, step in adaptive.metrics.items():
        counts = Counter(asked(adaptive, number)).values()
        assert len(counts) == step["rollout/prompts"] == 16 and sum(counts) == step["rollout/rows"] == 32
        single = sum(count == 1 for count in counts) / 16
        assert step["poise/select_single_share"] == pytest.approx(single)
        assert step["poise/rows"] == 32 and step["actor/grad_norm"] > 0
    assert adaptive.metrics[1]["poise/select_rollouts_spread"] == 0.0  # nothing is known yet: two each


def test_the_probe_gives_the_baselines_from_the_first_step(adaptive):
    assert adaptive.metrics[1]["poise/share_probe"] == 1.0
    for number, step in adaptive.metrics.items():
        # absent where all siblings agree, as in any small step: RLOO's error is then zero
        assert ("poise/gradient_variance_ratio" in step) == (step["poise/advantage_variance_rloo"] > 0)
        assert 0 < step["poise/window_rows"] <= number * 32
        assert {"poise/mae", "poise/weight_probe", "poise/error_rloo"} <= set(step)  # honest from the first step on


def test_the_window_holds_what_rows_weigh(adaptive):
    folder = adaptive.checkpoints / "global_step_3/critic"
    manifest = json.loads((folder / "probe.json").read_text())
    assert manifest["identity"]["crossing"] == {
        "weights": "energy", "weight_cap": 0.9, "fit": "fresh", "prompt_blocks": ["prompt"],
        "coherence": 0.1, "surprise": 1.0,
    }  # fmt: skip
    tensors = load_file(folder / "probe.safetensors")
    weight_N, uncapped_N, step_N = (tensors[f"0.window.{name}"] for name in ("weight", "uncapped", "step"))
    assert (uncapped_N >= 0).all() and len(uncapped_N.unique()) > len(uncapped_N) / 2
    assert torch.equal(weight_N[step_N == 1], uncapped_N[step_N == 1])  # nothing earlier to be capped by
    for step in (2, 3):
        earlier_N, now_N = uncapped_N[step_N < step], step_N == step
        cap = torch.quantile(earlier_N.double(), 0.9).float()
        torch.testing.assert_close(weight_N[now_N], uncapped_N[now_N].clamp(max=cap))
