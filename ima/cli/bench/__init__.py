"""`python -m ima bench train|fast|skip|align|report|prune|mt [--rounds N]`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from ima.core.environment import prepare
from ima.core.errors import UserError

NAMES = ("train", "fast", "skip", "align", "report", "prune", "mt")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ima bench", description=__doc__)
    parser.add_argument("name", choices=NAMES, help="which benchmark")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds")
    arguments = parser.parse_args(argv)
    prepare()
    try:
        importlib.import_module(f"ima.cli.bench.{arguments.name}").main(arguments.rounds)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
