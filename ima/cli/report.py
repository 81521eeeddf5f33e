"""`python -m ima report DIR...`: one self-contained page of one run or of many."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ima.core.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ima report",
        description="Draws run folders as one HTML page that works offline; figures go beside it as SVG, PNG and CSV.",
    )
    parser.add_argument(
        "dirs", nargs="+", type=Path, metavar="DIR", help="a run folder (outputs/<run>) or a folder of runs"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where the page goes (default: report.html in the run's folder, or in the folder of runs)",
    )
    options = parser.parse_args(arguments)
    from ima.report.build import write_report  # drawing code: not for --help

    try:
        print(write_report(options.dirs, options.out))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
