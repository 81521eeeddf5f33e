"""Run a grid of trainings: python sweep.py sweep=encoders (--help shows all choices)."""

import sys

from ima.cli.sweep import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
