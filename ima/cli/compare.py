"""`python -m ima compare RUN RUN`: the paired difference of two runs, printed, in comparison.json and on a page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ima.core.errors import UserError
from ima.core.files import write_json
from ima.runs.compare import compare, lines_of
from ima.runs.record import RESULT


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ima compare", description="The paired difference of two runs on the same test examples."
    )
    parser.add_argument("first", type=Path, metavar="RUN", help="a finished run folder (outputs/<run>)")
    parser.add_argument("second", type=Path, metavar="RUN", help="another one, measured on the same examples")
    parser.add_argument("--metric", default="right", help="a number of every example in predictions.jsonl (right)")
    parser.add_argument("--track", action="append", default=[], help="only this track; may be given several times")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: comparison.json in the second run's folder")
    parser.add_argument("--no-page", action="store_true", help="draw no page of the two side by side")
    options = parser.parse_args(arguments)
    try:
        comparison = compare(options.first, options.second, options.metric, options.track)
        for line in lines_of(comparison):
            print(line)
        write_json(options.out or options.second / "comparison.json", comparison)
        if not options.no_page and all((folder / RESULT).is_file() for folder in (options.first, options.second)):
            draw(options.first, options.second, options.out)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def draw(first: Path, second: Path, out: Path | None) -> None:
    """The page of the two side by side; their own pages anew, which say what the comparison shows."""
    from ima.report.build import write_report  # draws figures

    for folder in (first, second):
        if (folder / "report.html").is_file():
            write_report([folder])
    print(write_report([first, second], (out.parent if out else second) / "comparison" / "report.html"))
