"""Prompts are chosen in a real run: candidates through the actor's engine, the same choices after a resume."""

import json
import shutil
from collections import Counter

import pytest

from recipe.poise.studies import prompt_study

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]


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
    arguments = ["--run", str(run), "--prompts", "12", "--k", "2", "--bins", "2", "--out", str(tmp_path)]
    assert prompt_study.main(arguments) == 0
    records = json.loads((tmp_path / "prompt_study.json").read_text())[0]["records"]
    assert [(item["step"], item["prompts"]) for item in records] == [
        (step, kind) for step in (2, 4) for kind in (prompt_study.NEVER, prompt_study.BEFORE)
    ]
    for item in records:
        asked_before = item["prompts"] == prompt_study.BEFORE
        assert len(item["results"]) == (3 if asked_before else 2)
        assert all(0 <= found["mae"] <= 1 for found in item["results"].values())


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


def test_two_ranks_lora_padding_long_prompts_and_the_asynchronous_mode(start, tmp_path):
    """Prompts are cut to 12 tokens, as the rollout cuts them; rows are padded, micro-batches of a fixed size."""
    run = start(
        tmp_path, "trainer.n_gpus_per_node=2", "trainer.v1.trainer_mode=colocate_async",
        "trainer.total_training_steps=3", "trainer.save_freq=2", "poise.select.rule=energy",
        "poise.select.max_age=3", "actor_rollout_ref.model.use_remove_padding=False",
        "actor_rollout_ref.model.lora_rank=4", "actor_rollout_ref.model.lora.merge=True", "data.max_prompt_length=12",
        "actor_rollout_ref.actor.use_dynamic_bsz=False", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=False",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8", "critic.ppo_micro_batch_size_per_gpu=8",
    )  # fmt: skip
    assert sorted(run.metrics) == [1, 2, 3]
    assert run.metrics[3]["poise/prompt_pass_tokens"] <= 64 * 12
    assert all(step["prompt_length/max"] <= 12 for step in run.metrics.values())
    assert (run.checkpoints / "global_step_2/select/probe.json").exists()
    assert {"rate", "value", "energy"} == {
        path.name for path in (run.checkpoints / "global_step_2/critic/prompts").iterdir()
    }


def test_open_prompts_get_more_rollouts_within_the_budget(start, tmp_path):
    run = start(
        tmp_path, "trainer.n_gpus_per_node=1", "trainer.total_training_steps=3", "trainer.save_freq=-1",
        "poise.rollouts=adaptive",
    )  # fmt: skip
    assert sorted(run.metrics) == [1, 2, 3]
    for number, step in run.metrics.items():
        counts = Counter(asked(run, number)).values()
        assert len(counts) == step["rollout/prompts"] == 16 and sum(counts) == step["rollout/rows"] == 32
        single = sum(count == 1 for count in counts) / 16
        assert step["poise/select_single_share"] == pytest.approx(single)
        assert step["actor/grad_norm"] >= 0
    assert run.metrics[1]["poise/select_rollouts_spread"] == 0.0  # nothing is known yet: two each
