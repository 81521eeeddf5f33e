"""Where this code lies and how it is called: a checkout with its scripts and conf/, or an installed package.

A checkout has `train.py` and `conf/` beside `ima/`; these are used there. The installed package brings its own copy of
`conf/` along (`ima/conf`, in a checkout a link that only building the package follows) and the command `ima`.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def is_checkout(root: Path = ROOT) -> bool:
    return (root / "train.py").is_file() and (root / "conf" / "train.yaml").is_file()


def conf_folder(root: Path = ROOT) -> Path:
    """The shipped config files."""
    return root / "conf" if is_checkout(root) else root / "ima" / "conf"


def process_of(script: str, root: Path = ROOT) -> list[str]:
    """What starts train, evaluate or sweep as a process of its own; overrides follow."""
    path = root / f"{script}.py"
    return [sys.executable, str(path)] if path.is_file() else [sys.executable, "-m", "ima", script]


def called_as(program: str | None = None) -> str:
    """How this process was called: `ima`, `python -m ima`, or "" for a script of the checkout and for everything else.
    program: `sys.argv[0]`."""
    path = Path(sys.argv[0] if program is None else program)
    if path.name == "__main__.py" and path.parent.name == "ima":
        return "python -m ima"
    if path.stem == "ima":
        return "ima"
    return "" if is_checkout() else "ima"


def command_of(script: str, program: str | None = None) -> str:
    """What a person types to run train, evaluate or sweep, in the way in which this process was called."""
    door = called_as(program)
    return f"{door} {script}" if door else f"python {script}.py"


def name_of(script: str) -> str:
    """The same for use in a sentence: train.py, or ima train."""
    command = command_of(script)
    return command.removeprefix("python ") if command.endswith(".py") else command


def arguments() -> list[str]:
    """What was typed after the command."""
    door = Path(sys.argv[0]).name == "__main__.py" or Path(sys.argv[0]).stem == "ima"
    return sys.argv[2:] if called_as() and door else sys.argv[1:]
