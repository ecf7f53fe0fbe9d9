"""The optimal token baseline in V1's trainer, for real: what the log-prob pass computes reaches verl's estimator."""

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.extended, pytest.mark.timeout(1200)]


def test_otb_trains(run_poise, assets, small, tmp_path):
    run = run_poise(
        tmp_path, assets, *small, "+method=otb", "data.train_batch_size=4",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4", "trainer.n_gpus_per_node=1", "trainer.total_training_steps=2",
        "trainer.save_freq=-1", limit_s=900,
    )  # fmt: skip
    assert set(run.metrics) == {1, 2}
    for step in run.metrics.values():
        assert step["rollout/rows"] == 32 and step["rollout/prompts"] == 4
        # outcome rewards of 0 and 1 less a mean of them, token by token
        assert step["critic/advantages/max"] <= 1.0 and step["critic/advantages/min"] >= -1.0
        if step["critic/rewards/mean"] not in (0.0, 1.0):
            assert step["advantage/variance"] > 0 and step["actor/grad_norm"] > 0
