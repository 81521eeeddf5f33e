"""Hydra's loader, which also knows what our constructors take.

Between Hydra's merge of the files and the command line it takes over what an evaluation leaves to its run (`inherit`),
adds every key with its default (`fill`) and looks at the names on the command line; what a single run or a job of a
multirun then composes is checked as a whole. So `hydra.main`, its launchers and sweepers, and `compose` refuse the same
mistakes in the same line.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from ima.config.choices import choices_of, default_choices, default_groups, measured
from ima.config.fill import fill
from ima.config.finished import ROOT_TARGETS, finished
from ima.config.folders import is_ours, keep_quiet, sweep_folder
from ima.config.hydra_private import CachingConfigRepository, ConfigLoaderImpl
from ima.config.inherit import inherit, repeat, stand_alone
from ima.config.instantiation import flags_of
from ima.config.overrides import check_allowed, check_choice, parse, refuse_own, refuse_several, targets_given
from ima.config.own_data import own_choices
from ima.config.remembered import FileRepository, merged
from ima.config.values import CHOICES_ONLY, at, check_key, unknown
from ima.core.distributed import place_of
from ima.core.errors import UserError
from ima.core.files import check_utf8
from ima.core.moved_names import current_names
from ima.core.signatures import signature
from ima.core.trust import CONF
from ima.runs.folders import refuse_run
from ima.runs.identity import STACKED, config_hash

MIRRORS = ("wandb", "offline")  # choices of the logger that are told of rows; a run has one
OPTUNA = "hydra_plugins.hydra_optuna_sweeper"


class Loader(ConfigLoaderImpl):
    """root: train or evaluate. conf: our own folder of the search path. trained: the config of the run that is
    evaluated, where that run has still to be made. looks: only to be shown, so that no folder is asked whose it is."""

    def __init__(
        self,
        config_search_path: Any,
        root: str = "train",
        conf: Path = CONF,
        trained: Mapping[str, Any] | None = None,
        looks: bool = True,
    ) -> None:
        super().__init__(config_search_path)
        self.repository = FileRepository(config_search_path)
        self.root, self.conf, self.trained, self.looks = root, conf, trained, looks
        self.names = signature(ROOT_TARGETS[root])
        self.config_name: str | None = None
        self.run_mode: Any = None
        self.overrides: list[Override] = []
        self.sweep_dir: Path | None = None  # of the multirun, once it is composed
        self.inherited: dict[str, Any] = {}
        self.config: dict[str, Any] = {}  # what was composed last, for a single run
        self.repositories: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What travels to the process of a job."""
        return {**self.__dict__, "overrides": [], "config": {}, "repositories": {}}

    # -- what Hydra calls

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Hydra first asks for the mode alone (it validates nothing then): only the command line sets it, so that
        nothing has to be composed twice."""
        if config_name is not None and not validate_sweep_overrides:
            given = [text.partition("=")[2] for text in overrides if text.lstrip("+").startswith("hydra.mode=")]
            return OmegaConf.create({"hydra": {"mode": RunMode[given[-1]] if given else None}})
        return super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)

    def _load_configuration_impl(
        self, config_name: Any, overrides: Any, run_mode: Any, *args: Any, **kwargs: Any
    ) -> DictConfig:
        self.config_name, self.run_mode = config_name, run_mode
        try:
            cfg = super()._load_configuration_impl(config_name, overrides, run_mode, *args, **kwargs)
        except UnicodeDecodeError:  # which tells no file
            for source in self.get_sources():
                for path in Path(source.path).rglob("*.yaml") if source.scheme() == "file" else ():
                    check_utf8(path)
            raise
        if config_name is None:  # --hydra-help
            return cfg
        if any(override.is_delete() for override in self.overrides):
            with open_dict(cfg):
                fill(cfg, self.names)  # deleting a key means its default
        with open_dict(cfg.hydra):
            cfg.hydra.runtime.choices.update(self.inherited)
            if OPTUNA in str(cfg.hydra.sweeper.get("_target_")) and not self.gives("hydra.sweeper.max_failure_rate"):
                cfg.hydra.sweeper.max_failure_rate = 1.0  # one failed trial does not end the study
        if run_mode == RunMode.MULTIRUN:
            for override in self.overrides:
                refuse_own(override)
            self.sweep_dir = sweep_folder(cfg).absolute()
            refuse_run(self.sweep_dir)
            cfg.hydra.sweep.dir = str(self.sweep_dir)
        else:
            self.config = finished(cfg, self.root, self.conf)
            if not self.looks and OmegaConf.select(cfg, "hydra.mode") != RunMode.MULTIRUN:
                place_of(flags_of(self.config))  # ranks that contradict the config are refused before Hydra writes
                keep_quiet(cfg, self.config)
        return cfg

    def _compose_config_from_defaults_list(self, defaults: Any, repo: Any, *args: Any, **kwargs: Any) -> DictConfig:
        cfg = merged(defaults, repo, functools.partial(super()._compose_config_from_defaults_list, *args, **kwargs))
        if self.config_name is not None:
            if cfg.hydra.get("mode") is not None:
                raise UserError("hydra.mode: a file sets it; only the command line does, as --multirun")
            chosen = {str(default.config_path).rpartition("/")[0] for default in defaults} - {""}
            self.complete(cfg, chosen, [source.path for source in repo.get_sources() if source.scheme() == "file"])
        return cfg

    def _parse_overrides_and_create_caching_repo(
        self, config_name: Any, overrides: Any
    ) -> tuple[list[Override], CachingConfigRepository]:
        known = [*default_groups(self.root, self.conf), *self.names.parameters]
        parsed = [parse(text, known) for text in overrides]
        places = [str(each.input_line) for each in parsed if each.key_or_group == "hydra.searchpath"]
        _, repo = super()._parse_overrides_and_create_caching_repo(config_name, places)
        folders = [Path(source.path) for source in repo.get_sources() if source.scheme() == "file"]
        parsed += [parse(text, known) for text in own_choices(parsed, self.root, folders)]
        kept: list[Override] = []
        loggers = repo.get_group_options("logger") if repo.group_exists("logger") else []
        parsed = [one for each in parsed for one in self.with_loggers(each, known, loggers)]
        for override in [one for each in parsed for one in self.with_measures(each, known)]:
            name = override.key_or_group
            known_here = name in default_groups(self.root, self.conf)
            is_group = repo.group_exists(name) or (known_here and (self.conf / name).is_dir())
            if is_group and not override.is_sweep_override() and not isinstance(override.value(), dict):
                options = repo.get_group_options(name)
                if check_choice(override, options, self.root, self.conf, self.names) is None:
                    kept = [each for each in kept if each.key_or_group != name]
                    continue
            kept.append(override)
        if config_name is not None:
            self.overrides = kept
        return kept, repo

    def validate_sweep_overrides_legal(self, overrides: Any, run_mode: Any, from_shell: bool) -> None:  # type: ignore[override]
        if run_mode == RunMode.RUN:
            for override in overrides:
                refuse_several(override, self.root)
        super().validate_sweep_overrides_legal(overrides, run_mode, from_shell)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: Any) -> DictConfig:
        """The config of one job. Where the sweep lies is the same for all of them."""
        cfg = super().load_sweep_config(master_config, sweep_overrides)
        cfg.hydra.sweep.dir = master_config.hydra.sweep.dir
        if not is_ours(Path(str(cfg.hydra.sweep.dir)) / config_hash(self.config), self.config):
            keep_quiet(cfg, None)
        return cfg

    def get_group_options(self, group_name: str, *args: Any, **kwargs: Any) -> list[str]:
        """As Hydra does it, with one copy of the repository for all groups."""
        if args[1:] or kwargs.get("overrides") or kwargs.get("config_name"):
            return list(super().get_group_options(group_name, *args, **kwargs))
        if "" not in self.repositories:
            self.repositories[""] = CachingConfigRepository(self.repository)
        return list(self.repositories[""].get_group_options(group_name, *args, **kwargs))

    # -- ours

    def with_measures(self, override: Override, known: Sequence[str]) -> list[Override]:
        """`alignment=[full,maps]` as a choice and the groups of measures that are added to it."""
        if override.key_or_group != "alignment" or not isinstance(override.value(), list):
            return [override]
        value: Any = override.value()
        base, added = measured(value, choices_of("alignment", self.conf))
        return [parse(f"alignment={base}", known), parse(f"alignment.groups={json.dumps(added)}", known)]

    def with_loggers(self, override: Override, known: Sequence[str], choices: Sequence[str]) -> list[Override]:
        """`logger=[offline,csv]` as a choice and the loggers beside it. W&B's mirror is `logger` in any order."""
        several = override.value() if override.key_or_group == "logger" and override.package is None else None
        if self.root != "train" or not isinstance(several, list):
            return [override]
        check_allowed("logger", several, choices)
        first, *more = sorted(map(str, several), key=lambda name: name not in MIRRORS)
        if twice := [name for name in more if name in MIRRORS]:
            raise UserError(f"logger: {first} and {twice[0]} are the same mirror; choose one of them")
        return [parse(f"logger={first}", known), *(parse(f"+logger@loggers.{name}={name}", known) for name in more)]

    def gives(self, key: str) -> bool:
        return any(override.key_or_group == key for override in self.overrides)

    def complete(self, cfg: DictConfig, chosen: set[str], places: Sequence[str]) -> None:
        """The tree of the files made whole, and the command line's names looked at. chosen: groups of which a file is
        in the tree. places: folders of the search path."""
        values = [each for each in self.overrides if not each.is_sweep_override()]
        for name in default_groups(self.root, self.conf):
            if name in self.names.parameters and not cfg.get(name):
                # Hydra leaves out what a file without keys says, such as none.yaml
                cfg[name] = {} if name in STACKED else None
        for name in STACKED:  # entries of one's own may be added; what stands in them is checked with the rest
            if isinstance(cfg.get(name), DictConfig):
                OmegaConf.set_struct(cfg[name], False)
        self.check_roots(cfg)
        self.use_targets(cfg)
        extra = [place for place in map(Path, places) if place != self.conf and place.is_dir()]
        if self.root == "train":
            self.inherited = repeat(cfg, self.overrides, self.conf, extra)
        elif cfg.get("lmm"):
            loader = Loader(self.config_search_path, "train", self.conf)
            loader.load_configuration("train", [], RunMode.RUN)
            self.inherited = stand_alone(cfg, chosen, self.overrides, loader.config)
        else:
            several = self.run_mode == RunMode.MULTIRUN
            self.inherited = inherit(cfg, chosen, self.overrides, self.trained, self.conf, extra, several)
        fill(cfg, self.names)
        tree: Any = OmegaConf.to_container(cfg, resolve=False)
        tree.pop("hydra", None)
        choices = default_choices(self.root, self.conf) | self.inherited
        choices |= {each.key_or_group: each.value() for each in values if each.key_or_group in choices}
        for each in values:
            key = each.key_or_group
            is_group = each.package is not None or "/" in key or (key in choices and not isinstance(each.value(), dict))
            if is_group or key.split(".")[0] == "hydra":
                continue  # Hydra looks at these itself
            is_new = (each.is_add() or each.is_force_add()) and "." not in key and key not in self.names.parameters
            if is_new and self.is_extra(key, tree):
                continue
            kind = "~" if each.is_delete() else "++" if each.is_force_add() else "+" if each.is_add() else ""
            check_key(tree, key, self.names, choices, kind, each.value())
            if kind != "~" and isinstance(each.value(), dict):  # what follows may set something inside of it
                OmegaConf.update(made := OmegaConf.create(tree), key, each.value(), force_add=True)
                tree = OmegaConf.to_container(made, resolve=False)

    def check_roots(self, cfg: DictConfig) -> None:
        """No file adds a key of the root that is a misspelt one. One that others refer to may be there."""
        tree: Any = OmegaConf.to_container(cfg, resolve=False)
        tree.pop("hydra", None)
        for name in tree:
            if name in CHOICES_ONLY:
                raise UserError(
                    f"conf/{name}/: a chosen file of this group is a delta over all; begin it with the line"
                    " '# @package _global_'"
                )
            if name not in self.names.parameters and not self.is_extra(str(name), tree):
                raise UserError(unknown(str(name), str(name), "", self.names.parameters, tree))

    def is_extra(self, name: str, tree: Mapping[str, Any]) -> bool:
        """A key of a person's own: unlike all of ours, and something refers to it."""
        if difflib.get_close_matches(name, self.names.parameters, n=1, cutoff=0.75):
            return False
        given = " ".join(str(override.input_line) for override in self.overrides)
        return bool(re.search(r"\$\{" + re.escape(name) + r"[.\[}]", str(tree) + given))

    def use_targets(self, cfg: DictConfig) -> None:
        """A class that the command line names takes the place of the file's before its keys are known; what the other
        class was given by its file and this one does not take goes."""
        given = {override.key_or_group for override in self.overrides}
        for place, target in targets_given(self.overrides).items():
            node = OmegaConf.select(cfg, place)
            if not isinstance(node, DictConfig):
                continue
            target = str(current_names({"_target_": target})["_target_"])
            names = at(place, target)
            for key in [key for key in node if not str(key).startswith("_")]:
                if key not in names.parameters and not names.open and f"{place}.{key!s}" not in given:
                    del node[key]
            node["_target_"] = target
