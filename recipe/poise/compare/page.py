"""The leaderboard's page: Markdown, and a figure of each task beside it."""

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from recipe.poise.compare import leaderboard
from recipe.poise.compare.figures import accuracy_figure
from recipe.poise.compare.leaderboard import Board, boards
from recipe.poise.compare.records import Record
from recipe.poise.compare.tables import Table

OVER = ("generated tokens", "seconds")
INTRODUCTION = (
    "Runs of real training, all from the same entry, model, data, reward and rollouts per update; what the methods are "
    "and how to run them is in [the comparison](comparison.md). Made from the runs' records by `python -m "
    "recipe.poise.compare leaderboard docs/leaderboard/runs --out docs/leaderboard.md`."
)


def write_leaderboard(records: Sequence[Record], out: Path, subject: str = "poise") -> list[Path]:
    """The page, and the figures in a folder of its name; the files, the page first.

    Args:
        subject: the method of which differences to the others are shown.

    Raises:
        ReadError: two runs of one method and seed.
    """
    parts, files = ["# Leaderboard", INTRODUCTION], [out]
    out.parent.mkdir(parents=True, exist_ok=True)
    for board in boards(records):
        parts.append(f"## {board.task}")
        if said := leaderboard.notes(board):
            parts.append("Before comparing:\n\n" + "\n".join(f"- {note}" for note in said))
        for number, table in enumerate(tables(board, subject)):
            parts.append(f"### {board.task}: {table.title}\n\n{table.caption}\n\n{table.markdown()}")
            if number == 0 and board.methods:
                files.append(draw(board, out.with_suffix("") / f"{board.task}.png"))
                parts.append(f"![Validation accuracy over {' and '.join(OVER)}]({out.stem}/{board.task}.png)")
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    partial.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    os.replace(partial, out)
    return files


def tables(board: Board, subject: str) -> list[Table]:
    """Those that the board's runs give."""
    found = []
    if board.methods:
        found = [
            leaderboard.result_table(board),
            leaderboard.difference_table(board, subject),
            leaderboard.wins_table(board),
            leaderboard.runs_table(board),
        ]
    return [table for table in (*found, leaderboard.tried_table(board)) if table is not None]


def draw(board: Board, path: Path) -> Path:
    """Accuracy over tokens and seconds; bands from the lowest to the highest seed."""
    figure = accuracy_figure(board.methods, None, OVER)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
