import pytest

from recipe.poise.baseline.rows import index_rows


def test_groups_by_prompt_and_pads_apart():
    rows = index_rows(["a_0_0", "b_0_0", "a_1_0", "pad_0_0"], [{}, {}, {}, {"is_padding": True}])
    assert rows.id_B.tolist() == [0, 1, 2, -4]
    assert rows.group_B.tolist()[:3] == [0, 1, 0]
    assert rows.padding_B.tolist() == [False, False, False, True]


def test_only_the_last_output_of_a_session_is_a_rollout():
    rows = index_rows(["a_0_1", "a_0_0", "a_1_0"], [{}] * 3)
    assert rows.id_B.tolist() == [0, -2, 2]
    assert rows.last_B.tolist() == [0, 0, 2]
    assert rows.first_B.tolist() == [1, 1, 2] and rows.several


def test_a_prompt_is_that_of_a_first_output():
    rows = index_rows(["a_0_1", "b_0_0", "a_1_0", "a_0_0", "pad_0_0"], [{}] * 4 + [{"is_padding": True}])
    assert rows.prompts == [3, 1, 4] and rows.group_B.tolist() == [0, 1, 0, 0, 2]
    assert not index_rows(["a_0_0", "a_1_0"], [{}] * 2).several


def test_prompt_ids_may_contain_the_separator():
    assert index_rows(["x_y_0_0", "x_z_0_0", "x_y_1_0"], [{}] * 3).group_B.tolist() == [0, 1, 0]


def test_another_key_form_is_refused():
    with pytest.raises(ValueError, match="uid_session_output"):
        index_rows(["plainuid"], [{}])
