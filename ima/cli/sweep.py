"""sweep.py: a multirun of train.py (or of evaluate.py, where the sweep's file says so), and what follows it.

With the name of a sweep it is `train.py` with --multirun and that name. Evaluations that follow trainings are a second
multirun, into
the same folder; table and page are of both. A few short keys stand for longer ones of Hydra (SHORT).
"""

from __future__ import annotations

import difflib
import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.types import RunMode
from omegaconf import OmegaConf

from ima.cli.flags import read_flags
from ima.cli.help import sweep_help
from ima.cli.scripts import refuse, run_hydra, run_script
from ima.config import folders
from ima.config.compose import CONF, REFUSED
from ima.config.hydra_private import create_config_search_path, prepare
from ima.config.loader import Loader
from ima.config.overrides import PARSER, parse
from ima.config.refusals import one_line
from ima.core.commands import name_of
from ima.core.errors import UserError, nearest
from ima.sweep import launcher, sweeper
from ima.sweep.evaluations import Following, following
from ima.sweep.grid import compose_jobs, expand, written
from ima.sweep.job import Job, quoted

SHORT = {
    "num_parallel": "hydra.launcher.num_parallel",
    "keep_going": "hydra.launcher.keep_going",
    "points": "hydra.sweeper.points",
    "evaluations": "hydra.sweeper.evaluations",
}
OWN = (*SHORT, "params", "overrides", "script")
SHOWN = ("--help", "-h", "--cfg", "-c", "--info", "-i", "--hydra-help", "--version", "--shell-completion", "-sc")


def main(argv: Sequence[str], conf: Path = CONF) -> int:
    prepare()
    try:
        root, words = translated(list(argv), conf)
        shown = any(word.partition("=")[0] in SHOWN for word in words)
        if not shown and not varies(words):
            raise UserError("params: nothing to vary; choose sweep=..., or give several values, as in encoder=a,b")
    except UserError as error:
        return refuse(str(error))
    if any(word in ("--help", "-h") for word in words):
        print(sweep_help())
        return 0
    if shown or any(word in ("-m", "--multirun") for word in words):
        return run_script(root, words, conf=conf)
    sweeper.EVALUATIONS.clear()
    return run_script(root, ["--multirun", *words], conf=conf, follow=functools.partial(follow, words))


def follow(words: Sequence[str], folder: Path) -> None:
    """The evaluations of the trainings that are there now, as a multirun of evaluate.py into the same folder. Raises
    JobFailed."""
    after = following([job for job in launcher.JOBS if job.script == "train"], list(sweeper.EVALUATIONS), folder)
    if not after:
        return
    sweeper.LABELS.update({tuple(one.overrides): one.varied for one in after})
    points = ",".join("[" + ",".join(map(as_text, one.overrides)) + "]" for one in after)
    shared = [word for word in words if word.startswith(("hydra.launcher.", "hydra/launcher", "hydra.searchpath"))]
    flags = read_flags(["--multirun", *shared, *own_place(folder), f"hydra.sweeper.points=[{points}]"], CONF)
    run_hydra("evaluate", flags, None, CONF, [])


def own_place(folder: Path) -> list[str]:
    shown = os.path.relpath(folder.parent) if folder.is_relative_to(Path.cwd()) else str(folder.parent)
    return [f"name={quoted(folder.name)}", f"output_dir={quoted(shown)}"]


def as_text(text: str) -> str:
    """An override as a text of Hydra's grammar."""
    return "'" + text.replace("\\'", "\\\\\\'").replace("'", "\\'") + "'"


def translated(argv: list[str], conf: Path = CONF) -> tuple[str, list[str]]:
    """(train or evaluate, the words for it). Raises UserError for a key of the sweep that is misspelt."""
    root, words = "train", []
    for text in argv:
        name, equals, value = text.partition("=")
        first, _, rest = name.partition(".")
        if name in SHORT:
            words.append(f"{SHORT[name]}={value}")
        elif name == "script":
            root = value
        elif name == "overrides":
            given: Any = parse(text, OWN).value()
            words += [str(item) for item in given]
        elif first == "params":
            words += axes_of(text, rest)
        elif first == "sweep" and rest:
            raise UserError(f"{name}: sweep=<choice> takes a file of conf/sweep; write {rest}=value for its key")
        else:
            words.append(text)
            if name == "sweep":
                root = script_of(value, argv, conf) or root
    if root not in ("train", "evaluate"):
        raise UserError(f"script: {root!r} is no script of a sweep; {nearest(root, ['train', 'evaluate'])}")
    if root == "evaluate" and any(word.startswith("hydra.sweeper.evaluations=") for word in words):
        raise UserError("evaluations: they follow trainings; with script=evaluate vary the keys of evaluate.py instead")
    for text in words:
        name = text.partition("=")[0]
        if "." not in name and name.isidentifier() and nearest_own(name):
            raise UserError(f"{name}: no key of {name_of('sweep')}; did you mean {nearest_own(name)}?")
    return root, words


