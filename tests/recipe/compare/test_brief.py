"""The leaderboard in short, and the page that carries it."""

import pytest

from launch.runfile import ROOT
from recipe.poise.compare.__main__ import main
from recipe.poise.compare.brief import END, START, brief_table, in_page, write_brief
from recipe.poise.compare.leaderboard import boards
from recipe.poise.compare.readers import ReadError
from recipe.poise.compare.records import read_all_records, write_records


@pytest.fixture
def records(made):
    """POISE pays a quarter of DAPO's tokens; GRPO never gets to DAPO's accuracy."""
    found = [made("dapo", seed, 0.6, tokens=4000, seconds=20.0) for seed in range(3)]
    return [*found, made("poise", 0, 0.8), made("poise", 1, 0.6), made("grpo", 0, 0.4)]


def test_a_row_for_each_method_and_columns_for_each_task(records):
    table = brief_table(boards(records))
    by_name = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert list(by_name) == ["poise", "grpo", "dapo"]
    # to 0.6 on the way to 0.8: two thirds of 8000 tokens over 32000; all of them
    assert (by_name["poise"][1], by_name["poise"][3]) == ("0.700 (2)", "21%")
    assert by_name["dapo"][1] == "0.600 (3)"
    assert by_name["grpo"][-1] == "not reached" and by_name["dapo"][-1] == ""
    assert table.header[2:] == [
        "quickstart: final accuracy (seeds)",
        "area over tokens",
        "tokens to dapo's accuracy",
    ]


def test_only_what_is_between_the_marks_changes(records, tmp_path):
    page = tmp_path / "README.md"
    page.write_text(f"# Ours\n\n{START}\nold\n{END}\n\nMore.\n")
    for _ in range(2):
        write_brief(page, boards(records))
        assert page.read_text() == f"# Ours\n\n{START}\n{in_page(boards(records))}\n{END}\n\nMore.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize("text", ["", f"{START}\n", f"{END}\n{START}\n", f"{START}{END}{START}{END}"])
def test_a_page_without_its_place_is_refused_and_stays(text, records, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ReadError, match="each there once"):
        write_brief(page, boards(records))
    assert page.read_text() == text
    with pytest.raises(ReadError, match="cannot be read"):
        write_brief(tmp_path / "none.md", boards(records))


def test_the_command(records, tmp_path, capsys):
    write_records(records, tmp_path / "runs")
    (tmp_path / "page.md").write_text(f"{START}{END}")
    words = ["leaderboard", str(tmp_path / "runs"), "--out", str(tmp_path / "board.md")]
    assert main([*words, "--brief", str(tmp_path / "page.md")]) == 0
    assert "renewed the table" in capsys.readouterr().out and "| poise |" in (tmp_path / "page.md").read_text()
    assert main([*words, "--brief", str(tmp_path / "none.md")]) == 2


def test_the_readme_says_what_the_committed_runs_give():
    """If not: `leaderboard docs/leaderboard/runs --out docs/leaderboard.md --brief README.md` of the comparison."""
    committed = boards(read_all_records([str(ROOT / "docs/leaderboard/runs")]))
    assert in_page(committed) in (ROOT / "README.md").read_text()
