"""Names of what has moved: files that hold old names are read, old import statements work with one line of warning."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ima.__main__
from ima.config.compose import compose
from ima.core import moved_imports, moved_names
from ima.core import signatures as schema
from ima.core.files import write_json
from ima.core.moved_names import MOVED, current_name, current_names
from ima.core.signatures import signature
from ima.runs.find import run_config

TABLE = {
    "ima.old_adapters": "ima.models.adapters.linear",  # a module
    "ima.old_llm": "ima.models.llm",  # a package
    "ima.old_interventions": "ima.interventions.skip.plan",
    "ima.kinds.Site": "ima.core.types.Site",  # names of one module that went to two
    "ima.kinds.UserError": "ima.core.errors.UserError",
    "ima.runs.results.Sample": "ima.core.types.Sample",  # one name of a module that stays
    "ima.types.roles": "ima.types.roles.plain",  # a module that has become a package of that name
    "ima.old_command": "ima.cli.install",
}


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The table in force while a test runs, as if these were the names of before."""
    monkeypatch.setattr(moved_names, "MOVED", TABLE)
    schema.signature.cache_clear()
    finder = moved_imports.install(TABLE)
    yield TABLE
    sys.meta_path.remove(finder)
    schema.signature.cache_clear()
    for name in [name for name in sys.modules if name.startswith(("ima.old_", "ima.kinds"))]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ima.old_adapters.PoolAdapter", "ima.models.adapters.linear.PoolAdapter"),
        ("ima.old_adapters", "ima.models.adapters.linear"),
        ("ima.old_adapters_video.VideoAdapter", "ima.old_adapters_video.VideoAdapter"),
        ("ima.old_llm.load.tiny", "ima.models.llm.load.tiny"),
        ("ima.kinds.Site", "ima.core.types.Site"),
        ("ima.kinds.Role", "ima.kinds.Role"),
        ("ima.types.roles.plain", "ima.types.roles.plain"),
        ("ima.types.roles.Role", "ima.types.roles.plain.Role"),
        ("mine.adapters.Own", "mine.adapters.Own"),
    ],
)
def test_the_longest_key_decides_and_a_current_name_stays(old: str, new: str) -> None:
    assert current_name(old, TABLE) == new
    assert current_name(new, TABLE) == new


def test_every_target_of_a_config_is_brought_up_to_date_and_nothing_else() -> None:
    node = {"_target_": "ima.old_llm.load.tiny", "path": "ima.old_llm", "inner": [{"_target_": "ima.kinds.Site"}]}
    wanted = {
        "_target_": "ima.models.llm.load.tiny",
        "path": "ima.old_llm",
        "inner": [{"_target_": "ima.core.types.Site"}],
    }
    assert current_names(node, TABLE) == wanted
    assert node["_target_"] == "ima.old_llm.load.tiny"


def test_old_targets_on_the_command_line_are_composed(moved: dict[str, str], tmp_path: Path) -> None:
    config = compose(["llm._target_=ima.old_llm.load.tiny", "llm.family=opt", "llm.dtype=float32"])
    assert config.llm._target_ == "ima.models.llm.load.tiny"
    whole = compose(["intervention={own: {_target_: ima.old_interventions.Skip}}"])
    assert whole.intervention.own._target_ == "ima.interventions.skip.plan.Skip"


def test_a_mask_says_with_current_names_how_its_llm_is_loaded(moved: dict[str, str], tmp_path: Path) -> None:
    from ima.interventions.prune.mask import Mask

    mask = Mask.of({"a": np.ones((2, 8), dtype=bool)}, {"llm_node": {"_target_": "ima.old_llm.load.tiny"}})
    mask.save(tmp_path / "mask.safetensors")
    assert Mask.load(tmp_path / "mask.safetensors").facts["llm_node"]["_target_"] == "ima.models.llm.load.tiny"


def test_the_config_of_an_old_run_has_the_current_names(moved: dict[str, str], tmp_path: Path) -> None:
    write_json(tmp_path / "result.json", {"config": {"llm": {"_target_": "ima.old_llm.load.tiny"}}})
    assert run_config(str(tmp_path))["llm"]["_target_"] == "ima.models.llm.load.tiny"
    assert "old_llm" in (tmp_path / "result.json").read_text()  # what was written is left alone


