"""`python -m ima bench train|fast|skip|align|report|prune|mt|gpu [--rounds N]`; gpu also takes `--size 7b|1b|tiny`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from ima.core.environment import prepare
from ima.core.errors import UserError

NAMES = ("train", "fast", "skip", "align", "report", "prune", "mt", "gpu")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ima bench", description=__doc__)
    parser.add_argument("name", choices=NAMES, help="which benchmark")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds")
    parser.add_argument("--size", default=None, help="of the LLM that bench gpu makes: 7b (the default), 1b, tiny")
    arguments = parser.parse_args(argv)
    prepare()
    more = {} if arguments.size is None else {"size": arguments.size}
    try:
        if more and arguments.name != "gpu":
            raise UserError(f"--size: bench {arguments.name} takes the models of this project; it is for bench gpu")
        importlib.import_module(f"ima.cli.bench.{arguments.name}").main(arguments.rounds, **more)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
