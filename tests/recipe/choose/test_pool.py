"""Candidates: no prompt twice in an epoch, none lost, an age limit, and the same after a resume."""

import itertools
from collections import Counter

import pytest
import torch

from recipe.poise.choose.pool import CandidatePool


def run(pool, steps, count, batch):
    """The candidates of each step, of which the first `batch` in an order of chance are asked."""
    asked, seen = [], []
    for step in range(steps):
        candidates = pool.refresh(count)
        seen.append([(item.place, item.epoch, item.age) for item in candidates])
        order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(step)).tolist()
        for row in order[:batch]:
            asked.append((candidates[row].place, candidates[row].epoch))
            pool.take(candidates[row].place)
    return asked, seen


@pytest.mark.parametrize("max_age", [1, 2, 5, None])
@pytest.mark.parametrize("size", [9, 40, 400])
def test_no_prompt_is_asked_twice_in_an_epoch_or_judged_twice_in_a_step(max_age, size):
    pool = CandidatePool(size, seed=3, max_age=max_age)
    asked, seen = run(pool, steps=60, count=16, batch=4)
    assert len(set(asked)) == len(asked) == 240
    for step in seen:
        assert len({place for place, _, _ in step}) == len(step) == min(16, size)
    assert pool.drawn == pool.chosen + pool.left + len(pool)
    limit = float("inf") if max_age is None else max_age
    assert max(age for step in seen for _, _, age in step) <= limit


def test_an_age_limit_of_one_judges_new_prompts_in_each_step():
    _, seen = run(CandidatePool(400, max_age=1), steps=20, count=16, batch=4)
    drawn = [(place, epoch) for step in seen for place, epoch, _ in step]
    assert len(set(drawn)) == len(drawn) == 20 * 16


def test_without_an_age_limit_hardly_a_prompt_is_left_out():
    """But for those that still wait when their next epoch draws them, all are asked in their epoch."""
    asked, _ = run(CandidatePool(400, max_age=None), steps=300, count=16, batch=4)
    per_epoch = Counter(epoch for _, epoch in asked)
    assert all(per_epoch[epoch] >= 390 for epoch in (0, 1)) and sum(per_epoch.values()) == 1200
    assert {place for place, _ in asked} == set(range(400))


def test_prompts_may_repeat_where_asked_for():
    pool = CandidatePool(40, max_age=3, repeat=True)
    asked, _ = run(pool, steps=20, count=16, batch=4)
    assert len(set(asked)) < len(asked)


def test_order_follows_the_seed_or_the_data_set():
    orders = [[pool.draw().place for _ in range(8)] for pool in (CandidatePool(8, seed=s) for s in (0, 0, 1))]
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == list(range(8))
    plain = CandidatePool(3, shuffle=False)
    assert [plain.draw().place for _ in range(5)] == [0, 1, 2, 0, 1]


def test_a_saved_pool_goes_on_as_if_never_stopped():
    whole = CandidatePool(50, seed=1, max_age=3)
    first, _ = run(whole, steps=7, count=16, batch=4)
    columns, counters = whole.state()
    other = CandidatePool(50, seed=1, max_age=3)
    other.load_state(columns, counters)
    assert run(whole, 9, 16, 4) == run(other, 9, 16, 4)
    assert whole.state()[1] == other.state()[1]


@pytest.mark.parametrize(
    "change",
    [
        lambda columns, counters: counters.update(cursor=-1),
        lambda columns, counters: counters.update(cursor=51),
        lambda columns, counters: counters.update(more=1),
        lambda columns, counters: columns.update(place=columns["place"] * 0),
        lambda columns, counters: columns.update(place=columns["place"] + 50),
        lambda columns, counters: columns.update(epoch=columns["epoch"] + 1),
        lambda columns, counters: columns.update(age=columns["age"].float()),
        lambda columns, counters: columns.update(age=columns["age"][1:]),
        lambda columns, counters: columns.pop("age"),
    ],
)
def test_a_state_that_no_pool_can_have_is_refused(change):
    pool = CandidatePool(50, max_age=3)
    run(pool, 3, 16, 4)
    columns, counters = pool.state()
    change(columns, counters)
    with pytest.raises(ValueError):
        CandidatePool(50, max_age=3).load_state(columns, counters)


def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="empty"):
        CandidatePool(0)


def test_drawing_beyond_the_epoch_gives_a_prompt_that_waits_its_newer_self():
    pool = CandidatePool(4, max_age=None)
    pool.refresh(4)
    again = [pool.draw() for _ in range(4)]
    assert [item.epoch for item in again] == [1] * 4 and len(pool) == 4 and pool.left == 4
    assert list(itertools.chain(*(pool.state()[0][name].tolist() for name in ("epoch", "age")))) == [1] * 4 + [0] * 4
