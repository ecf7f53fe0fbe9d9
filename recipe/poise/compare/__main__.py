"""Compare methods: run a matrix of them, report on runs, keep their records, and hold them to thresholds.

python -m recipe.poise.compare run launch/runs/compare/{poise,dapo,grpo,rloo}.yaml --seeds 0 1 2 --out report
python -m recipe.poise.compare run launch/runs/compare/{poise,dapo}.yaml --task uneven --seeds 0 1 2 --out report
python -m recipe.poise.compare report outputs/runs/compare/quickstart/*_s* --out report
python -m recipe.poise.compare report grpo=wandb_export.csv poise=tensorboard_folder --out report
python -m recipe.poise.compare record outputs/runs/compare/*/*_s* --out docs/leaderboard/runs
python -m recipe.poise.compare leaderboard docs/leaderboard/runs --out docs/leaderboard.md
python -m recipe.poise.compare check launch/runs/compare/_thresholds.yaml docs/leaderboard/runs
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException

from launch.runfile import RunFileError
from recipe.poise.compare import thresholds
from recipe.poise.compare.brief import write_brief
from recipe.poise.compare.leaderboard import boards
from recipe.poise.compare.matrix import TASK, cells, run_all
from recipe.poise.compare.page import write_leaderboard
from recipe.poise.compare.readers import NothingLogged, ReadError, Run, read_run
from recipe.poise.compare.records import Record, read_all_records, record_run, write_records
from recipe.poise.compare.report import write_report
from recipe.poise.quickstart.registry import TASKS

TITLE = "POISE beside other estimators"
RECORDS = "record or folder of records (docs/leaderboard/runs), run folder of `launch`; METHOD= gives another name"


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m recipe.poise.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = options.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="methods x seeds, one after the other; goes on where it was stopped")
    run.add_argument("files", nargs="+", type=Path, metavar="RUN.yaml", help="run files; POISE_SEED is set for each")
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    run.add_argument("--task", choices=TASKS, help=f"the embedded task; without, what {TASK} says, or the quickstart's")
    run.add_argument("--override", action="append", default=[], metavar="KEY=VALUE", help="Hydra override of all runs")
    run.add_argument("--retry", action="store_true", help="start runs again that crashed too often")
    report = commands.add_parser("report", help="from runs that are there")
    report.add_argument(
        "runs", nargs="+", metavar="[METHOD=]PATH",
        help="run folder, verl's metrics JSONL, tensorboard folder, wandb export (CSV or JSONL)",
    )  # fmt: skip
    for command in (run, report):
        command.add_argument("--out", type=Path, required=True, metavar="DIR", help="report.html, report.md, figures")
        command.add_argument("--title", default=TITLE)
        command.add_argument(
            "--baseline", default="dapo", metavar="METHOD", help="costs are compared at its final accuracy"
        )
    record = commands.add_parser(
        "record", help="a few kilobytes of each run, to be committed; changes none that is there"
    )
    record.add_argument("runs", nargs="+", metavar="[METHOD=]PATH", help="run folder of `launch`")
    record.add_argument("--out", type=Path, required=True, metavar="DIR", help="TASK/METHOD_lrRATE_sSEED.json go here")
    record.add_argument("--replace", action="store_true", help="where another run's record has the name")
    board = commands.add_parser("leaderboard", help="a page of tables and figures from records or run folders")
    board.add_argument("--out", type=Path, required=True, metavar="PAGE.md", help="figures go to a folder of its name")
    board.add_argument("--method", default="poise", help="the one whose differences to the others are shown")
    board.add_argument(
        "--brief", type=Path, metavar="PAGE.md", help="a page whose table in short is renewed (README.md)"
    )
    board.add_argument("--check", type=Path, metavar="THRESHOLDS.yaml", help="then as `check` does")
    check = commands.add_parser("check", help="exit status 1 where a method falls short of a threshold")
    check.add_argument("thresholds", type=Path, metavar="THRESHOLDS.yaml")
    for command in (board, check):
        command.add_argument("runs", nargs="+", metavar="[METHOD=]PATH", help=RECORDS)
    for command in (record, board, check):
        command.add_argument("--unfinished", action="store_true", help="take runs that are not done too")
    return options


def read_all(paths: list[str]) -> tuple[list[Run], list[str]]:
    """The runs that logged a step, and what is said of the others; a path that cannot be read is an error."""
    runs, left_out = [], []
    for path in paths:
        try:
            runs.append(read_run(path))
        except NothingLogged as error:
            left_out.append(f"not in the report: {error}")
            print(left_out[-1], file=sys.stderr)
    return runs, left_out


def run_matrix(arguments: argparse.Namespace) -> tuple[list[str], bool]:
    """The folders of all runs, and whether all are done."""
    for asked in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: the launcher under way is ended, not left behind
        signal.signal(asked, _interrupted)
    if arguments.task is not None:
        os.environ[TASK] = arguments.task
    matrix = cells(arguments.files, arguments.seeds)
    complete = True
    print(f"{len(matrix)} runs, {sum(cell.done for cell in matrix)} of them done", flush=True)
    for number, (cell, status, seconds) in enumerate(run_all(matrix, arguments.override, arguments.retry), 1):
        complete &= status == 0
        what = "done" if status == 0 else f"ended with status {status}; the same command goes on"
        print(f"[{number}/{len(matrix)}] {cell.root.name}: {what} ({seconds / 60:.1f} min)", flush=True)
    return [str(cell.root) for cell in matrix], complete


def _interrupted(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def report(arguments: argparse.Namespace) -> int:
    """`run` and `report`."""
    paths, complete = run_matrix(arguments) if arguments.command == "run" else (arguments.runs, True)
    runs, left_out = read_all(paths)
    if not runs:
        print("error: no run has logged a step", file=sys.stderr)
        return 1
    print(f"report: {write_report(runs, arguments.out, arguments.title, arguments.baseline, left_out)}")
    return 0 if complete else 1


def record(arguments: argparse.Namespace) -> int:
    made = [record_run(text, arguments.unfinished) for text in arguments.runs]
    for path, new in write_records(made, arguments.out, arguments.replace):
        print(f"{'wrote' if new else 'as it was'} {path}")
    return 0


def leaderboard(arguments: argparse.Namespace) -> int:
    records = read_all_records(arguments.runs, arguments.unfinished)
    wanted = thresholds.read_thresholds(arguments.check) if arguments.check else None
    for path in write_leaderboard(records, arguments.out, arguments.method):
        print(f"wrote {path}")
    if arguments.brief:
        write_brief(arguments.brief, boards(records))
        print(f"renewed the table in {arguments.brief}")
    return 0 if wanted is None else judge(wanted, records)


def check(arguments: argparse.Namespace) -> int:
    return judge(
        thresholds.read_thresholds(arguments.thresholds), read_all_records(arguments.runs, arguments.unfinished)
    )


def judge(wanted: list[thresholds.Threshold], records: list[Record]) -> int:
    """Say of each threshold whether it is held; 1 where one is not."""
    verdicts = thresholds.check(wanted, records)
    for verdict in verdicts:
        print(verdict)
    short = sum(not verdict.held for verdict in verdicts)
    print(f"{short} of {len(verdicts)} thresholds fall short" if short else f"all {len(verdicts)} thresholds hold")
    return 1 if short else 0


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    commands = {"run": report, "report": report, "record": record, "leaderboard": leaderboard, "check": check}
    try:
        return commands[arguments.command](arguments)
    except (ReadError, RunFileError, OmegaConfBaseException, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
