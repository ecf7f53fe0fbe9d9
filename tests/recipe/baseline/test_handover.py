"""The way of a batch to an estimator that verl calls without it."""

import pytest

from recipe.poise.baseline.handover import Handover


def test_a_batch_is_there_within_and_gone_afterwards():
    one, other = Handover("one"), Handover("other")
    with one([1]) as outer:
        assert one.take() is outer
        with one([2]), pytest.raises(KeyError):
            assert one.take() == [2]
            raise KeyError
        assert one.take() is outer
        with pytest.raises(RuntimeError, match="adv_estimator=other needs POISE's trainer"):
            other.take()
    with pytest.raises(RuntimeError, match="adv_estimator=one"):
        one.take()
