"""Metrics of several updates in a step: each reduced by what it is, not by words in its name."""

import pytest

from recipe.poise.trainer.cycle import reduce_ours


def test_counts_are_summed_means_weighted_and_the_last_window_is_taken():
    first = {
        "rollout/rows": 10, "rollout/generated_tokens": 100, "poise/rows": 10, "poise/mae": 0.2,
        "poise/window_rows": 10,
        "poise/staleness_max": 3.0, "poise/staleness_mean": 1.0, "poise/minerva/mae": 0.4, "poise/left_out_reward": 1,
        "poise/time_fit_s": 0.5, "actor/entropy": 1.0,
    }  # fmt: skip
    second = {
        "rollout/rows": 30, "rollout/generated_tokens": 50, "poise/rows": 30, "poise/mae": 0.4, "poise/window_rows": 40,
        "poise/staleness_max": 1.0, "poise/staleness_mean": 0.0, "poise/minerva/mae": 0.8, "poise/left_out_reward": 0,
        "poise/time_fit_s": 0.25, "actor/entropy": 3.0, "poise/correlation": 0.5,
    }  # fmt: skip
    assert reduce_ours([first, second]) == pytest.approx(
        {
            "rollout/rows": 40, "rollout/generated_tokens": 150, "poise/rows": 40, "poise/mae": 0.35,
            "poise/window_rows": 40, "poise/staleness_max": 3.0, "poise/staleness_mean": 0.25, "poise/minerva/mae": 0.7,
            "poise/left_out_reward": 1, "poise/time_fit_s": 0.75, "poise/correlation": 0.5,
        }
    )  # fmt: skip


def test_verl_alone_would_misread_names():
    """What makes it needed; drop `reduce_ours` when verl asks for a rule instead of reading names."""
    from verl.trainer.ppo.v1.utils import MetricsAggregator

    theirs = MetricsAggregator()
    for tokens, error in ((100, 0.4), (50, 0.8)):
        theirs.add_step_metrics({"rollout/generated_tokens": tokens, "poise/minerva/mae": error}, sample_count=1)
    found = theirs.get_aggregated_metrics()
    assert found == {"rollout/generated_tokens": 75.0, "poise/minerva/mae": 0.4}
