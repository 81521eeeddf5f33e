"""What is installed with which extra: the core imports what the core brings, and a missing package names its extra."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
from rooms import imports_of, modules, room_of

import ima.__main__
from ima.cli import install
from ima.cli.scripts import run_script
from ima.config.instantiation import build
from ima.core.errors import UserError
from ima.core.extras import EXTRA_OF, missing_extra

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULE_OF = {"hydra-core": "hydra", "pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
# What comes with a package of the core: jinja2 with torch.
BROUGHT = {"jinja2"}
CORE_ROOMS = ("core", "runs", "config", "models", "alignment", "interventions", "tasks")


def module(requirement: str) -> str:
    name = re.split(r"[<>=\[]", requirement)[0]
    return MODULE_OF.get(name, name.replace("-", "_"))


CORE = {module(line) for line in PROJECT["dependencies"]} | BROUGHT


def test_every_import_is_of_the_core_or_names_its_extra() -> None:
    for name, path in modules().items():
        for source, _, _, line in imports_of(path):
            root = source.split(".")[0]
            known = root in {"ima", "__future__"} | set(sys.stdlib_module_names) | CORE | EXTRA_OF.keys()
            assert known, f"{name}:{line}: {root} is in no extra"


def test_the_core_rooms_import_at_their_top_what_the_core_brings() -> None:
    for name, path in modules().items():
        for source, _, inside, line in imports_of(path):
            if room_of(name) in CORE_ROOMS and not inside:
                assert source.split(".")[0] not in EXTRA_OF, f"{name}:{line}: {source}"


def test_the_table_is_what_pyproject_says() -> None:
    extras = PROJECT["optional-dependencies"]
    for name, extra in EXTRA_OF.items():
        assert name in {module(line) for line in extras[extra]}, name
    for extra in ("train", "report", "wandb", "media", "slurm", "dashboards", "svg"):
        assert {module(line) for line in extras[extra]} - {"ima"} <= EXTRA_OF.keys()


def test_a_set_up_installs_the_core_and_all_extras_but_the_opt_in_ones() -> None:
    found = set(install.requirements())
    named = {
        line for lines in PROJECT["optional-dependencies"].values() for line in lines if not line.startswith("ima[")
    }
    extras = PROJECT["optional-dependencies"]
    opt_in = {*extras["svg"], *extras["sweeps"], *extras["docs"]} - {*extras["slurm"]}
    assert found == set(PROJECT["dependencies"]) | named - opt_in


def test_a_missing_package_is_one_line_that_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.setitem(sys.modules, "av", None)

    def entry(config: object) -> int:
        import lightning.pytorch  # noqa: F401

        return 0

    assert run_script("train", ["experiment=smoke", f"output_dir={tmp_path}"], entry) == 2
    assert (
        capsys.readouterr().err == "error: the package lightning is not installed; pip install 'ima[train]' brings it\n"
    )
    (tmp_path / "needs_av.py").write_text("class Reader:\n    def __init__(self):\n        import av\n")
    (tmp_path / "needs_more.py").write_text("import av\nclass Reader: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("needs_av", "needs_more"):
        with pytest.raises(
            UserError, match=r"^data: the package av is not installed; pip install 'ima\[media\]' brings it$"
        ):
            build({"data": {"_target_": f"{name}.Reader"}}, "data")
    monkeypatch.setitem(ima.__main__.COMMANDS, "reader", ("needs_more", ""))
    assert ima.__main__.main(["reader"]) == 2
    assert "ima[media]" in capsys.readouterr().err


def test_a_module_that_no_extra_brings_stays_an_error_of_the_program() -> None:
    assert missing_extra(ModuleNotFoundError("no", name="mine.adapters")) == "" == missing_extra(ValueError())
