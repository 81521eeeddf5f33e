"""What the three scripts share: environment, composition, help, and the border where mistakes become one line.

`run_script` composes and checks the config first, in about a second and without torch; only then is `ima.run`
imported (for sweep.py `ima.sweep`, which needs no torch either). A UserError is printed as `error: ...` and gives
exit code 2; errors of the program keep their traceback.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ima.compose import CONF, PARSER, choices_of, compose, default_groups
from ima.config import ROOTS, config_hash
from ima.errors import UserError, nearest

# Before torch, huggingface_hub and wandb are imported: they read these once. A value that is set already wins.
# W&B reports errors and timings to its makers even when it is offline, unless told not to.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
ENVIRONMENT["WANDB_ERROR_REPORTING"] = "false"
ENTRIES = {"train": "ima.run.fit", "evaluate": "ima.run.evaluate", "sweep": "ima.sweep.run_jobs"}
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
SHORT = {"-h": "--help", "-c": "--cfg", "-m": "--multirun"}


def run_script(root: str, argv: Sequence[str], entry: Callable[[Any], Any] | None = None) -> int:
    """The whole of a script; returns its exit code. `entry` replaces the function of ENTRIES (tests)."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        return int(dispatch(root, list(argv), entry) or 0)
    except UserError as error:
        return refuse(str(error))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        return refuse(f"{error.filename or 'file'}: {error.strerror}; free some space or set output_dir and IMA_CACHE")
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        return refuse("the accelerator is out of memory; lower trainer.batch_size or trainer.eval_batch_size")


def refuse(message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 2


def dispatch(root: str, argv: list[str], entry: Callable[[Any], Any] | None) -> int | None:
    flags = [SHORT.get(argument, argument) for argument in argv if argument.startswith("-")]
    overrides = [argument for argument in argv if not argument.startswith("-")]
    for flag in flags:
        if flag not in OPTIONS:
            raise UserError(f"{flag}: no such option; {nearest(flag, OPTIONS)}")
    if "--help" in flags:
        print(help_text(root))
        return 0
    if "--cfg" in flags and overrides[:1] == ["job"]:  # as Hydra's --cfg job
        overrides = overrides[1:]
    if "--multirun" in flags:
        if root != "train":
            raise UserError(f"--multirun: not for {root}.py; use train.py --multirun or sweep.py")
        root = "sweep"
    config = compose_sweep(overrides) if root == "sweep" else compose(overrides, root)
    if "--cfg" in flags:
        print(OmegaConf.to_yaml(config), end="")
        return 0
    module, _, function = ENTRIES[root].rpartition(".")
    run = entry or getattr(importlib.import_module(module), function)
    result = run(OmegaConf.to_container(config))  # plain values: a DictConfig in a checkpoint cannot be read back
    return result if isinstance(result, int) else 0


def compose_sweep(argv: Sequence[str], conf: Path = CONF) -> Any:
    """The sweep's config with `jobs`: overrides and hash of each job, every one composed and checked by now.

    Keys of sweep.yaml go to the sweep; several values (a=1,2) to its grid; everything else to every job.
    """
    own = {*default_groups("sweep", conf), *(field.name for field in dataclasses.fields(ROOTS["sweep"]))}
    mine, shared, grid = [], [], {}
    for text in argv:
        name, equals, value = text.partition("=")
        if name.split(".")[0] in own:
            mine.append(text)
        elif equals and is_grid(text):
            grid[name] = value
        else:
            shared.append(text)
    config = compose(mine, "sweep", conf)
    root = str(config.script)
    theirs = [*default_groups(root, conf), *(field.name for field in dataclasses.fields(ROOTS[root]))]
    for name in (text.partition("=")[0].lstrip("+") for text in [*shared, *grid]):
        if name.split(".")[0] not in theirs:
            raise UserError(f"{name}: no key of sweep.py or {root}.py; {nearest(name.split('.')[0], {*own, *theirs})}")
    axes = {name: axis(name, values) for name, values in config.params.items()}
    axes |= {name: axis(name, values) for name, values in grid.items()}
    config.params = {name: list(values) for name, values in axes.items()}
    config.overrides = [*config.overrides, *shared]
    if not axes:
        raise UserError("params: nothing to vary; choose sweep=..., or give several values, as in encoder=a,b")
    jobs = []
    for point in itertools.product(*axes.values()):
        overrides = [*config.overrides, *(f"{name}={value}" for name, value in zip(axes, point, strict=True))]
        plain = OmegaConf.to_container(compose(overrides, root, conf))
        assert isinstance(plain, dict)
        jobs.append({"overrides": overrides, "hash": config_hash({str(name): item for name, item in plain.items()})})
    if config.name is None:
        chosen = config.choices.sweep
        config.name = (
            chosen if chosen and not (grid or shared) else f"{chosen or 'sweep'}-{config_hash({'j': jobs})[:6]}"
        )
    config.jobs = jobs
    return config


def is_grid(text: str) -> bool:
    try:
        return bool(PARSER.parse_override(text).is_sweep_override())
    except Exception:  # what cannot be read is refused, with a reason, when the jobs are composed
        return False


def axis(name: str, values: Any) -> list[str]:
    """The values of one axis as they are written on the command line: a list, or Hydra's `a,b` and `range(0,3)`."""
    if not isinstance(values, str):
        if not hasattr(values, "__iter__") or hasattr(values, "items"):
            raise UserError(f"params.{name}: {values!r} is no list of values; write [a,b] or 'range(0,3)'")
        return [written(value) for value in values]
    override = PARSER.parse_override(f"{name}={values}")
    if not override.is_sweep_override():
        return [values]
    if not override.is_discrete_sweep():
        raise UserError(f"{name}: {values!r} has no end; a grid takes lists and range(start,stop,step)")
    return [str(value) for value in override.sweep_string_iterator()]


def written(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    return "[" + ",".join(written(item) for item in value) + "]"


def help_text(root: str, conf: Path = CONF) -> str:
    """Groups with their choices and one line each, then the plain keys."""
    lines = [PURPOSE[root], "", f"  python {root}.py [group=choice] [group.key=value] [key=value]", ""]
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
    lines += ["", f"python {root}.py --cfg shows every key with its value."]
    return "\n".join(lines)


def default_text(default: Any) -> str:
    return f" ({default})" if isinstance(default, str | int) and default != "???" else ""


def describe(path: Path) -> str:
    """The first comment line of a yaml file."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @package"):
            return line.lstrip("# ").strip()
    return ""
