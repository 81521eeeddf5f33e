"""`python -m ima wandb push|sync`: the W&B dashboard as code, and offline runs on their way there.

`push` saves the dashboard to a project where there is a key, else writes it as JSON; its panels show what the mirror
logs (see `ima.pipeline.loggers.wandb`). `sync` uploads offline runs: of each run folder the newest, since a resumed
run begins with all rows that it keeps. Needs the extra `dashboards`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ima.core.errors import UserError
from ima.core.extras import how_to_install
from ima.core.files import write_atomic

NAME = "IMA: alignment and performance"
TRACKS, SCORES = ("T0", "T1"), ("noun_accuracy", "accuracy", "f1", "cider_d")
OUT = Path("outputs/dashboard.json")


def workspace(entity: str, project: str) -> Any:
    """The dashboard: learning, alignment, tasks by track, and IMA against each score over runs."""
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError:
        raise UserError(how_to_install("wandb_workspaces")) from None
    lines = wr.LinePlot
    names = [f"{track}/{score}" for score in SCORES for track in TRACKS]
    panels: dict[str, list[Any]] = {
        "Alignment": [
            lines(title="IMA by epoch", x="epoch", y=["ima/mean", "ima_p0/mean"]),
            lines(title="matched and gap", x="epoch", y=["ima_matched/mean", "ima_gap/mean"]),
            lines(title="IMA by layer, each a line over epochs", x="epoch", metric_regex="ima_layer/.*"),
        ],
        "Learning": [
            lines(title="training loss", x="trainer/global_step", y=["train/loss"]),
            lines(title="validation loss", x="epoch", y=["val/loss"]),
            lines(title="learning rate", x="trainer/global_step", y=["train/lr"]),
        ],
        "Tasks": [lines(title=name, x="epoch", y=[name]) for name in names],
        "IMA against performance (within one LLM only)": [
            wr.ScatterPlot(title=name, x=wr.SummaryMetric("ima/mean"), y=wr.SummaryMetric(name)) for name in names
        ],
        "Runs": [wr.RunComparer(diff_only="split")],
    }
    sections = [
        ws.Section(name=title, panels=shown, is_open=place < 4) for place, (title, shown) in enumerate(panels.items())
    ]
    return ws.Workspace(entity=entity, project=project, name=NAME, sections=sections)


def push(entity: str | None, project: str, out: Path) -> str:
    """Where the dashboard is: its address, or the JSON file where W&B cannot be reached."""
    if has_key() and entity:
        try:
            return str(workspace(entity, project).save().url)
        except Exception as error:  # whatever W&B raises where it is not there
            print(f"warning: W&B is not there ({' '.join(str(error).split())[:120]})", file=sys.stderr)
    model = workspace(entity or "entity", project)._to_model()
    write_atomic(out, model.model_dump_json(by_alias=True, exclude_none=True, indent=2) + "\n")
    return str(out)


def has_key() -> bool:
    """Whether wandb could log in: a key in the environment or in the netrc file."""
    import netrc

    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return any("wandb" in host or "coreweave" in host for host in hosts)


def offline_runs(paths: Sequence[Path]) -> list[Path]:
    """The newest offline run of each run folder below `paths`."""
    newest: dict[Path, Path] = {}
    for path in paths:
        for run in sorted(path.rglob("wandb/offline-run-*")):
            newest[run.parent] = run
    return sorted(newest.values())


def sync(paths: Sequence[Path]) -> int:
    runs = offline_runs(paths)
    if not runs:
        raise UserError(f"{' '.join(map(str, paths))}: no offline runs below; they are made with logger=offline")
    if not has_key():
        raise UserError(f"no W&B key for {len(runs)} offline runs; set WANDB_API_KEY, or run wandb login")
    return subprocess.run([sys.executable, "-m", "wandb", "sync", *map(str, runs)]).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ima wandb", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    pushed = commands.add_parser("push", help="save the dashboard to W&B, or write its JSON")
    pushed.add_argument("--entity", default=os.environ.get("WANDB_ENTITY"), help="user or team (WANDB_ENTITY)")
    pushed.add_argument("--project", default="ima")
    pushed.add_argument("--out", type=Path, default=OUT, help="the JSON where W&B cannot be reached")
    synced = commands.add_parser("sync", help="upload offline runs")
    synced.add_argument("dirs", nargs="+", type=Path, metavar="DIR", help="run folders or folders of runs")
    options = parser.parse_args(arguments)
    try:
        if options.command == "sync":
            return sync(options.dirs)
        print(push(options.entity, options.project, options.out))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
