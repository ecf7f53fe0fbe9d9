"""How old rows are."""

import pytest

from recipe.poise.trainer.staleness import staleness


def test_staleness_counts_syncs_and_leaves_padding_out():
    tags = [{"max_global_steps": version} for version in (4, 4, 3, 1)]
    tags.append({"max_global_steps": 0, "is_padding": True})
    assert staleness(tags, 4) == pytest.approx(
        {"poise/staleness_mean": 1.0, "poise/staleness_max": 3.0, "poise/staleness_share": 0.5}
    )
    assert staleness(tags[-1:], 4) == {}
