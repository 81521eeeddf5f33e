"""`python -m ima claims outputs/...`: the papers' claims, each with its verdict, computed from finished runs."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ima.core.errors import UserError
from ima.core.files import write_atomic

IMPORTED = ("ima", "conf")  # what runs rest on; a change elsewhere changes no number


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ima claims", description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="runs, evaluations and folders of them")
    parser.add_argument("--out", type=Path, default=Path("outputs/claims"), help="where claims.md, .csv, .html go")
    arguments = parser.parse_args(argv)
    from ima.report.claims.table import cells_of, cells_text, csv_of, lines_of, markdown_of, page_of
    from ima.report.load import load_runs

    try:
        runs = load_runs(arguments.folders, max_detailed=sys.maxsize)
        cells = cells_of(runs, code_changed)
        write_atomic(arguments.out / "claims.csv", csv_of(cells))
        write_atomic(arguments.out / "claims.md", markdown_of(cells))
        write_atomic(arguments.out / "claims.html", page_of(cells, [str(folder) for folder in arguments.folders]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for claim, cell in lines_of(cells):
        texts = cells_text(claim, cell)
        print(f"{texts[0]:4s} {texts[1][:70]:70s} {texts[2][:24]:24s} {cell.words if cell else texts[-1]}")
    print(f"page: {arguments.out / 'claims.html'}")
    return 0


def code_changed(commits: Sequence[str]) -> bool:
    """Whether a file that runs import differs between any two of these commits, or one of them had changes that are not
    committed, or is not known here."""
    if len(commits) < 2:
        return any(not re.fullmatch("[0-9a-f]{7,40}", commit) for commit in commits)
    if any(not re.fullmatch("[0-9a-f]{7,40}", commit) for commit in commits):
        return True
    for commit in commits[1:]:
        command = ["git", "diff", "--quiet", commits[0], commit, "--", *IMPORTED]
        try:
            if subprocess.run(command, capture_output=True, check=False).returncode:
                return True
        except OSError:
            return True
    return False
