"""Tables of a report: cells with a range, numbers in a reader's form, Markdown."""

from collections.abc import Callable
from dataclasses import dataclass

from recipe.poise.compare.summary import Spread

MISSING = "–"


@dataclass(frozen=True)
class Cell:
    text: str
    range: str = ""


@dataclass
class Table:
    title: str
    caption: str
    header: list[str]
    rows: list[list[Cell]]
    settings: bool = False

    def markdown(self) -> str:
        lines = ["| " + " | ".join(self.header) + " |", "|---" * len(self.header) + "|"]
        for row in self.rows:
            texts = [cell.text + (f" ({cell.range})" if cell.range else "") for cell in row]
            lines.append("| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |")
        return "\n".join(lines)


def number(value: float) -> str:
    """Three significant digits, thousands with a unit."""
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= limit:
            return f"{value / limit * (10 if limit == 1e4 else 1):.3g}{unit}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def cell(spread: Spread | None, form: Callable[[float], str] = number) -> Cell:
    """Mean, and lowest to highest where there are several."""
    if spread is None:
        return Cell(MISSING)
    return Cell(form(spread.mean), f"{form(spread.low)} to {form(spread.high)}" if spread.count > 1 else "")


def accuracy(value: float) -> str:
    """0.823"""
    return f"{value:.3f}"


def difference(value: float) -> str:
    """+0.012"""
    return f"{value:+.3f}"


def percent(value: float) -> str:
    """44%"""
    return f"{value:.0%}"
