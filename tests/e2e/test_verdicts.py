"""Rows on which the verifier failed take no part in the update nor the fit, with POISE and verl's own estimators."""

import json
from zlib import crc32

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.extended, pytest.mark.timeout(1500)]

FLAKY = '''
"""Rewards of 0 and 1 by prompt and response, and no judgement on a third of the responses, or on all."""
from zlib import crc32

def compute_score(data_source, solution_str, ground_truth, extra_info=None, always=False, **kwargs):
    code = crc32(f"{extra_info['index']} {solution_str}".encode())
    failed, right = always or code % 3 == 0, code // 3 % 2
    return {"score": 0.0 if failed else float(right), "acc": float(right), "verifier_failed": float(failed)}
'''
BOXED = '''
"""The router's verdict on a box that only mathematics can judge, right or not by the text's hash; none on sums."""
from zlib import crc32
from reward import router

async def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    off = 1 - crc32(solution_str.encode()) % 2
    answer = f"{solution_str}</think>\\\\boxed{{{ground_truth} + {off}}}"
    verdict = await router.compute_score(data_source, answer, ground_truth, extra_info, **kwargs)
    return verdict | ({"score": 0.0, "acc": 0.0, "verifier_failed": 1.0} if data_source == "chain_sum" else {})
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
    for step, rows in zip(steps, fitted, strict=True):
        assert step["reward/verifier_failed_share"] <= step["poise/share_no_baseline"] <= 1 - rows / 32
    assert steps[0]["poise/share_no_baseline"] < 1 - fitted[0] / 32
    rows = [steps[1][f"poise/{domain}/window_rows"] for domain in ("sums", "default")]
    assert min(rows) > 0 and sum(rows) == sum(fitted)


@pytest.fixture(scope="module")
def judged(run_poise, assets, tmp_path_factory):
    """One step of GRPO: math-verify's processes under the reward loop's actors; DAPO's manager takes its penalty off,
    token by token. The step's metrics, and its rows."""
    folder = tmp_path_factory.mktemp("judged")
    (folder / "boxed.py").write_text(BOXED)
    overlong = "{enable: true, len: 64, penalty_factor: 1.0, log: true}"  # all of a response's 64 tokens are paid for
    run = run_poise(
        folder, assets, *SMALL, "algorithm.adv_estimator=grpo", "critic.enable=False",
        "trainer.total_training_steps=1", f"trainer.rollout_data_dir={folder}/rollouts",
        f"reward.custom_reward_function.path={folder}/boxed.py",
        "+reward.custom_reward_function.reward_kwargs.routes={chain_sum: math, products: {verifier: math, workers: 1}}",
        "reward.reward_manager.name=dapo",
        f"+reward.reward_kwargs.overlong_buffer_cfg={overlong}",
        "+reward.reward_kwargs.max_resp_len=${data.max_response_length}",
    )  # fmt: skip
    return run.metrics[1], [json.loads(line) for line in (folder / "rollouts/1.jsonl").read_text().splitlines()]


def is_sum(row: dict) -> bool:
    return "*" not in row["input"]


def test_the_router_judges_inside_ray(judged):
    step, rows = judged
    right = [0 if is_sum(row) else crc32(row["output"].encode()) % 2 for row in rows]
    assert len(rows) == 32 and 0 < sum(right) < 32
    lengths = [(acc - row["score"]) * 64 for acc, row in zip(right, rows, strict=True)]
    assert lengths == pytest.approx([round(length) for length in lengths], abs=1e-3) and 1 <= min(lengths)
    assert sum(lengths) == pytest.approx(32 * step["response_length/mean"], abs=1e-2)
    assert step["rollout/generated_tokens"] == pytest.approx(32 * step["response_length/mean"])


def test_other_estimators_do_not_learn_from_failed_rows(judged):
    """Without a judgement there are differences of length alone, which would teach."""
    step, rows = judged
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row["input"], []).append(row)
    assert len(groups) == 16 and {len(group) for group in groups.values()} == {2}
    differ = [group for group in groups.values() if group[0]["score"] != group[1]["score"]]
    open_groups = [group for group in differ if not is_sum(group[0])]
    failed = [group for group in groups.values() if is_sum(group[0])]
    assert 0 < len(open_groups) < len(differ)  # failed ones differ too
    assert step["reward/verifier_failed_share"] == 2 * len(failed) / 32
    assert step["advantage/zero_share"] == pytest.approx(1 - 2 * len(open_groups) / 32)
    assert step["actor/grad_norm"] > 0


def test_where_all_rows_failed_nothing_is_learned(flaky, run_poise, assets, tmp_path):
    grpo = ("algorithm.adv_estimator=grpo", "critic.enable=False", "trainer.total_training_steps=1")
    always = "+reward.custom_reward_function.reward_kwargs.always=True"
    run = run_poise(tmp_path, assets, *SMALL, *grpo, flaky, always)
    assert run.metrics[1]["reward/verifier_failed_share"] == 1.0 and run.metrics[1]["actor/grad_norm"] == 0
    assert run.metrics[1]["critic/advantages/max"] == run.metrics[1]["critic/advantages/min"] == 0
    assert run.metrics[1]["advantage/zero_share"] == 1.0
    assert run.metrics[1]["rollout/generated_tokens"] == 32 * run.metrics[1]["response_length/mean"]
