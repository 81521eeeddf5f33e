"""A command line and conf/ to one checked config, as `train.py` and `evaluate.py` get it; for everything that needs the
config of a run without running Hydra's main: the Python API, the doctor, the golden lists. Nothing that is composed
imports torch. It may be called inside a Hydra application.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ima.config import folders
from ima.config.choices import choices_of, default_groups
from ima.config.finished import ROOT_TARGETS
from ima.config.hydra_private import create_config_search_path, prepare
from ima.config.loader import Loader
from ima.config.overrides import PARSER
from ima.config.refusals import one_line
from ima.core.errors import UserError
from ima.core.trust import CONF

__all__ = ["CONF", "PARSER", "ROOT_TARGETS", "choices_of", "compose", "default_groups", "plain"]
REFUSED = (HydraException, OmegaConfBaseException, yaml.YAMLError, RecursionError)


def compose(
    argv: Sequence[str], root: str = "train", conf: Path = CONF, *, trained: Mapping[str, Any] | None = None
) -> DictConfig:
    """The resolved and validated config of a script. Raises UserError, one line, for any mistake of a person.

    trained: the config of the run that is evaluated, where that run has still to be made."""
    prepare()
    folders.register()
    loader = Loader(create_config_search_path(str(conf)), root, conf, trained)
    try:
        loader.load_configuration(root, list(argv), RunMode.RUN)
    except REFUSED as error:
        raise UserError(one_line(error)) from None
    except ValueError as error:  # what Hydra says of the first line of a file
        if type(error) is not ValueError:
            raise
        raise UserError(one_line(error)) from None
    return OmegaConf.create(loader.config)


def plain(config: DictConfig) -> dict[str, Any]:
    """A composed config as plain values."""
    found = OmegaConf.to_container(config)
    assert isinstance(found, dict)
    return {str(name): value for name, value in found.items()}
