"""`python -m ima wandb push|sync`: the W&B dashboard as code, and offline runs on their way there.

`push` saves the dashboard to a project where there is a key, else writes it as JSON; its panels show what the mirror
logs (see `ima.pipeline.loggers.wandb`). `sync` sends runs from the files of their folders, whether they were mirrored
offline, were cut off, or never mirrored; also folders that were copied here. `push` needs the extra `dashboards`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ima.cli.wandb_panels import Logged, logged, panels, usual
from ima.core.errors import UserError
from ima.core.files import write_atomic
from ima.pipeline.loggers.wandb import replay
from ima.runs.record import read_record

NAME = "IMA: alignment and performance"
OUT = Path("outputs/dashboard.json")
SYNC_SECONDS = 1800.0  # for one run


def workspace(entity: str, project: str, found: Logged) -> Any:
    """The dashboard of runs that logged this."""
    sections = panels(found)
    import wandb_workspaces.workspaces as ws

    shown = [ws.Section(name=title, panels=each, is_open=True) for title, each in sections.items()]
    return ws.Workspace(entity=entity, project=project, name=NAME, sections=shown)


def push(entity: str | None, project: str, out: Path, paths: Sequence[Path] = ()) -> str:
    """Where the dashboard is: its address, or the JSON file where W&B cannot be reached. paths: of runs that it is
    for."""
    folders = runs_below(paths)
    found = logged(folders) if folders else usual()
    if has_key() and entity:
        try:
            return str(workspace(entity, project, found).save().url)
        except Exception as error:  # whatever W&B raises where it is not there
            print(f"warning: W&B is not there ({' '.join(str(error).split())[:120]})", file=sys.stderr)
    model = workspace(entity or "entity", project, found)._to_model()
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


def runs_below(paths: Sequence[Path]) -> list[Path]:
    """The run folders that `paths` are, and those below them."""
    found: dict[Path, None] = {}
    for path in paths:
        below = [place.parent for place in sorted(path.rglob("result.json")) if not {"wandb", "hub"} & set(place.parts)]
        found |= dict.fromkeys(below)
    return list(found)


def sync(paths: Sequence[Path]) -> int:
    """Send runs whole, from their files; the exit code. A run that was sent before is sent again as the same one."""
    runs = [folder for folder in runs_below(paths) if read_record(folder).status != "running"]
    if not runs:
        raise UserError(f"{' '.join(map(str, paths))}: no run folders that have ended there or below")
    if not has_key():
        raise UserError(f"no W&B key for {len(runs)} runs; set WANDB_API_KEY, or run wandb login")
    num_failed = 0
    for folder in runs:
        record = read_record(folder)
        is_evaluation = "checkpoint" in record.config
        told = replay(
            folder,
            SYNC_SECONDS,
            end="ok" if record.is_ok else "failed",
            job_type="evaluate" if is_evaluation else "train",
        )
        num_failed += "warning" in told
        print(f"{folder}: {told.get('warning') or told.get('url')}")
    return 1 if num_failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ima wandb", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    pushed = commands.add_parser("push", help="save the dashboard to W&B, or write its JSON")
    pushed.add_argument(
        "dirs", nargs="*", type=Path, metavar="DIR", help="runs that it is for: panels of what they hold"
    )
    pushed.add_argument("--entity", default=os.environ.get("WANDB_ENTITY"), help="user or team (WANDB_ENTITY)")
    pushed.add_argument("--project", default=os.environ.get("WANDB_PROJECT") or "ima", help="(WANDB_PROJECT)")
    pushed.add_argument("--out", type=Path, default=OUT, help="the JSON where W&B cannot be reached")
    synced = commands.add_parser("sync", help="send runs from their files")
    synced.add_argument("dirs", nargs="+", type=Path, metavar="DIR", help="run folders or folders of runs")
    options = parser.parse_args(arguments)
    try:
        if options.command == "sync":
            return sync(options.dirs)
        print(push(options.entity, options.project, options.out, options.dirs))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
