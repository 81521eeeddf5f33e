"""`python -m ima report DIR...`: one self-contained page of one run or of many; --watch while a run is going on."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ima.core.errors import UserError

SECONDS = 10


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
    parser.add_argument(
        "--watch",
        action="store_true",
        help=f"write the page anew every {SECONDS} s while a run is going on; a browser then shows it by itself",
    )
    options = parser.parse_args(arguments)
    from ima.report.build import watch, write_report  # drawing code: not for --help

    try:
        page = write_report(options.dirs, options.out, SECONDS if options.watch else 0)
        print(page, flush=True)
        if options.watch:
            watch(options.dirs, options.out, SECONDS, time.sleep)
    except KeyboardInterrupt:
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
