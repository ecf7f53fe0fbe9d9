"""The leaderboard in short: one table over the tasks, kept up to date between two marks of a page that says more."""

import os
from collections.abc import Sequence
from pathlib import Path

from recipe.poise.compare import contrast, leaderboard
from recipe.poise.compare.leaderboard import Board
from recipe.poise.compare.readers import ReadError
from recipe.poise.compare.tables import MISSING, Cell, Table, accuracy, cell

START, END = "<!-- leaderboard in short -->", "<!-- end of the leaderboard in short -->"
SHOWN = ("poise", "poise_select", "poise_n1", "energy_constant", "rloo", "grpo", "dapo")
BASELINE = "dapo"
ROLLOUTS = "actor_rollout_ref.rollout.n"


def brief_table(boards: Sequence[Board], shown: Sequence[str] = SHOWN) -> Table:
    """A row for each method that a board has; costs are shares of what the baseline paid, medians over seeds."""
    header = ["", "rollouts per prompt"]
    for board in boards:
        header += [f"{board.task}: final accuracy (seeds)", "area over tokens", f"tokens to {BASELINE}'s accuracy"]
    rows = []
    for name in shown:
        found = [board.method(name) for board in boards]
        if not any(found):
            continue
        records = [record for board in boards for record in board.records.get(name, ())]
        row = [Cell(name), Cell(", ".join(sorted({str(record.settings.get(ROLLOUTS, MISSING)) for record in records})))]
        for board, method in zip(boards, found, strict=True):
            baseline = board.method(BASELINE)
            for what in ("final", "area_over_tokens"):
                scores = contrast.scores(method, what, board.horizon) if method else {}
                text = cell(leaderboard.spread(list(scores.values())), accuracy).text
                row.append(Cell(f"{text} ({len(scores)})" if what == "final" and scores else text))
            same = name == BASELINE or method is None or baseline is None
            costs = {} if same else contrast.costs(method, baseline, "tokens")  # type: ignore[arg-type]
            median = contrast.median_of(list(costs.values()))
            row.append(Cell("" if median is None else leaderboard.share(median.center)))
        rows.append(row)
    caption = (
        "Means over as many seeds as stand in brackets; where they are over other seeds they hardly compare. Tokens: "
        f"what was paid until the last accuracy of {BASELINE}'s run of the same seed was first reached, over what that "
        "run paid until then, median."
    )
    return Table("In short", caption, header, rows)


def write_brief(page: Path, boards: Sequence[Board]) -> None:
    """Put the table between the page's marks.

    Raises:
        ReadError: the page is not there, or has not each mark once.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise ReadError(f"{page} cannot be read: {error}") from error
    before, first, rest = text.partition(START)
    _, second, after = rest.partition(END)
    if not first or not second or START in after or END in after or END in before:
        raise ReadError(f"{page}: the table goes between {START} and {END}, each there once, on lines of their own")
    partial = page.with_name(f".{page.name}.{os.getpid()}")
    partial.write_text(f"{before}{START}\n{in_page(boards)}\n{END}{after}", encoding="utf-8")
    os.replace(partial, page)


def in_page(boards: Sequence[Board]) -> str:
    """What stands between the marks."""
    table = brief_table(boards)
    return f"{table.markdown()}\n\n{table.caption}"
