import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.pairing import sibling_mean

NAN = float("nan")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.0, 0.25, 1.0, NAN])), min_size=1, max_size=30))
def test_against_a_loop(rows):
    group_R = torch.tensor([group for group, _ in rows])
    x_R = torch.tensor([x for _, x in rows])
    expected = []
    for i, (group, _) in enumerate(rows):
        others = [x for j, (g, x) in enumerate(rows) if g == group and j != i and x == x]
        expected.append(sum(others) / len(others) if others else NAN)
    torch.testing.assert_close(sibling_mean(x_R, group_R), torch.tensor(expected), equal_nan=True)


def test_empty():
    assert len(sibling_mean(torch.empty(0), torch.empty(0, dtype=torch.int64))) == 0
