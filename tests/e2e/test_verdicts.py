"""Rows on which the verifier failed take no part in the update nor the fit, with POISE and verl's own estimators."""

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]

FLAKY = '''
"""Rewards of 0 and 1 by the response's text, and no judgement on a third of the responses, or on all."""
from zlib import crc32

def compute_score(data_source, solution_str, ground_truth, extra_info=None, always=False, **kwargs):
    code = crc32(solution_str.encode())
    failed, right = always or code % 3 == 0, code // 3 % 2
    return {"score": 0.0 if failed else float(right), "acc": float(right), "verifier_failed": float(failed)}
'''
SMALL = (
    "reward.custom_reward_function.name=compute_score",
    "data.train_batch_size=16",
    "actor_rollout_ref.actor.ppo_mini_batch_size=16",
    "trainer.val_before_train=False",
    "trainer.test_freq=-1",
    "trainer.save_freq=-1",
    "poise.probe.min_rows=8",
)
TWO_DOMAINS = ("+poise.probe.domains.sums=chain_*",)


@pytest.fixture
def flaky(tmp_path):
    path = tmp_path / "flaky.py"
    path.write_text(FLAKY)
    return f"reward.custom_reward_function.path={path}"


def test_poise_leaves_failed_rows_out(flaky, run_poise, assets, tmp_path):
    run = run_poise(tmp_path, assets, *SMALL, flaky, "trainer.total_training_steps=2", *TWO_DOMAINS)
    steps = [run.metrics[1], run.metrics[2]]
    for step in steps:
        share = step["reward/verifier_failed_share"]
        assert 0.1 < share < 0.6
        assert step["poise/left_out_reward"] == share * 32
        assert step["poise/advantage_variance"] > 0 and step["actor/grad_norm"] > 0
    fitted = [32 - step["poise/left_out_reward"] - step["poise/left_out_alone"] for step in steps]
    # a row whose sibling failed: RLOO has no baseline for it, the probe has one from the sibling's states
    assert steps[0]["poise/share_no_baseline"] * 32 == 32 - fitted[0]
    assert share <= steps[1]["poise/share_no_baseline"] <= 1 - fitted[1] / 32
    rows = [steps[1][f"poise/{domain}/window_rows"] for domain in ("sums", "default")]
    assert min(rows) > 0 and sum(rows) == sum(fitted)


def test_other_estimators_do_not_learn_from_failed_rows(flaky, run_poise, assets, tmp_path):
    grpo = ("algorithm.adv_estimator=grpo", "critic.enable=False", "trainer.total_training_steps=1")
    always = "+reward.custom_reward_function.reward_kwargs.always=True"
    run = run_poise(tmp_path, assets, *SMALL, *grpo, flaky, always)
    assert run.metrics[1]["reward/verifier_failed_share"] == 1.0 and run.metrics[1]["actor/grad_norm"] == 0
    assert run.metrics[1]["critic/advantages/max"] == run.metrics[1]["critic/advantages/min"] == 0
    assert run.metrics[1]["advantage/zero_share"] == 1.0
    assert run.metrics[1]["rollout/generated_tokens"] == 32 * run.metrics[1]["response_length/mean"]


def test_the_router_judges_inside_ray(run_poise, assets, tmp_path):
    """Wrong answers go to math-verify's processes, under the reward loop's actor; DAPO's manager adds its penalty."""
    overlong = "{enable: true, len: 64, penalty_factor: 1.0, log: true}"
    run = run_poise(
        tmp_path, assets, *SMALL, "algorithm.adv_estimator=grpo", "critic.enable=False",
        "trainer.total_training_steps=1",
        "reward.custom_reward_function.path=pkg://reward.router",
        "+reward.custom_reward_function.reward_kwargs.routes={chain_sum: math, products: {verifier: math, workers: 1}}",
        "reward.reward_manager.name=dapo",
        f"+reward.reward_kwargs.overlong_buffer_cfg={overlong}",
        "+reward.reward_kwargs.max_resp_len=${data.max_response_length}",
    )  # fmt: skip
    assert run.metrics[1]["reward/verifier_failed_share"] == 0.0
    # responses that do not end reach the limit, where the whole penalty is due
    assert run.metrics[1]["critic/score/min"] == pytest.approx(-1.0)
