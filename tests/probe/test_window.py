"""The window: whole groups in and out, memory that stays where it is."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.window import SlidingWindow


def push(window, groups, step, max_age=None):
    """Rows whose feature is their group's number, unique over steps."""
    group_R = torch.tensor(groups, dtype=torch.int64)
    x_RF = (group_R + 1000 * step).float().unsqueeze(1).expand(-1, window.feature.shape[1])
    ones_R = torch.ones(len(group_R))
    return window.push(x_RF, ones_R, ones_R, ones_R, group_R, step, max_age)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 4), max_size=8), min_size=1, max_size=8),
    st.integers(4, 20),
    st.none() | st.integers(1, 3),
)
def test_groups_stay_whole_and_the_newest_stay(steps, rows, max_age):
    window, arrived = SlidingWindow(rows, 2), []
    address = window.feature.data_ptr()
    for step, sizes in enumerate(steps):
        groups = [g for g, size in enumerate(sizes) for _ in range(size)]
        change = push(window, groups, step, max_age)
        arrived += [(step, 1000.0 * step + g, size) for g, size in enumerate(sizes)]
        expected, room = [], rows
        for when, feature, size in reversed(arrived):
            if (max_age is not None and when <= step - max_age) or size > room:
                break
            room -= size
            expected = [feature] * size + expected
        assert window.feature[window.order, 0].tolist() == expected
        assert len(window) == len(expected) and len(change.new_slots) <= len(groups)
        assert (window.step[change.new_slots] == step).all()
    assert window.feature.data_ptr() == address and window.feature.shape == (rows, 2)


def test_rows_keep_their_slot_and_what_left_is_counted():
    window = SlidingWindow(6, 1)
    first = push(window, [0, 0, 1, 1], step=0)
    second = push(window, [5, 5, 9, 9], step=1)
    assert (first.left, second.left) == (0, 2)
    assert window.order[:2].tolist() == first.new_slots[2:].tolist()


def test_memory_is_rows_times_features():
    window = SlidingWindow(512, 2000)
    used = sum(t.numel() * t.element_size() for t in vars(window).values() if isinstance(t, torch.Tensor))
    assert used <= 1.1 * 512 * 2000 * 4
