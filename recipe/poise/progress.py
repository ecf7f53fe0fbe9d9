"""How far a long loop is, on standard error: a bar on a terminal; in a log file, where a bar would be a line a second,
a line for each tenth and at least every half minute."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

SHARE = 0.1
SECONDS = 30.0


class Lines:
    """What of tqdm's bar the programs here use, as lines. Without a total there are only the half minutes."""

    def __init__(self, iterable: Iterable | None, total: int | None, desc: str, unit: str, initial: int):
        self.iterable, self.total, self.desc, self.unit = iterable, total, desc, unit
        self.n = self.initial = self.printed = initial
        self.postfix = ""
        self.start = self.last = time.monotonic()

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self.iterable or ():
                yield item
                self.update()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *error) -> None:
        if self.n != self.printed:
            self._print()

    def update(self, n: int = 1) -> None:
        """So many more are done."""
        self.n += n
        tenths = self.total and int(self.n / self.total / SHARE + 1e-9) > int(self.printed / self.total / SHARE + 1e-9)
        if tenths or time.monotonic() - self.last >= SECONDS:
            self._print()

    def set_postfix(self, refresh: bool = True, **values: object) -> None:
        """What the next line also says."""
        self.postfix = "".join(f", {name}={value}" for name, value in values.items())

    def write(self, text: str) -> None:
        print(text, flush=True)

    def _print(self) -> None:
        self.last, self.printed = time.monotonic(), self.n
        seconds, done = self.last - self.start, self.n - self.initial
        text = f"{self.desc}: " if self.desc else ""
        text += f"{self.n}/{self.total} {self.unit}" if self.total else f"{self.n} {self.unit}"
        if self.total:
            text += f" ({self.n / self.total:.0%})"
        text += f", {tqdm.format_interval(seconds)}"
        if self.total and done and self.n < self.total:
            text += f", {tqdm.format_interval(seconds / done * (self.total - self.n))} to go"
        print(text + self.postfix, file=sys.stderr, flush=True)


def progress(
    iterable: Iterable | None = None,
    *,
    desc: str = "",
    total: int | None = None,
    unit: str = "steps",
    initial: int = 0,
    disable: bool = False,
) -> "tqdm | Lines":
    """Wraps an iterable; or, as a context manager with a `total`, is told by ``update``.

    Args:
        initial: so many of `total` were done before.
        disable: say nothing.
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)  # type: ignore[arg-type]
    if disable or sys.stderr.isatty():
        return tqdm(iterable, desc=desc or None, total=total, unit=f" {unit}", initial=initial, disable=disable)
    return Lines(iterable, total, desc, unit, initial)
