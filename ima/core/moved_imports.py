"""Import statements with the old names of modules that have moved: they go on working, with one line of warning.

A finder at the end of `sys.meta_path` is asked only for modules that nobody else finds, so that it costs nothing
otherwise. It gives a stand-in module that looks every name up where it lives today (the same classes, not copies).
`python -m <old name>` runs the new module. A module that still exists and has lost a name to another one writes
`__getattr__ = moved_attribute(__name__)`.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import CodeType, ModuleType
from typing import Any

from ima.core.moved_names import COMMANDS, MOVED, current_name

AS_COMMAND = """import sys
print("this command is now: python -m ima {0}", file=sys.stderr)
from ima.__main__ import main
sys.exit(main(["{0}", *sys.argv[1:]]))
"""


class MovedFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds old module names of the table `moved` (old dotted name -> new one) and loads their stand-ins."""

    def __init__(self, moved: Mapping[str, str]) -> None:
        self.moved = moved

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        new = current_name(fullname, self.moved)
        inside = [key[len(fullname) + 1 :] for key in self.moved if key.startswith(f"{fullname}.")]
        if fullname in COMMANDS and fullname.endswith(".__main__"):
            return importlib.machinery.ModuleSpec(fullname, self)
        if new != fullname:
            found = find(new)
            if found is None and not inside:
                return None
            is_package = found is not None and found.submodule_search_locations is not None
        elif not inside:
            return None
        else:
            is_package = False
        return importlib.machinery.ModuleSpec(
            fullname, self, is_package=is_package or any("." in rest for rest in inside)
        )

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        new = current_name(spec.name, self.moved)
        places = (
            {new} if new != spec.name else {value for key, value in self.moved.items() if is_inside(key, spec.name)}
        )
        text = f"{spec.name} has moved; import from {' and '.join(sorted(places))}"
        # "ima" in place of a file: the warning is one line, without a line of source code below it
        warnings.warn_explicit(text, FutureWarning, "ima", 0)
        return StandIn(spec.name, self.moved)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is to be executed: names are looked up when they are asked for."""

    def get_code(self, fullname: str) -> CodeType:
        """What `python -m` runs: the command that the module is today, else the new module."""
        if fullname in COMMANDS:
            return compile(AS_COMMAND.format(COMMANDS[fullname]), fullname, "exec")
        new = current_name(fullname, self.moved)
        return compile(f"import runpy; runpy.run_module({new!r}, run_name='__main__', alter_sys=True)", new, "exec")


class StandIn(ModuleType):
    """A module under its old name."""

    def __init__(self, name: str, moved: Mapping[str, str]) -> None:
        super().__init__(name, f"{name} has moved.")
        self.__dict__["_look_up"] = moved_attribute(name, moved)
        self.__dict__["_new"] = current_name(name, moved)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":
            raise AttributeError(name)
        return self.__dict__["_look_up"](name)

    def __dir__(self) -> list[str]:
        new = self.__dict__["_new"]
        return dir(importlib.import_module(new)) if new != self.__name__ else list(super().__dir__())


def moved_attribute(module: str, moved: Mapping[str, str] = MOVED) -> Callable[[str], Any]:
    """A `__getattr__` for `module`: names that have moved are looked up in their new place."""

    def look_up(name: str) -> Any:
        new = current_name(f"{module}.{name}", moved)
        place, _, attribute = new.rpartition(".")
        if new != f"{module}.{name}" and find(place) is not None:
            home = importlib.import_module(place)
            if hasattr(home, attribute):
                return getattr(home, attribute)
            if find(new) is not None:
                return importlib.import_module(new)
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return look_up


def is_inside(key: str, module: str) -> bool:
    """Whether a key of the table names something directly inside `module`."""
    return key.rpartition(".")[0] == module


def find(name: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None


def install(moved: Mapping[str, str] = MOVED) -> MovedFinder:
    """Puts a finder for the table last in line and returns it; the package's own table is put there once."""
    for there in sys.meta_path:
        if isinstance(there, MovedFinder) and there.moved is moved:
            return there
    finder = MovedFinder(moved)
    sys.meta_path.append(finder)
    return finder
