"""An environment of its own for the tests of other people's launchers and sweepers: `.venv-plugins`.

`python tests/plugin_packages.py` makes it and prints its Python: the packages of the extra `sweeps`, over all that is
in the environment that runs this. They are kept apart because Hydra shows every plugin that it finds, and because
Optuna's needs older packages than the rest. It is made again where what decides about it has changed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv-plugins"
RECORD = VENV / "made-of"  # written at the end: a half-made environment has none


def wanted() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return list(project["optional-dependencies"]["sweeps"])


def fingerprint() -> str:
    below = os.path.realpath(sysconfig.get_path("purelib"))
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return hashlib.sha256("\n".join([below, sys.version, pins, *wanted()]).encode()).hexdigest()


def make() -> Path:
    """Its Python. Raises CalledProcessError, the reason on the terminal, where something cannot be installed."""
    python = VENV / "bin" / "python"
    if RECORD.is_file() and RECORD.read_text() == fingerprint():
        return python
    shutil.rmtree(VENV, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    find = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = subprocess.run(find, capture_output=True, text=True, check=True).stdout.strip()
    Path(own, "below.pth").write_text(os.path.realpath(sysconfig.get_path("purelib")) + "\n")
    install = [str(python), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), *wanted()]
    subprocess.run(install, check=True, stdout=sys.stderr)
    RECORD.write_text(fingerprint())
    return python


if __name__ == "__main__":
    try:
        print(make())
    except subprocess.CalledProcessError as error:
        sys.exit(f"no environment for the tests of plugins: {' '.join(map(str, error.cmd[:5]))} ... failed")
