"""Run a grid of trainings: python sweep.py sweep=encoders (--help shows all choices)."""

import sys

from ima.cli.scripts import run_script

if __name__ == "__main__":
    sys.exit(run_script("sweep", sys.argv[1:]))
