"""`python -m ima evaluate …`: what evaluate.py does."""

from __future__ import annotations

from collections.abc import Sequence

from ima.cli.scripts import run_script


def main(argv: Sequence[str]) -> int:
    return run_script("evaluate", argv)
