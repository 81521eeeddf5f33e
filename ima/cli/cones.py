"""`python -m ima cones DIR DIR...`: how near the cones of datasets and modalities are, layer by layer."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ima.alignment.cone_file import read_sums
from ima.alignment.cones import cone_rows
from ima.core.errors import UserError
from ima.core.files import to_json, write_atomic


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ima cones", description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="evaluations that have an alignment.safetensors")
    parser.add_argument("--rows", type=Path, default=Path("outputs/cones/rows.jsonl"), help="where the rows go")
    arguments = parser.parse_args(argv)
    try:
        rows = list(cone_rows([read_sums(folder) for folder in arguments.folders], arguments.rows.parent.name))
        write_atomic(arguments.rows, "".join(json.dumps(to_json(row)) + "\n" for row in rows))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for row in rows:
        if row.score == "cone_mean" and row.variant == "raw":
            sides = f"{row.role_a} {row.dataset_a} ({row.modality_a})  {row.role_b} {row.dataset_b} ({row.modality_b})"
            print(f"{row.value:7.3f} +- {1.96 * (row.se or 0):.3f}  {sides}  {row.note}")
    print(arguments.rows)
    return 0
