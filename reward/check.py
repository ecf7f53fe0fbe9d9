"""Which verifier judges which data, before a run: ``python -m reward.check FILE.parquet...``"""

import argparse
import json
import sys

from reward.router import check_sources, sources_of


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--routes", type=json.loads, default={}, help='JSON: {"pattern": "verifier", ...}')
    args = parser.parse_args(argv)
    try:
        counts, routes = sources_of(args.files), check_sources(args.files, args.routes)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for source, verifier in routes.items():
        print(f"{counts[source]:>9,} rows  {source:<40} {verifier}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
