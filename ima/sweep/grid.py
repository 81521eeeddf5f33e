"""A multirun's grid: what is varied and the jobs that it makes, every one composed and checked before the first runs.

A grid is the product of params (key -> values) and points (overrides that go together). Whatever is given on the
command line for a key that a file varies takes its place, so that any grid is narrowed or widened by overrides.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ima.config.overrides import PARSER
from ima.config.refusals import one_line
from ima.core.errors import UserError
from ima.core.progress import progress
from ima.runs.identity import config_hash, digest
from ima.sweep.job import Job
from ima.sweep.process import flags_of, hydra_overrides

Overrides = list[str]
REFUSED = (UserError, HydraException, OmegaConfBaseException, yaml.YAMLError, RecursionError)


def expand(
    arguments: Sequence[str],
    params: Mapping[str, Any],
    points: Sequence[Sequence[str]],
    parser: OverridesParser = PARSER,
) -> tuple[list[Overrides], list[dict[str, str]]]:
    """The overrides of each job, and of these what is varied. parser: one that knows the loader, for glob(...). Raises
    UserError for values that have no end."""
    axes = {name: axis(name, values, parser) for name, values in params.items()}
    together = [list(map(str, point)) for point in points]
    shared = []
    for text in arguments:
        (override,) = parser.parse_overrides([text])  # this one knows the loader, which glob(...) asks
        name = str(override.get_key_element())
        values = axis_of(override, text) if override.is_sweep_override() else [text.partition("=")[2]]
        if any(key_of(item) == name for point in together for item in point):
            together = narrowed(together, name, values)
        elif name in axes or override.is_sweep_override():
            axes[name] = values
        else:
            shared.append(text)
    jobs: list[list[str]] = []
    varied: list[dict[str, str]] = []
    for point, *chosen in itertools.product(together or [[]], *axes.values()):
        own = [*point, *(f"{name}={value}" for name, value in zip(axes, chosen, strict=True))]
        jobs.append([*shared, *own])
        varied.append(dict(text.split("=", 1) for text in own))
    return jobs, varied


def compose_jobs(
    loader: Any,
    config: DictConfig,
    overrides: Sequence[Overrides],
    varied: Sequence[dict[str, str]],
    keep_going: bool,
    first: int = 0,
) -> list[Job]:
    """Each job with its config, hash and folder; one that is refused has failed already. config: what all jobs share.
    Raises UserError where a refused job is to stop the rest."""
    folder = Path(str(config.hydra.sweep.dir))
    flags, shared = flags_of(config.hydra, loader.root), hydra_overrides(config.hydra)
    jobs = []
    with progress(len(overrides), "compose", "job") as advance:  # a thousand take more than a minute
        for number, (one, own) in enumerate(zip(overrides, varied, strict=True), first):
            advance(1)
            try:
                cfg = loader.load_sweep_config(config, one)
                cfg.hydra.job.num, cfg.hydra.job.id = number, str(number)
                place = folder / subfolder(cfg, loader.config)
            except REFUSED as error:
                if not keep_going:
                    raise UserError(one_line(error)) from None
                name = digest({"refused": one})
                job = Job(
                    one, name, own, folder / name, log_of(folder, name), script=loader.root, reason=one_line(error)
                )
                jobs.append(job)
                job.state = "failed"
                continue
            found = dict(loader.config)
            name = config_hash(found)
            job = Job(one, name, own, place, log_of(folder, place.name), script=loader.root, config=found)
            job.overwrite, job.flags, job.shared = bool(found.get("overwrite")), flags, shared
            jobs.append(job)
    return jobs


def subfolder(cfg: DictConfig, config: Mapping[str, Any]) -> str:
    """`hydra.sweep.subdir` of a job. config: what it runs, so that the resolver of its hash need not make it again."""
    text = OmegaConf.to_container(cfg.hydra.sweep, resolve=False)["subdir"]  # type: ignore[call-overload,index]
    return config_hash(config) if text == "${ima.hash:}" else str(OmegaConf.select(cfg, "hydra.sweep.subdir"))


def log_of(folder: Path, name: str) -> Path:
    return folder / "logs" / f"{name}.txt"


def narrowed(points: Sequence[Overrides], name: str, values: Sequence[str]) -> list[Overrides]:
    """The points that set `name` to one of the values; a value that no point has is a point of its own."""
    kept = [point for point in points if any(f"{name}={value}" in point for value in values)]
    held = {text for point in kept for text in point}
    return [*kept, *([f"{name}={value}"] for value in values if f"{name}={value}" not in held)]


def key_of(text: str) -> str:
    return text.partition("=")[0]


def axis(name: str, values: Any, parser: OverridesParser = PARSER) -> list[str]:
    """The values of one axis as they are written on the command line: a list, or Hydra's `a,b` and `range(0,3)`."""
    if isinstance(values, Mapping):
        raise UserError(f"hydra.sweeper.params.{name}: {values!r} is no list of values; write [a,b] or range(0,3)")
    if not isinstance(values, str):
        return [written(value) for value in (values if isinstance(values, Sequence) else [values])]
    override = parser.parse_override(f"{name}={values}")
    return axis_of(override, f"{name}={values}") if override.is_sweep_override() else [values]


def axis_of(override: Override, text: str) -> list[str]:
    if not override.is_discrete_sweep():
        raise UserError(
            f"{text}: has no end; a grid takes lists, range(start,stop,step), choice(...) and glob(...), an interval"
            " needs hydra/sweeper=optuna"
        )
    values = [str(value) for value in override.sweep_string_iterator()]
    if not values:
        raise UserError(f"{text}: stands for no value at all, so there is nothing to run")
    return values


def written(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    return "[" + ",".join(written(item) for item in value) + "]"
