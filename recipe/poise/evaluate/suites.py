"""Problem suites: parquet files in verl's schema, made from the catalogue where they are missing."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.poise.data.build import Request, build
from recipe.poise.data.catalogue import CATALOGUE, GROUPS
from recipe.poise.data.names import check_name
from recipe.poise.data.schema import load
from recipe.poise.evaluate.settings import EvaluationError


@dataclass(frozen=True)
class Suite:
    """Problems in verl's schema. `checksum` identifies the file's content."""

    name: str
    rows: list[dict[str, Any]]
    checksum: str


def load_suites(wanted: list[str], data: Path) -> list[Suite]:
    """Suites by name (``DATA/NAME/test.parquet``), by group, or by file (``PATH.parquet`` or ``NAME=PATH.parquet``).

    Raises:
        EvaluationError: a name that nobody knows, a file that is not there, two suites of one name.
        DataError: a file that is not in verl's schema; a suite that cannot be downloaded.
    """
    suites: dict[str, Suite] = {}
    for one in [one for name in wanted for one in GROUPS.get(name, (name,))]:
        suite = _load(one, data)
        if suite.name in suites:
            raise EvaluationError(f"two suites are called {suite.name}; name one of them: --suites NAME=PATH")
        suites[suite.name] = suite
    return list(suites.values())


def _load(name: str, data: Path) -> Suite:
    called, _, path = name.rpartition("=")
    if path.endswith(".parquet"):
        file = Path(path)
        if not file.is_file():
            raise EvaluationError(f"{file}: no such file")
        return _read(called or file.stem, file)
    check_name(name, "no suite can be called")
    file = data / name / "test.parquet"
    if not file.is_file():
        entry = CATALOGUE.get(name)
        if entry is None or entry.hub is None or "test" not in entry.splits:
            raise EvaluationError(
                f"no suite {name!r}: there is no {file}, and the catalogue has no such data set. "
                f"Groups: {', '.join(GROUPS)}. A file of your own: --suites NAME=PATH.parquet"
            )
        build(data.absolute() / name, Request(entry, entry.hub))
    return _read(name, file)


def _read(name: str, file: Path) -> Suite:
    check_name(name, f"{file}: give it a name, --suites NAME={file}, for it becomes a file's name; not")
    return Suite(name, load(file), hashlib.sha256(file.read_bytes()).hexdigest())
