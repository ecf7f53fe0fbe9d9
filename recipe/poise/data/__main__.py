"""``python -m recipe.poise.data NAME... --out DIR``: data sets in verl's parquet schema, in ``DIR/NAME``."""

import argparse
import sys
from pathlib import Path
from typing import Any

from recipe.poise.data.build import Request, build, with_options
from recipe.poise.data.catalogue import CATALOGUE, GROUPS, TEMPLATES, Entry
from recipe.poise.data.errors import DataError, told
from recipe.poise.data.lengths import limit_of
from recipe.poise.data.names import WANTED, is_plain


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m recipe.poise.data",
        description="Data sets in verl's parquet schema: DIR/NAME/{train,test}.parquet and manifest.json",
        epilog=f"NAME: {', '.join(CATALOGUE)}, or a group: {', '.join(GROUPS)}. `jsonl` is any file of one's own.",
    )
    pair: dict[str, Any] = {"action": "append", "default": [], "type": lambda text: tuple(text.split("=", 1))}
    options.add_argument("names", nargs="+", metavar="NAME")
    options.add_argument("--out", type=Path, required=True, metavar="DIR")
    options.add_argument("--source", help="a file, a folder, or a hub id; default: the data set's own hub id")
    options.add_argument("--revision", help="commit, branch or tag of the hub data set")
    options.add_argument(
        "--as", dest="called", metavar="NAME", help="name of the result; default NAME, or jsonl's file"
    )
    options.add_argument("--split", help="make this split only (and: what a lone file is)")
    options.add_argument("--files", metavar="SPLIT=PATTERN", help="files of a split in the source's folder", **pair)
    options.add_argument(
        "--field", metavar="FIELD=COLUMN", help="prompt=, answer=, extra=a,b; dots reach inside", **pair
    )
    options.add_argument("--data-source", help="what the reward is chosen by; default: the data set's, or the column")
    options.add_argument("--ability", help="verl's ability column")
    options.add_argument("--answer-form", choices=("text", "hashes", "boxed"), help="how the answer column holds it")
    options.add_argument("--template", help=f"{', '.join(TEMPLATES)}, or a text with {{problem}} in it")
    options.add_argument("--max-prompt-length", type=int, metavar="N", help="in tokens; takes --tokenizer")
    options.add_argument("--tokenizer", metavar="MODEL", help="folder or hub id whose tokenizer counts")
    options.add_argument(
        "--drop",
        action="append",
        default=[],
        choices=("duplicates", "malformed", "overlong"),
        help="leave such rows out and count them (conflicting answers are duplicates too); else they are errors",
    )
    options.add_argument("--no-progress", action="store_true")
    return options


def entry_of(arguments: argparse.Namespace, name: str) -> Entry:
    """The catalogue's entry with the options in place. Raises DataError."""
    if name not in CATALOGUE:
        raise DataError(f"no data set {name!r}; there are {', '.join(CATALOGUE)}. Own files: jsonl --source FILE")
    if arguments.template and arguments.template not in TEMPLATES and "{problem}" not in arguments.template:
        raise DataError(
            f"--template {arguments.template!r}: want one of {', '.join(TEMPLATES)}, or a text with {{problem}}"
        )
    for option in ("files", "field"):
        if wrong := [pair for pair in getattr(arguments, option) if len(pair) != 2 or not all(pair)]:
            raise DataError(f"--{option} {'='.join(wrong[0])}: want NAME=VALUE")
        names = [name for name, _ in getattr(arguments, option)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise DataError(f"--{option} {twice[0]}=... is given twice; want it once")
    entry = CATALOGUE[name]
    return with_options(
        entry,
        fields=dict(arguments.field),
        files=dict(arguments.files),
        split=arguments.split,
        name=arguments.called,
        data_source=arguments.data_source,
        ability=arguments.ability,
        answer_form=arguments.answer_form,
        template=arguments.template,
        drop=entry.drop | frozenset(arguments.drop),
    )


def make(arguments: argparse.Namespace) -> None:
    """Make every named data set. Raises DataError, OSError."""
    names = [one for name in arguments.names for one in GROUPS.get(name, (name,))]
    limit = limit_of(arguments.tokenizer, arguments.max_prompt_length)
    if arguments.called and len(names) > 1:
        raise DataError("--as names one result; give one NAME")
    for name in names:
        entry = entry_of(arguments, name)
        source = arguments.source or entry.hub
        if not source:
            raise DataError(f"{name} has no home on the hub: --source FILE")
        if name == "jsonl" and not arguments.called:
            if not is_plain(stem := Path(source).stem):
                raise DataError(f"{source}: {stem!r} cannot name the result ({WANTED}); give --as NAME")
            entry = with_options(entry, name=stem)
        folder = arguments.out.absolute() / entry.name
        manifest = build(folder, Request(entry, source, arguments.revision, limit), not arguments.no_progress)
        if manifest is None:
            print(f"{entry.name}: already at {folder}")
            continue
        for split, made in manifest["splits"].items():
            print(f"{entry.name} {split}: {_said(made)} -> {folder / made['file']}")
            if (expected := entry.expected.get(split)) and made["read"] != expected:
                print(f"warning: {entry.name} {split} is known to have {expected} rows, this source has {made['read']}")
        if shared := manifest["prompts_in_train_and_test"]:
            print(f"warning: {shared} prompts of {entry.name} are in train and in test")


def _said(made: dict[str, Any]) -> str:
    """Counts as a sentence; what did not happen is left out."""
    words = {
        "duplicates": "repeated rows dropped",
        "conflicting_prompts": "prompts with conflicting answers dropped",
        "malformed": "malformed rows dropped",
        "overlong": "prompts over the limit dropped",
    }
    dropped = [f"{made[kind]} {text}" for kind, text in words.items() if made[kind]]
    return ", ".join([f"{made['written']} of {made['read']} rows", *dropped])


def main() -> int:
    arguments = parser().parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # file names may be no text
    try:
        make(arguments)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {told(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nstopped; a data set that was not finished is not in {arguments.out}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
