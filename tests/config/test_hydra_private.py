"""The private names of Hydra that `ima.config.hydra_private` and `ima.config.loader` rest on: an update that changes
one of them fails here, by name."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from hydra._internal import hydra as application
from hydra._internal import utils
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import OmegaConf

from ima.config import hydra_private
from ima.config.loader import Loader

ROOT = Path(__file__).resolve().parents[2]
# Method of Hydra's loader -> its parameters, as far as they are used here.
METHODS = {
    "load_configuration": ["config_name", "overrides", "run_mode", "from_shell", "validate_sweep_overrides"],
    "_load_configuration_impl": ["config_name", "overrides", "run_mode"],
    "_compose_config_from_defaults_list": ["defaults", "repo"],
    "_parse_overrides_and_create_caching_repo": ["config_name", "overrides"],
    "validate_sweep_overrides_legal": ["overrides", "run_mode", "from_shell"],
    "load_sweep_config": ["master_config", "sweep_overrides"],
    "get_group_options": ["group_name"],
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_is_overridden_is_there_with_its_parameters(name: str) -> None:
    assert name in vars(Loader)
    given = [each for each in inspect.signature(getattr(ConfigLoaderImpl, name)).parameters if each != "self"]
    assert given[: len(METHODS[name])] == METHODS[name]


def test_what_is_replaced_is_what_hydra_looks_up() -> None:
    assert "ConfigLoaderImpl" in inspect.getsource(application.Hydra.create_main_hydra2)
    assert hasattr(utils, "run_and_report") and hasattr(application, "run_and_report")


def test_marks_of_values_live_through_copies_and_new_values() -> None:
    import copy
    import pickle

    config = OmegaConf.create({"a": 1, "b": 2})
    hydra_private.mark(config, "a")
    for other in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        other.a = 3
        assert hydra_private.is_marked(other, "a") and not hydra_private.is_marked(other, "b")


def test_private_modules_of_hydra_are_imported_in_one_file_only() -> None:
    users = [path for path in (ROOT / "ima").rglob("*.py") if re.search(r"hydra\._internal", path.read_text())]
    assert [path.relative_to(ROOT).as_posix() for path in users] == ["ima/config/hydra_private.py"]
