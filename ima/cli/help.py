"""What --help prints: groups with their choices and one line each, the plain keys, Hydra's options."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ima.config.compose import default_groups
from ima.config.hydra_private import argument_parser, options_of
from ima.config.roots import ROOTS
from ima.core.commands import command_of
from ima.core.trust import CONF

PURPOSE = {
    "train": "Train an adapter into a frozen LLM and measure the alignment inside.",
    "sweep": "Run a grid of trainings or evaluations, one process each, and collect one table.",
    "evaluate": "Evaluate a checkpoint, with interventions and alignment measures as chosen.",
}
OURS = {
    "--help": "this text",
    "--multirun": "several values (seed=0,1): run every combination",
    "--experimental-rerun": "refused; write rerun=outputs/<run> to repeat a run",
}


def help_text(root: str, conf: Path = CONF, more: Sequence[Path] = ()) -> str:
    """more: folders of config files of a person's own."""
    lines = [PURPOSE[root], "", f"  {command_of(root)} [group=choice] [group.key=value] [key=value]", ""]
    for group in default_groups(root, conf):
        if group == "multirun":
            continue
        files = {path.stem: path for place in (conf, *more) for path in (place / group).glob("*.yaml")}
        lines.append(f"{group}:")
        lines += [f"  {choice:22} {describe(files[choice])}".rstrip() for choice in sorted(files)]
    lines += ["", "keys:"]
    groups = default_groups(root, conf)
    for field in dataclasses.fields(ROOTS[root]):
        if field.name not in groups and field.metadata.get("help"):
            lines.append(f"  {field.name:22} {field.metadata['help']}{default_text(field.default)}")
    lines += ["", "options (of Hydra, docs/hydra.md):", *option_lines()]
    lines += ["", f"{command_of(root)} --cfg job shows every key with its value."]
    return "\n".join(lines)


SWEEP_KEYS = {
    "sweep": "a file of conf/sweep",
    "num_parallel": "jobs at the same time, one process each (1); hydra.launcher.num_parallel",
    "keep_going": "go on with the other jobs when one fails (true); hydra.launcher.keep_going",
    "points": "lists of key=value that go together; hydra.sweeper.points",
    "evaluations": "of each training's adapters: {of: key=value, epochs: [..], overrides: [..]}",
    "params.<key>": "the values of a key, [a,b]; as <key>=a,b",
    "script": "what each job runs where no file says it: train or evaluate (train)",
    "name": "folder of the sweep under output_dir; default: the sweep's name, with a hash where more is given",
}


def sweep_help(conf: Path = CONF) -> str:
    """The sweeps with one line each, and the keys that a sweep has beside those of its jobs."""
    lines = [PURPOSE["sweep"], "", f"  {command_of('sweep')} [sweep=choice] [key=a,b] [key=value]", "", "sweep:"]
    lines += [f"  {path.stem:22} {describe(path)}" for path in sorted((conf / "sweep").glob("*.yaml"))]
    lines += ["", "keys:", *(f"  {key:22} {text}" for key, text in SWEEP_KEYS.items())]
    lines += ["", f"Every other key goes to each job: {command_of('train')} --help. docs/hydra.md has the rest."]
    return "\n".join(lines)


def option_lines() -> list[str]:
    parser = argument_parser()
    actions: dict[int, argparse.Action] = {id(action): action for action in options_of(parser).values()}
    lines = []
    for action in actions.values():
        name = max(action.option_strings, key=len)
        text = OURS.get(name) or (action.help if isinstance(action.help, str) else "") or "install with install=bash"
        lines.append(f"  {','.join(action.option_strings):22} {' '.join(text.split())}")
    return lines


def default_text(default: Any) -> str:
    return f" ({default})" if isinstance(default, str | int) and default != "???" else ""


def describe(path: Path) -> str:
    """The first comment line of a yaml file."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @package"):
            return line.lstrip("# ").strip()
    return ""
