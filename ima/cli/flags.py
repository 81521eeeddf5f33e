"""Hydra's options on a command line, in any order among the overrides; what is no option of Hydra is one line."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from ima.config.hydra_private import Misused, argument_parser, options_of
from ima.config.synonyms import synonym
from ima.core.errors import UserError, nearest

SHOWN = ("job", "hydra", "all")  # what --cfg takes
RERUN = "--experimental-rerun"


@dataclass(frozen=True)
class Flags:
    """given: what argparse made of them. ordered: the same command line with the options first."""

    given: argparse.Namespace
    ordered: list[str]

    def has(self, name: str) -> bool:
        return bool(getattr(self.given, name))

    @property
    def config_dirs(self) -> list[Path]:
        return [Path(self.given.config_dir)] if self.given.config_dir else []

    @property
    def is_run(self) -> bool:
        """Whether something is run, and not only shown."""
        given = self.given
        return not (given.cfg or given.info or given.hydra_help or given.shell_completion)


def read_flags(argv: list[str], conf: Path) -> Flags:
    """Raises UserError for what is no option of Hydra, and for options that are given wrongly."""
    parser = argument_parser()
    options = options_of(parser)
    arguments: list[str] = []
    for place, text in enumerate(argv):
        name, equals, _ = text.partition("=")
        follows = "".join(argv[place + 1 : place + 2])
        if text in ("--cfg", "-c") and follows not in ("", *SHOWN) and "=" not in follows and follows[0] not in "-~":
            raise UserError(f"{text}: {follows!r} cannot be shown; {nearest(follows, SHOWN)}")
        if text.startswith("-") and name not in options:
            refuse_option(text, name, sorted(options))
        arguments.append(text)
        if text in ("--cfg", "-c") and follows not in SHOWN:
            arguments.append("job")
    try:
        given = parser.parse_intermixed_args(arguments)
    except Misused as error:
        raise UserError(f"options: {error}; --help lists them") from None
    if given.experimental_rerun is not None:
        raise UserError(
            f"{RERUN}: a saved config would be unpickled, which runs code that it brings along; write"
            " rerun=outputs/<run> to repeat a run from its result.json"
        )
    if sum(map(bool, (given.run, given.cfg, given.multirun, given.shell_completion, given.info))) > 1:
        raise UserError("options: one of --run, --multirun, --cfg, --info and --shell-completion at a time")
    if given.resolve and not given.cfg:
        raise UserError("--resolve: goes with --cfg; write --cfg job --resolve")
    if given.package and not given.cfg:
        raise UserError("--package: goes with --cfg; write --cfg job --package trainer")
    if given.config_dir and not Path(given.config_dir).is_dir():
        raise UserError(
            f"--config-dir: {given.config_dir} is no folder; give the folder that holds encoder/ and the like"
        )
    if given.config_path and not given.config_path.startswith("pkg://"):
        given.config_path = str(Path(given.config_path).absolute())
        if not Path(given.config_path).is_dir():
            raise UserError(f"--config-path: {given.config_path} is no folder; give one that holds train.yaml")
    places = [Path(place) for place in (given.config_path or conf, given.config_dir) if place]
    names = [path.stem for place in places for path in place.glob("*.yaml")]
    if given.config_name and given.config_name not in names and all("://" not in str(place) for place in places):
        raise UserError(f"--config-name: no {given.config_name}.yaml; {nearest(given.config_name, names)}")
    asks = any(text.startswith("query=") for text in given.overrides)
    if given.shell_completion and asks and "COMP_LINE" not in os.environ:
        raise UserError("--shell-completion: query is what the shell asks, with COMP_LINE; install=bash installs it")
    return Flags(given, [*options_again(given), *given.overrides])


def options_again(given: argparse.Namespace) -> list[str]:
    """The options as words."""
    words = []
    for name, value in vars(given).items():
        option = f"--{name.replace('_', '-')}"
        if name == "overrides" or value in (None, False):
            continue
        words += [option] if value is True else [option, str(value)]
    return words


def refuse_option(text: str, name: str, options: list[str]) -> None:
    key = name.lstrip("-")
    if known := synonym(key.rpartition(".")[2]):
        raise UserError(f"{name}: no such option; {known}, written key=value without '--'")
    if "." in key or "=" in text:
        raise UserError(
            f"{name}: no such option; write {text.lstrip('-')} without '--' "
            "(in a W&B sweep ${args_no_hyphens} in place of ${args})"
        )
    raise UserError(f"{name}: no such option; {nearest(name, options)}")
