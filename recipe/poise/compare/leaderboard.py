"""The leaderboard: of each task its methods, what they reached at which cost, seed by seed. Pure: no drawing."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from recipe.poise.compare import contrast, measures, summary
from recipe.poise.compare.contrast import Estimate, Horizon
from recipe.poise.compare.readers import ReadError
from recipe.poise.compare.records import RATE, SECONDS, Record, rate_text
from recipe.poise.compare.summary import Method, Spread
from recipe.poise.compare.tables import MISSING, Cell, Table, accuracy, cell, difference, number, percent

TUNING_SEEDS = 100  # from here on seeds are for choosing settings: no result
BASELINES = ("dapo", "grpo")
SHOWN_PHASES = ("gen", "old_log_prob", "update_actor")


@dataclass(frozen=True)
class Board:
    """A task's runs.

    Attributes:
        methods: the best area under the curve over tokens first.
        records: those of a method, by its name.
        tuning: records of seeds that settings were chosen on; in no other table than theirs.
    """

    task: str
    methods: list[Method]
    records: dict[str, list[Record]]
    horizon: Horizon
    tuning: list[Record]

    def method(self, name: str) -> Method | None:
        return next((method for method in self.methods if method.name == name), None)


def boards(records: Sequence[Record]) -> list[Board]:
    """A board for each task, in the order in which they come.

    Raises:
        ReadError: two runs of one method and seed: which of them counts?
    """
    found = []
    for task in dict.fromkeys(record.task for record in records):
        mine = [record for record in records if record.task == task]
        judged = [record for record in mine if record.seed < TUNING_SEEDS]
        places = [(record.method, record.seed) for record in judged]
        for method, seed in places:
            if places.count((method, seed)) > 1:
                names = ", ".join(record.name for record in judged if (record.method, record.seed) == (method, seed))
                raise ReadError(
                    f"{task}: {method} has two runs of seed {seed} ({names}): leave one out, or give it another name, "
                    "NAME=PATH"
                )
        found.append(_board(task, judged, [record for record in mine if record.seed >= TUNING_SEEDS]))
    return found


def _board(task: str, judged: list[Record], tuning: list[Record]) -> Board:
    methods = summary.group([record.run for record in judged])
    horizon = horizon_of(judged or tuning)

    def rank(method: Method) -> tuple[float, str]:
        areas = contrast.scores(method, "area_over_tokens", horizon).values()
        return (-sum(areas) / len(areas) if areas else math.inf, method.name)

    by_method: dict[str, list[Record]] = {}
    for record in sorted(judged, key=lambda record: record.seed):
        by_method.setdefault(record.method, []).append(record)
    return Board(task, sorted(methods, key=rank), by_method, horizon, tuning)


def horizon_of(records: Sequence[Record]) -> Horizon:
    """Of those that are finished; one that is not must not shorten the others' curves."""
    done = [record for record in records if record.finished]
    return Horizon.of([record.run for record in done or records])


def spread(values: Sequence[float]) -> Spread | None:
    return Spread.of(list(values))


def _interval(found: Estimate | None, form: Callable[[float], str]) -> Cell:
    """Center and interval; its level where it is not the usual one."""
    if found is None:
        return Cell(MISSING)
    if math.isnan(found.low):
        return Cell(form(found.center))
    level = f", {found.level:.0%}" if found.level < contrast.LEVEL else ""
    return Cell(form(found.center), f"{form(found.low)} to {form(found.high)}{level}")


def share(value: float) -> str:
    """Of a cost; a median over seeds is infinite where most never got there."""
    return "not reached" if math.isinf(value) else percent(value)


def _cost(values: dict[int, float]) -> Cell:
    found = _interval(contrast.median_of(list(values.values())), share)
    reached = sum(math.isfinite(value) for value in values.values())
    seeds = f"{reached} of {len(values)} seeds"
    if reached == len(values):
        return found
    return Cell(found.text, f"{found.range}; {seeds}" if reached and found.range else seeds)


