"""`python -m ima correlate DIR DIR... --x ima/mean --y T0/noun_accuracy`: an alignment score against a task metric."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from ima.core.errors import UserError
from ima.core.files import to_json, write_atomic
from ima.report.correlation import OVER, correlate, correlation_rows, detect, points_of


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ima correlate", description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="runs or evaluations")
    parser.add_argument("--x", default="ima/mean", help="an alignment score")
    parser.add_argument("--y", required=True, help="a task metric")
    parser.add_argument("--over", choices=tuple(OVER), default="runs", help="what a point is")
    parser.add_argument("--rows", type=Path, default=Path("outputs/proxy/rows.jsonl"), help="where the rows go")
    arguments = parser.parse_args(argv)
    try:
        points, left_out = points_of(arguments.over, arguments.folders, arguments.x, arguments.y)
        for line in left_out:
            print(f"left out: {line}", file=sys.stderr)
        x, y = [point.x for point in points], [point.y for point in points]
        found = correlate(x, y)
        if arguments.over == "examples" and {value for value in y if math.isfinite(value)} <= {0.0, 1.0}:
            found.append(detect(x, y))
        rows = list(correlation_rows(found, arguments.x, arguments.y, arguments.rows.parent.name))
        write_atomic(arguments.rows, "".join(json.dumps(to_json(row)) + "\n" for row in rows))
        described = {"x": arguments.x, "y": arguments.y, "points": points, "correlations": found}
        write_atomic(arguments.rows.with_name("points.json"), json.dumps(to_json(described), indent=2) + "\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for each in found:
        print(f"{each.name:9s} {each.value:6.3f}  [{each.low:.3f}, {each.high:.3f}]  p {each.p:.3g}  n {each.n}")
    print(arguments.rows)
    return 0
