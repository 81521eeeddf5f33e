"""`make demo`, `make demo-control`, `make twin`: which data there are, the trainings, the last lines on the terminal.

Where the stamps are not available, the demo of procedural shapes runs instead (experiment=demo_shapes): said in one
line and written in the run's name, so that its numbers are never taken for the demo's. Further arguments go to
train.py as they are. No torch here: trainings are processes of their own.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ima.config.compose import CONF, choices_of, compose
from ima.core.assets.registry import locate
from ima.core.commands import process_of
from ima.core.errors import UserError

CHOICES = ("demo", "control", "twin")
TAIL = "_control"  # of the experiment that has noise in place of the encoder


def calls_of(which: str, has_stamps: bool, given: Sequence[str]) -> list[list[str]]:
    """What train.py is called with, once or twice. A name that is given is the demo's; its twin's gets a tail."""
    demo = "demo" if has_stamps or names_key("data", given) else "demo_shapes"
    if which == "twin":
        demo, given = experiment_of(given)
    if which == "demo":
        return [[f"experiment={demo}", *given]]
    if names_key("encoder", given):
        raise UserError("encoder: the control differs in nothing but its encoder; leave it out")
    twin = [f"{text}-control" if text.startswith("name=") else text for text in given]
    return [[f"experiment={demo}", *given], [f"experiment={demo}{TAIL}", *twin]]


def experiment_of(given: Sequence[str]) -> tuple[str, list[str]]:
    """The experiment that is named, and the other arguments. Raises UserError for one without a twin."""
    named = [text.split("=", 1)[1] for text in given if text.startswith("experiment=")]
    choices = choices_of("experiment", CONF)
    paired = [name for name in choices if f"{name}{TAIL}" in choices]
    if len(named) != 1 or named[0] not in paired:
        raise UserError(f"experiment: {', '.join(named) or 'none given'}; with a twin are: {', '.join(paired)}")
    return named[0], [text for text in given if not text.startswith("experiment=")]


def names_key(name: str, given: Sequence[str]) -> bool:
    return any(text.split("=", 1)[0] == name for text in given)


def stamps_missing() -> str:
    """Why the stamps cannot be used here; empty where they can."""
    try:
        locate("stamps")
    except UserError as error:
        return str(error)
    return ""


def folder_of(overrides: Sequence[str]) -> Path:
    """The run folder that train.py will use; refuses a mistake in the arguments before anything runs."""
    config = compose(overrides, "train")
    return Path(config["output_dir"]) / config["name"]


def train(overrides: Sequence[str]) -> int:
    """Exit code of train.py. Ctrl-C is its to answer: it puts its state down before it ends."""
    before = signal.getsignal(signal.SIGINT)
    process = subprocess.Popen([*process_of("train"), *overrides])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code = process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    return code if code >= 0 else 128 - code


def run(which: str, given: Sequence[str]) -> int:
    from ima.cli.install import read_record, times_line

    reason = stamps_missing()
    calls = calls_of(which, not reason, given)
    if calls[0][0] == "experiment=demo_shapes":
        print(f"StampWorld is not available, the demo runs on procedural shapes instead: {reason}", flush=True)
    folders = [folder_of(overrides) for overrides in calls]
    start = time.monotonic()
    for overrides in calls:
        if code := train(overrides):
            return code
    seconds = time.monotonic() - start
    if which != "demo":
        from ima.cli.compare import main as compare

        if code := compare([str(folder) for folder in folders]):
            return code
    print(times_line(read_record(), seconds))
    for folder in folders:
        print(folder / "report.html")
    return 0


def main(arguments: Sequence[str]) -> int:
    which, *given = arguments or ["demo"]
    if which not in CHOICES:
        print(f"error: {which}: allowed: {', '.join(CHOICES)}, then overrides of train.py", file=sys.stderr)
        return 2
    try:
        return run(which, given)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