def short(commit: str) -> str:
    """The first letters of a commit, or of several."""
    return ", then ".join(part[:7] for part in commit.split(", then ")) or "not known"


def result_table(board: Board) -> Table:
    """What each method reached, and what it paid for the baselines' final accuracies."""
    baselines = [method for name in BASELINES if (method := board.method(name))]
    header = ["method", "seeds", "learning rate", "commit", "final accuracy", "area over updates", "area over tokens"]
    header += [f"{what} to {baseline.name}'s accuracy" for baseline in baselines for what in ("tokens", "seconds")]
    rows = []
    for method in board.methods:
        records = board.records[method.name]
        row = [Cell(method.name), Cell(method.seeds), Cell(_all(rate_text(record.rate) for record in records))]
        row.append(Cell(_all(short(record.commit) for record in records)))
        for what in ("final", "area_over_updates", "area_over_tokens"):
            row.append(cell(spread(list(contrast.scores(method, what, board.horizon).values())), accuracy))
        for baseline in baselines:
            same = baseline is method
            row += [
                Cell("") if same else _cost(contrast.costs(method, baseline, what)) for what in ("tokens", "seconds")
            ]
        rows.append(row)
    updates, tokens = number(board.horizon.updates), number(board.horizon.tokens)
    return Table(
        "Result",
        f"Accuracies: mean over seeds (lowest to highest). Area: mean accuracy from the start to update {updates}, "
        f"or to {tokens} generated tokens, which all finished runs reach. Tokens and seconds to a method's accuracy: "
        "what was paid until the last accuracy of that method's run of the same seed was first reached, over what that "
        "run paid until then; median over seeds, a seed that never reached it counting as infinite (95% interval by "
        "order statistics; with fewer than six seeds lowest to highest, with its level).",
        header, rows,
    )  # fmt: skip


def difference_table(board: Board, subject: str) -> Table | None:
    """One method less each of the others, paired by seed; None where there is no other."""
    mine = board.method(subject)
    others = [method for method in board.methods if method.name != subject]
    if mine is None or not others:
        return None
    rows = []
    for other in others:
        found = [contrast.differences(mine, other, what, board.horizon) for what in contrast.SCORES if what != "gain"]
        cells = [_interval(contrast.mean_of(list(values.values())), difference) for values in found]
        rows.append([Cell(other.name), Cell(str(max(map(len, found)))), *cells])
    return Table(
        f"{subject} less the others",
        "Paired by seed: mean of the differences (95% interval, Student's t of the paired differences). Each interval "
        "stands for itself: their number is not corrected for.",
        ["less", "seeds", "final accuracy", "area over updates", "area over tokens"],
        rows,
    )


def wins_table(board: Board) -> Table | None:
    """In how many seeds the method of the row is above that of the column; None of a single method."""
    if len(board.methods) < 2:
        return None
    rows = []
    for method in board.methods:
        row = [Cell(method.name)]
        for other in board.methods:
            won, seeds = contrast.wins(method, other, board.horizon)
            row.append(Cell("" if other is method else f"{won} of {seeds}" if seeds else MISSING))
        rows.append(row)
    return Table(
        "Wins by seed",
        "In how many of the seeds that both have the row's method has the larger area over tokens than the column's.",
        ["", *(method.name for method in board.methods)],
        rows,
    )


def runs_table(board: Board) -> Table:
    """Where and how the runs were made, and what an update took."""
    rows = []
    for method in board.methods:
        records = board.records[method.name]
        rows.append(
            [
                Cell(method.name),
                Cell(_all(record.machine or "not known" for record in records)),
                Cell(_all(" ".join(own_overrides(record)) or "none" for record in records)),
                *(
                    cell(spread([r.medians[name] for r in records if name in r.medians]))
                    for name in (SECONDS, *(f"timing_s/{phase}" for phase in SHOWN_PHASES))
                ),
                cell(method.spread(lambda item: item.tokens)),
                cell(method.spread(lambda item: item.discarded_share), percent),
            ]
        )
    header = ["method", "machine", "overrides", "seconds per update", *(f"{name}, s" for name in SHOWN_PHASES)]
    return Table(
        "Runs",
        "Seconds: median over updates, then mean over seeds (lowest to highest). Overrides: on the command line, the "
        "learning rate aside.",
        [*header, "generated tokens", "thrown away"],
        rows,
    )


