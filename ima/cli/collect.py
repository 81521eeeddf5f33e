"""`python -m ima collect DIR...`: one tidy table of all runs below some folders, as CSV and Parquet, without torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ima.core.errors import UserError
from ima.report.collect import collect, write_table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ima collect", description="One tidy table of run folders, as CSV and Parquet."
    )
    parser.add_argument("dirs", nargs="+", type=Path, metavar="DIR", help="a run folder or a folder of runs")
    parser.add_argument(
        "--out", type=Path, default=Path("runs.csv"), metavar="FILE", help="the CSV (runs.csv); FILE.parquet beside it"
    )
    options = parser.parse_args(arguments)
    try:
        print(write_table(collect(options.dirs), options.out))
    except OSError as error:
        print(f"error: {options.out}: cannot be written ({error.strerror}); give --out", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
