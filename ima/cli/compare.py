"""`python -m ima compare RUN RUN`: the paired difference of two runs, printed and written to comparison.json."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ima.core.errors import UserError
from ima.core.files import write_json
from ima.runs.compare import compare, lines_of


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ima compare", description="The paired difference of two runs on the same test examples."
    )
    parser.add_argument("first", type=Path, metavar="RUN", help="a finished run folder (outputs/<run>)")
    parser.add_argument("second", type=Path, metavar="RUN", help="another one, measured on the same examples")
    parser.add_argument("--metric", default="right", help="a number of every example in predictions.jsonl (right)")
    parser.add_argument("--track", action="append", default=[], help="only this track; may be given several times")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: comparison.json in the second run's folder")
    options = parser.parse_args(arguments)
    try:
        comparison = compare(options.first, options.second, options.metric, options.track)
        for line in lines_of(comparison):
            print(line)
        write_json(options.out or options.second / "comparison.json", comparison)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
