"""Evaluate a run: python evaluate.py checkpoint=outputs/demo (--help shows all choices)."""

import sys

from ima.cli.scripts import run_script

if __name__ == "__main__":
    sys.exit(run_script("evaluate", sys.argv[1:]))
