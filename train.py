"""Train an adapter: python train.py experiment=demo (--help shows all choices)."""

import sys

from ima.cli.scripts import run_script

if __name__ == "__main__":
    sys.exit(run_script("train", sys.argv[1:]))
