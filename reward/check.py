"""Which verifier judges which data, before a run: ``python -m reward.check FILE.parquet...``"""

import argparse
import json
import sys

from reward.data_files import sources_of
from reward.router import check_sources


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("files", nargs="+")
    options.add_argument("--routes", default="{}", help='JSON: {"pattern": "verifier", ...}')
    return options


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        try:
            given = json.loads(args.routes)
        except ValueError as error:
            raise ValueError(f"--routes {args.routes}: this is no JSON ({error})") from error
        routes, counts = check_sources(args.files, given), sources_of(args.files)
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for source, verifier in routes.items():
        print(f"{counts[source]:>9,} rows  {source:<40} {verifier}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
