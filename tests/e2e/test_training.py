"""POISE trains through verl for real: Ray, FSDP2 over gloo, vLLM with weight sync, the probe in the critic's seat."""

import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from probe.study.dump import read_dumps

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]


def test_rollout_and_actor_agree_while_the_weights_move(unbroken):
    assert sorted(unbroken.metrics) == [1, 2, 3, 4]
    for step in unbroken.metrics.values():
        assert step["training/rollout_actor_probs_pearson_corr"] > 0.999
        assert step["actor/grad_norm"] > 0
    shards = [
        (unbroken.checkpoints / f"global_step_{n}/actor/model_world_size_2_rank_0.pt").read_bytes() for n in (2, 4)
    ]
    assert shards[0] != shards[1]


def test_the_probe_takes_over_and_reports(unbroken):
    first, last = unbroken.metrics[1], unbroken.metrics[4]
    assert first["poise/share_rloo"] == 1.0  # nothing was fitted before the first step
    for step in unbroken.metrics.values():
        assert step["poise/rows"] == 32
        assert {"poise/time_capture_s", "poise/time_predict_s", "poise/time_fit_s"} <= set(step)
        assert {"poise/advantage_variance", "poise/advantage_variance_rloo"} <= set(step)
    assert last["poise/window_rows"] == 4 * 32
    assert {"poise/correlation", "poise/mae", "poise/brier_skill", "poise/penalty"} <= set(last)


def test_resume_goes_on_as_if_never_stopped(unbroken, run_poise, assets, tmp_path):
    shutil.copytree(unbroken.checkpoints / "global_step_2", tmp_path / "checkpoints/global_step_2")
    (tmp_path / "checkpoints/latest_checkpointed_iteration.txt").write_text("2")
    resumed = run_poise(tmp_path, assets, *unbroken.overrides)
    assert sorted(resumed.metrics) == [3, 4]
    compared = ("critic/score/mean", "response_length/mean", "actor/entropy", "actor/grad_norm")
    for step in (3, 4):
        expected, found = unbroken.metrics[step], resumed.metrics[step]
        names = [*compared, *(name for name in expected if name.startswith("poise/") and "time_" not in name)]
        assert {name: found[name] for name in names} == pytest.approx(
            {name: expected[name] for name in names}, rel=2e-3, abs=2e-4
        )
    for path in (unbroken.checkpoints / "global_step_4/critic").glob("*.safetensors"):
        expected, found = load_file(path), load_file(resumed.checkpoints / "global_step_4/critic" / path.name)
        assert expected.keys() == found.keys()
        for name in expected:
            first, second = (tensors[name].double() for tensors in (expected, found))
            if len(first) == 4 * 32:  # rows stand in the order in which their generation happened to finish
                first, second = (tensor.sort(dim=0).values for tensor in (first, second))
            assert second.numpy() == pytest.approx(first.numpy(), rel=2e-3, abs=2e-3, nan_ok=True), name


def test_colocate_async_with_padding_lora_and_a_feature_dump(run_poise, small, assets, tmp_path):
    """And with gradient checkpointing and a reference policy, whose passes must not be captured."""
    run = run_poise(
        tmp_path, assets, *small, "trainer.v1.trainer_mode=colocate_async", "trainer.total_training_steps=2",
        "trainer.save_freq=-1", "actor_rollout_ref.model.use_remove_padding=False",
        "actor_rollout_ref.model.lora_rank=4", "actor_rollout_ref.model.lora.merge=True",
        "actor_rollout_ref.model.enable_gradient_checkpointing=True", "actor_rollout_ref.actor.use_kl_loss=True",
        f"poise.dump_features.folder={tmp_path}/dump", "poise.dump_features.blocks=[0,1]",
        "poise.dump_features.num_tokens=[1,10]",
    )  # fmt: skip
    assert sorted(run.metrics) == [1, 2]
    # in step 2 some rollouts are of the weights before the update: that is this mode's bargain
    assert run.metrics[1]["training/rollout_actor_probs_pearson_corr"] > 0.999
    assert run.metrics[1]["actor/kl_loss"] == 0.0 < run.metrics[2]["actor/kl_loss"]
    assert run.metrics[2]["poise/rows"] == 32 and run.metrics[2]["poise/window_rows"] == 64
    assert sum(run.metrics[2][f"poise/share_{name}"] for name in ("probe", "rloo", "constant")) == pytest.approx(1.0)

    dump = read_dumps([tmp_path / "dump"])
    assert dump.files == 2 and len(dump.reward_N) == 64 and len(dump.group_N.unique()) == 32
    rewards = [run.metrics[step]["critic/score/mean"] for step in (1, 2)]
    assert float(dump.reward_N.mean()) == pytest.approx(sum(rewards) / 2, abs=1e-6)
    assert torch.equal(dump.columns(("reward",))[0][:, 0], dump.reward_N)
    for place in ("0/1", "0/10", "1/1", "1/10"):
        prompt_ND, _ = dump.columns((f"prompt@{place}",))
        response_ND, _ = dump.columns((f"response@{place}",))
        # rollouts of a prompt share its state, not their own
        first, second = (prompt_ND[dump.group_N.argsort()][side::2] for side in (0, 1))
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)
        assert len(response_ND.unique(dim=0)) > 32
    command = [sys.executable, "-m", "probe.study", str(tmp_path / "dump"), "--out", str(tmp_path / "study")]
    command += ["--estimators", "subspace_ridge"]
    subprocess.run(command, check=True, timeout=120)
    assert (tmp_path / "study/poise.yaml").exists()