def nearest_own(name: str) -> str:
    found = difflib.get_close_matches(name, OWN, n=1, cutoff=0.85)
    return found[0] if found else ""


def axes_of(text: str, key: str) -> list[str]:
    """params.seed=[0,1] as seed=choice(0,1)."""
    values: Any = parse(text, OWN).value()
    axes = {key: values} if key else values
    if not isinstance(axes, dict) or any(not isinstance(each, list) for each in axes.values()):
        raise UserError(f"{text}: a grid needs a list of values; write {key or 'seed'}=0,1")
    return [f"{name}=choice({','.join(written(item) for item in each)})" for name, each in axes.items()]


def script_of(choice: str, argv: Sequence[str], conf: Path) -> str | None:
    """What the file of a sweep says that its jobs run."""
    dirs = [after for before, after in zip(argv, argv[1:], strict=False) if before in ("--config-dir", "-cd")]
    dirs += [text.partition("=")[2] for text in argv if text.startswith("--config-dir=")]
    for place in (*map(Path, dirs), conf):
        path = place / "sweep" / f"{choice}.yaml"
        if path.is_file():
            try:
                found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
                return str(found["hydra"]["sweeper"]["script"])
            except (yaml.YAMLError, KeyError, TypeError):
                return None
    return None


def varies(words: Sequence[str]) -> bool:
    if any(word.partition("=")[0] in ("sweep", "hydra.sweeper.points", "hydra.sweeper.evaluations") for word in words):
        return True
    return any(is_grid(word) for word in words if not word.startswith("-"))


def is_grid(text: str) -> bool:
    try:
        return bool(PARSER.parse_override(text).is_sweep_override())
    except Exception:  # what cannot be read is refused, with a reason, when it is composed
        return True


def plan(argv: Sequence[str], conf: Path = CONF) -> tuple[str, list[Job], list[tuple[Job, Following]]]:
    """(name, jobs, evaluations that follow) of a sweep, checked but not run; for who submits it and for tests. Raises
    UserError as the sweep would."""
    prepare()
    folders.register()
    root, words = translated(list(argv), conf)
    if not varies(words):
        raise UserError("params: nothing to vary; choose sweep=..., or give several values, as in encoder=a,b")
    search = create_config_search_path(str(conf))
    loader = Loader(search, root, conf)
    try:
        cfg = loader.load_configuration(root, [*words, "hydra.mode=MULTIRUN"], RunMode.MULTIRUN)
    except REFUSED as error:
        raise UserError(one_line(error)) from None
    options: Any = OmegaConf.to_container(cfg.hydra.sweeper)
    overrides, varied = expand(list(cfg.hydra.overrides.task), options.get("params") or {}, options.get("points") or [])
    jobs = compose_jobs(loader, cfg, overrides, varied, bool(cfg.hydra.launcher.get("keep_going", True)))
    if all(job.state == "failed" for job in jobs):
        raise UserError(jobs[0].reason)
    folder = Path(str(cfg.hydra.sweep.dir))
    after = following(jobs, options.get("evaluations") or [], folder)
    found = []
    for one in after:
        evaluator = Loader(search, "evaluate", conf, one.training.config)
        (job,) = compose_jobs(evaluator, cfg_of(evaluator, folder), [one.overrides], [one.varied], False)
        found.append((job, one))
    return folder.name, jobs, found


def cfg_of(loader: Loader, folder: Path) -> Any:
    """The config that the evaluations of a sweep share."""
    return loader.load_configuration("evaluate", [*own_place(folder), "hydra.mode=MULTIRUN"], RunMode.MULTIRUN)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
