"""A sweep's grid: what is varied, which jobs that makes, every one composed and checked before the first starts.

A grid is the product of `params` (key -> values) and `points` (overrides that go together). Whatever is given on the
command line for a key that the file varies takes its place, so that any grid is narrowed or widened by overrides.
`evaluations` follow each training of the grid: its adapter after so many epochs, measured once more.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ima.config.compose import CONF, PARSER, compose, default_groups
from ima.config.roots import ROOTS
from ima.core.commands import name_of
from ima.core.errors import UserError, nearest
from ima.runs.identity import config_hash, digest
from ima.sweep.job import quoted

Overrides = list[str]


def compose_sweep(argv: Sequence[str], conf: Path = CONF) -> Any:
    """The sweep's config with `jobs`: overrides, hash and script of each.

    Keys of sweep.yaml go to the sweep; several values (a=1,2) to its grid; everything else to every job. A job whose
    config is refused has its `error`; where all are, or keep_going=false, the first is raised.
    """
    own = {*default_groups("sweep", conf), *(field.name for field in dataclasses.fields(ROOTS["sweep"]))}
    mine: Overrides = []
    given: Overrides = []
    for text in argv:
        (mine if text.partition("=")[0].split(".")[0] in own else given).append(text)
    config = compose(mine, "sweep", conf)
    root = str(config.script)
    theirs = [*default_groups(root, conf), *(field.name for field in dataclasses.fields(ROOTS[root]))]
    for name in (key_of(text) for text in given):
        if name.split(".")[0] not in theirs:
            hint = nearest(name.split(".")[0], {*own, *theirs})
            raise UserError(f"{name}: no key of {name_of('sweep')} or {name_of(root)}; {hint}")
    evaluations: Any = OmegaConf.to_container(config.evaluations)
    if evaluations and root != "train":
        raise UserError("evaluations: they follow trainings; with script=evaluate vary the keys of evaluate.py instead")
    axes = {name: axis(name, values) for name, values in config.params.items()}
    points = [list(map(str, point)) for point in config.points]
    shared = []
    for text in given:
        name, value = key_of(text), text.partition("=")[2]
        values = axis(name, value) if is_grid(text) else [value]
        if any(key_of(item) == name for point in points for item in point):
            points = narrowed(points, name, values)
        elif name in axes or is_grid(text):
            axes[name] = values
        else:
            shared.append(text)
    config.params, config.points = {name: list(values) for name, values in axes.items()}, points
    config.overrides = [*config.overrides, *shared]
    if not axes and not points and not config.evaluations:
        raise UserError("params: nothing to vary; choose sweep=..., or give several values, as in encoder=a,b")
    jobs = grid_jobs(list(config.overrides), points, axes, root, conf, bool(config.keep_going))
    if config.name is None:
        chosen, tail = config.choices.sweep, digest([[job["hash"] for job in jobs], evaluations or []])[:6]
        config.name = chosen if chosen and not given else f"{chosen or 'sweep'}-{tail}"
    folder = Path(config.output_dir) / config.name
    for job in list(jobs):
        jobs += evaluation_jobs(job, evaluations, folder, conf, bool(config.keep_going))
    for job in jobs:
        job.pop("config", None)
    config.jobs = jobs
    return config


def grid_jobs(
    shared: Overrides,
    points: Sequence[Overrides],
    axes: Mapping[str, Sequence[str]],
    root: str,
    conf: Path,
    keep_going: bool,
) -> list[dict[str, Any]]:
    jobs = []
    for point, *values in itertools.product(points or [[]], *axes.values()):
        varied = [*point, *(f"{name}={value}" for name, value in zip(axes, values, strict=True))]
        jobs.append(job_of([*shared, *varied], dict(text.split("=", 1) for text in varied), root, conf, keep_going))
    if all("error" in job for job in jobs):
        raise UserError(jobs[0]["error"])
    return jobs


def job_of(
    overrides: Overrides,
    varied: dict[str, str],
    root: str,
    conf: Path,
    keep_going: bool,
    trained: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """overrides, varied, script, and config and hash or (where the config is refused) error and a hash of its own."""
    job: dict[str, Any] = {"overrides": overrides, "varied": varied, "script": root}
    try:
        plain = OmegaConf.to_container(compose(overrides, root, conf, trained=trained))
    except UserError as error:
        if not keep_going:
            raise
        return job | {"error": str(error), "hash": digest({"refused": overrides})}
    assert isinstance(plain, dict)
    config = {str(name): item for name, item in plain.items()}
    return job | {"config": config, "hash": config_hash(config)}


def evaluation_jobs(
    training: dict[str, Any], evaluations: Iterable[dict[str, Any]], folder: Path, conf: Path, keep_going: bool
) -> list[dict[str, Any]]:
    """The evaluations of one training's adapters; each `needs` the training. None of a refused training."""

    jobs: list[dict[str, Any]] = []
    if "error" in training:
        return jobs
    for number, entry in enumerate(evaluations):
        if unknown := entry.keys() - {"of", "epochs", "overrides"}:
            raise UserError(f"evaluations.{number}: {nearest(min(unknown), ['of', 'epochs', 'overrides'])}")
        if entry.get("of") is not None and entry["of"] not in training["overrides"]:
            continue
        last = max(0, int((training["config"].get("trainer") or {}).get("max_epochs") or 0))
        for epoch in sorted({min(int(epoch), last) for epoch in entry.get("epochs") or [last]}):
            path = folder / training["hash"] / "checkpoints" / f"epoch-{epoch:03d}.safetensors"
            overrides = [f"checkpoint={quoted(str(path))}", *map(str, entry.get("overrides") or []), *trusted(training)]
            varied = training["varied"] | {"epoch": str(epoch)}
            job = job_of(overrides, varied, "evaluate", conf, keep_going, training["config"])
            jobs.append(job | {"needs": training["hash"]})
    return jobs


def trusted(training: dict[str, Any]) -> list[str]:
    """What the person named for the training may be named by the run that it leaves behind."""
    names = training["config"].get("trust") or []
    return [f"trust=[{','.join(names)}]"] if names else []


def narrowed(points: Sequence[Overrides], name: str, values: Sequence[str]) -> list[Overrides]:
    """The points that set `name` to one of the values; a value that no point has is a point of its own."""
    kept = [point for point in points if any(f"{name}={value}" in point for value in values)]
    held = {text for point in kept for text in point}
    return [*kept, *([f"{name}={value}"] for value in values if f"{name}={value}" not in held)]


def key_of(text: str) -> str:
    return text.partition("=")[0].lstrip("+")


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
