"""What the three scripts share: environment, composition, help, and the border where mistakes become one line.

`run_script` composes and checks the config first, in about a second and without torch; only then is `ima.pipeline.run`
imported (for sweep.py `ima.sweep`, which needs no torch either). A UserError is printed as `error: ...` and gives
exit code 2; errors of the program keep their traceback.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ima.config.compose import CONF, choices_of, compose, default_groups
from ima.config.hub_names import hub_names
from ima.config.roots import ROOTS
from ima.config.synonyms import synonym
from ima.core.commands import command_of, name_of
from ima.core.environment import prepare
from ima.core.errors import UserError, memory_line, nearest
from ima.core.extras import missing_extra
from ima.core.network import settle
from ima.core.trust import trusting
from ima.sweep.grid import compose_sweep

ENTRIES = {"train": "ima.pipeline.run.fit", "evaluate": "ima.pipeline.run.evaluate", "sweep": "ima.sweep.run.run_jobs"}
PURPOSE = {
    "train": "Train an adapter into a frozen LLM and measure the alignment inside.",
    "evaluate": "Evaluate a checkpoint, with interventions and alignment measures as chosen.",
    "sweep": "Run a grid of trainings or evaluations, one process each, and collect one table.",
}
OPTIONS = {
    "--help": "this text",
    "--cfg": "print the resolved config and stop",
    "--multirun": "(-m, train.py) several values: run the grid as a sweep",
}
# Errors of files that are the place's, not the program's: full, closed to us, or no folder at all.
OF_THE_PLACE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST,
    errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EIO, errno.ESTALE,
)  # fmt: skip
SHORT = {"-h": "--help", "-c": "--cfg", "-m": "--multirun"}


def run_script(root: str, argv: Sequence[str], entry: Callable[[Any], Any] | None = None) -> int:
    """The whole of a script; returns its exit code. `entry` replaces the function of ENTRIES (tests)."""
    prepare()
    try:
        return int(dispatch(root, list(argv), entry) or 0)
    except UserError as error:
        return refuse(str(error))
    except ModuleNotFoundError as error:
        if not (lacking := missing_extra(error)):
            raise
        return refuse(lacking)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in OF_THE_PLACE:
            raise
        return refuse(f"{error.filename or 'file'}: {error.strerror}; free some space or set output_dir and IMA_CACHE")
    except (RuntimeError, MemoryError) as error:
        if not (line := memory_line(error)):
            raise
        return refuse(line)


def refuse(message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 2


def dispatch(root: str, argv: list[str], entry: Callable[[Any], Any] | None) -> int | None:
    flags = [SHORT.get(argument, argument) for argument in argv if argument.startswith("-")]
    overrides = [argument for argument in argv if not argument.startswith("-")]
    for flag in flags:
        if flag not in OPTIONS and (known := synonym(flag.lstrip("-").partition("=")[0].rpartition(".")[2])):
            raise UserError(f"{flag}: no such option; {known}, written key=value without '--'")
        if flag not in OPTIONS and "=" in flag:
            raise UserError(
                f"{flag}: no such option; keys are written without '--': {flag.lstrip('-')} "
                "(in the command of a W&B sweep ${args_no_hyphens} in place of ${args})"
            )
        if flag not in OPTIONS:
            raise UserError(f"{flag}: no such option; {nearest(flag, OPTIONS)}")
    if "--help" in flags:
        print(help_text(root))
        return 0
    if "--cfg" in flags and overrides[:1] == ["job"]:  # as Hydra's --cfg job
        overrides = overrides[1:]
    if "--multirun" in flags:
        if root != "train":
            raise UserError(
                f"--multirun: not for {name_of(root)}; use {name_of('train')} --multirun or {name_of('sweep')}"
            )
        root = "sweep"
    typed = [text.partition("=")[2] for text in overrides if text.startswith("offline=")]
    if typed:
        settle(typed[-1])  # a checkpoint of the hub is read while the config is composed
    config = compose_sweep(overrides) if root == "sweep" else compose(overrides, root)
    if "--cfg" in flags:
        print(OmegaConf.to_yaml(config), end="")
        return 0
    module, _, function = ENTRIES[root].rpartition(".")
    run = entry or getattr(importlib.import_module(module), function)
    plain: Any = OmegaConf.to_container(config)  # plain values: a DictConfig in a checkpoint cannot be read back
    settle(plain.get("offline"), hub_names(plain))
    with trusting(plain.get("trust") or ()):
        result = run(plain)
    return result if isinstance(result, int) else 0


def help_text(root: str, conf: Path = CONF) -> str:
    """Groups with their choices and one line each, then the plain keys."""
    lines = [PURPOSE[root], "", f"  {command_of(root)} [group=choice] [group.key=value] [key=value]", ""]
    for group in default_groups(root, conf):
        lines.append(f"{group}:")
        for choice in choices_of(group, conf):
            lines.append(f"  {choice:22} {describe(conf / group / f'{choice}.yaml')}".rstrip())
    lines += ["", "keys:"]
    groups = default_groups(root, conf)
    for field in dataclasses.fields(ROOTS[root]):
        if field.name not in groups and field.metadata.get("help"):
            lines.append(f"  {field.name:22} {field.metadata['help']}{default_text(field.default)}")
    lines += ["", "options:", *(f"  {option:22} {text}" for option, text in OPTIONS.items())]
    lines += ["", f"{command_of(root)} --cfg shows every key with its value."]
    return "\n".join(lines)


def default_text(default: Any) -> str:
    return f" ({default})" if isinstance(default, str | int) and default != "???" else ""


def describe(path: Path) -> str:
    """The first comment line of a yaml file."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @package"):
            return line.lstrip("# ").strip()
    return ""