def own_overrides(record: Record) -> list[str]:
    """What was overridden besides the learning rate, which has a column."""
    return [text for text in record.overrides if text.split("=")[0].lstrip("+") != RATE]


def tried_table(board: Board) -> Table | None:
    """The learning rates that were tried, on seeds that no other table has; None where none were."""
    if not board.tuning:
        return None
    horizon = horizon_of(board.tuning)
    groups: dict[tuple[str, float, str], list[Record]] = {}
    for record in sorted(board.tuning, key=lambda record: (record.method, record.rate, record.seed)):
        groups.setdefault((record.method, record.rate, " ".join(own_overrides(record))), []).append(record)
    rows = []
    for (name, rate, overrides), records in groups.items():
        runs = [record.run for record in records]
        found = [
            [value for run in runs if (value := contrast.score(run, what, horizon)) is not None]
            for what in ("final", "area_over_updates", "area_over_tokens")
        ]
        seeds = ", ".join(str(record.seed) for record in records)
        cells = [cell(spread(values), accuracy) for values in found]
        rows.append([Cell(name), Cell(rate_text(rate)), Cell(overrides or "none"), Cell(seeds), *cells])
    return Table(
        "Learning rates tried",
        f"On seeds of their own, which are in no table above. Areas to update {number(horizon.updates)} and to "
        f"{number(horizon.tokens)} generated tokens.",
        [
            "method",
            "learning rate",
            "other overrides",
            "seeds",
            "final accuracy",
            "area over updates",
            "area over tokens",
        ],
        rows,
    )


def _all(texts) -> str:
    return ", ".join(dict.fromkeys(texts))


def notes(board: Board) -> list[str]:
    """What keeps the runs from being compared as equals."""
    found = summary.notes(board.methods) if board.methods else []
    for name, records in board.records.items():
        commits, forms = (
            {record.commit for record in records},
            {(record.config, record.overrides) for record in records},
        )
        if len(commits) > 1:
            found.append(f"{name}: its runs are of {len(commits)} commits ({_all(map(short, sorted(commits)))})")
        if len({overrides for _, overrides in forms}) > 1:
            found.append(f"{name}: its runs were started with different overrides")
        elif len(forms) > 1:
            found.append(f"{name}: the configs of its runs differ, in settings beside those that records hold")
        if any("dirty" in record.commit for record in records):
            found.append(f"{name}: files differed from the commit in some of its runs")
    machines = {record.machine for records in board.records.values() for record in records}
    if len(machines) > 1:
        names = "; ".join(sorted(machine or "not known" for machine in machines))
        found.append(f"runs are of {len(machines)} machines ({names}): their seconds do not compare")
    for name in BASELINES:
        if board.methods and board.method(name) is None:
            found.append(f"no run of {name}: no costs over what it paid")
    return found + [f"learning rates tried: {note}" for note in tuning_notes(board.tuning)]


def tuning_notes(records: Sequence[Record]) -> list[str]:
    """The same of runs that settings were chosen on."""
    found = [f"{record.name} is not finished" for record in records if not record.finished]
    for what, values in (
        ("accuracies are of different protocols", {measures.protocol(record.run) for record in records}),
        ("runs are of several commits", {short(record.commit) for record in records}),
        ("runs differ in length: updates", {str(record.updates.step[-1]) for record in records if record.finished}),
    ):
        if len(values) > 1:
            found.append(f"{what} ({', '.join(sorted(values))})")
    return found