def test_a_signature_is_found_under_its_old_name_and_through_old_imports(
    moved: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(signature("ima.old_llm.load.tiny").parameters)[:2] == ["family", "width"]
    (tmp_path / "own_part.py").write_text("from ima.old_adapters import PoolAdapter\nclass Own(PoolAdapter): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "grid" in signature("own_part.Own").parameters


@pytest.mark.parametrize("name", ["old_adapters", "old_llm.load", "old_llm"])
def test_an_old_module_is_imported_with_one_line_of_warning(moved: dict[str, str], name: str) -> None:
    parent = f"ima.{name}".rpartition(".")[0]
    with pytest.warns(FutureWarning) as told:
        old = importlib.import_module(f"ima.{name}")
    new = importlib.import_module(current_name(f"ima.{name}", TABLE))
    assert f"ima.{name} has moved; import from {new.__name__}" in [str(each.message) for each in told]
    assert len(told) == (1 if parent == "ima" else 2)
    assert {each for each in dir(new) if not each.startswith("__")} <= set(dir(old))
    public = [each for each in vars(new) if not each.startswith("__")]
    assert public and all(getattr(old, each) is getattr(new, each) for each in public)
    assert new.__spec__ is not None and new.__spec__.name == new.__name__


def test_names_of_a_module_that_was_split_come_from_where_they_are(moved: dict[str, str]) -> None:
    with pytest.warns(FutureWarning, match="import from ima.core.errors.UserError and ima.core.types.Site"):
        kinds = importlib.import_module("ima.kinds")
    from ima.core.errors import UserError
    from ima.core.types import Site

    assert kinds.Site is Site and kinds.UserError is UserError
    with pytest.raises(AttributeError, match="'ima.kinds' has no attribute 'Nothing'"):
        _ = kinds.Nothing


def test_a_module_that_stays_gives_what_has_left_it() -> None:
    look_up = moved_imports.moved_attribute("ima.runs.results", TABLE)
    from ima.core.types import Sample

    assert look_up("Sample") is Sample
    with pytest.raises(AttributeError):
        look_up("Nothing")


def test_a_module_that_never_was_is_still_not_found(moved: dict[str, str]) -> None:
    for name in ("ima.nothing", "ima.old_llm.nothing"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)


def test_an_old_module_is_a_command_too_and_its_warning_is_one_line() -> None:
    lines = ["import runpy, sys", "from ima.core import moved_imports", f"moved_imports.install({TABLE!r})"]
    lines += ["sys.argv[1:] = ['--help']", "runpy._run_module_as_main('ima.old_command')"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage: python3 -m ima.cli.install")
    first = [sys.executable, "-c", "\n".join([*lines[:3], "from ima.kinds import Site", "from ima.kinds import Site"])]
    told = subprocess.run(first, capture_output=True, text=True).stderr.splitlines()
    assert told == [
        "ima:0: FutureWarning: ima.kinds has moved; import from ima.core.errors.UserError and ima.core.types.Site"
    ]


def test_nothing_that_is_there_asks_the_finder_and_torch_stays_out() -> None:
    code = (
        "import ima, sys, json; print(json.dumps([type(f).__name__ for f in sys.meta_path] + ['torch' in sys.modules]))"
    )
    found = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
    assert found[-2:] == ["MovedFinder", False] and found.count("MovedFinder") == 1


@pytest.mark.parametrize("module", sorted(moved_names.COMMANDS))
def test_an_old_command_is_the_new_one_after_a_line(module: str) -> None:
    name = moved_names.COMMANDS[module]
    assert name in ima.__main__.COMMANDS
    old = module.removesuffix(".__main__")
    command = [sys.executable, "-W", "ignore", "-m", old, "--help"]
    if name != "compare":  # one of them as a process, the others by what `python -m` asks for
        assert f'main(["{name}"' in moved_imports.AS_COMMAND.format(name) and moved_imports.find(module) is not None
        return
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == f"this command is now: python -m ima {name}\n"


def test_the_table_leads_to_what_is_there() -> None:
    for old, new in MOVED.items():
        place, _, name = new.rpartition(".")
        assert moved_imports.find(new) is not None or hasattr(importlib.import_module(place), name), old
