"""The one door to all commands: `python -m ima <command> …`, the same as `ima <command> …` once it is installed.

`python -m ima` alone lists them. Each command is a file of `ima/cli/`; nothing of it is imported before it is chosen.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from ima.core.commands import called_as
from ima.core.errors import UserError, memory_line, nearest
from ima.core.extras import missing_extra

# command -> (module, what it does)
COMMANDS = {
    "train": ("ima.cli.train", "train an adapter (train.py)"),
    "evaluate": ("ima.cli.evaluate", "measure a checkpoint, with interventions (evaluate.py)"),
    "sweep": ("ima.cli.sweep", "run a grid of trainings or evaluations (sweep.py)"),
    "generate": ("ima.cli.generate", "what the model of a run says about a picture, sound or clip"),
    "report": ("ima.cli.report", "write the page of one run or of many"),
    "collect": ("ima.cli.collect", "one table of all runs below some folders, CSV and Parquet"),
    "compare": ("ima.cli.compare", "the paired difference of two runs, with its interval"),
    "correlate": ("ima.cli.correlate", "correlate an alignment score with a task metric"),
    "claims": ("ima.cli.claims", "the papers' claims with verdicts, computed from runs"),
    "cones": ("ima.cli.cones", "how near the cones of datasets and modalities are"),
    "masks": ("ima.cli.masks", "make pruning masks, compare and export them"),
    "data": ("ima.cli.data", "a first look at data: sizes, lengths, what cannot be read, samples"),
    "doctor": ("ima.cli.doctor", "will a config run here: memory, disk, what is missing"),
    "demo": ("ima.cli.demo", "the demo, its control, or an experiment with its twin on noise"),
    "assets": ("ima.cli.assets", "the embedded models and pictures: list or fetch"),
    "export-data": ("ima.cli.export_data", "write a source in official formats"),
    "export-llava": ("ima.cli.export_llava", "write a run as a LLaVA model folder"),
    "push": ("ima.cli.push", "write a run for the Hugging Face hub, and upload it where there is a token"),
    "submit": ("ima.cli.submit", "workers of one sweep as jobs of a cluster"),
    "wandb": ("ima.cli.wandb_workspace", "push the W&B dashboard, send runs from their files"),
    "bench": ("ima.cli.bench", "the benchmarks"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None and os.getcwd() not in (os.path.abspath(place) for place in sys.path):
        sys.path.insert(0, os.getcwd())  # a person's own classes lie where she works, as under `python -m`
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(f"usage: {called_as() or 'python -m ima'} <command> ...\n")
        for name, (_, what) in COMMANDS.items():
            print(f"  {name:13s} {what}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"error: {name}: no such command; {nearest(name, COMMANDS)}", file=sys.stderr)
        return 2
    try:
        return int(importlib.import_module(COMMANDS[name][0]).main(rest) or 0)
    except ModuleNotFoundError as error:
        if not (lacking := missing_extra(error)):
            raise
        print(f"error: {lacking}", file=sys.stderr)
        return 2
    except UserError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not (line := memory_line(error)):
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
