"""Set-up of a checkout: a virtual environment, the pinned packages, the embedded models and pictures. `make setup`.

Runs on a bare Python (standard library only) and hides: one set-up at a time (a file lock), noticing a half-made
environment (a mark at the start, a record at the end) and remaking it, uv where it can be had and pip otherwise, and
times that tell download from install. A set-up that is up to date costs a few milliseconds.

    python3 -m ima.cli.install [--only-packages]        set up what is missing
    python3 -m ima.cli.install times --run-seconds S    print download | install | run
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
STARTED = VENV / ".ima-started"  # lies there while packages are being changed: the mark of a half-made environment
RECORD = VENV / ".ima-setup.json"
INPUTS = ("pyproject.toml", "constraints.txt", "requirements-nodeps.txt")
EXTRAS = ("all", "dev")
OLDEST = (3, 11)
HELD: list[int] = []  # the descriptor of the lock while a set-up works


class SetupError(RuntimeError):
    """What stopped the set-up and what to do, for a person."""


def fingerprint() -> str:
    """Of all that decides which packages are installed."""
    digest = hashlib.sha256()
    for name in INPUTS:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def requirements() -> list[str]:
    """Everything that pyproject.toml asks for, with the extras and those that these name (ima[train,media])."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found, pending = [], [*project["dependencies"], f"ima[{','.join(EXTRAS)}]"]
    for line in pending:
        if inner := re.fullmatch(r"ima\[(.+)\]", line):
            pending += [more for name in inner[1].split(",") for more in project["optional-dependencies"][name]]
        else:
            found.append(line)
    return list(dict.fromkeys(found))


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Wait for another set-up of this checkout; the lock goes with its process, however that ends."""
    lock = ROOT / ".ima-setup.lock"
    with lock.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("setup: waiting for another set-up of this checkout", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        HELD.append(handle.fileno())  # children inherit it: what outlives a killed set-up still holds the lock
        try:
            yield
        finally:
            HELD.clear()


def read_record() -> dict[str, Any]:
    try:
        record = json.loads(RECORD.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(record: dict[str, Any]) -> None:
    temporary = RECORD.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(temporary, RECORD)


def venv_python() -> Path:
    return VENV / "bin" / "python"


def run(command: list[str], what: str, echo: bool = True) -> str:
    """Run, print the output line by line as it comes, return it; raises SetupError with its last line."""
    lines: list[str] = []
    environment = {**os.environ, "VIRTUAL_ENV": str(VENV), "PYTHONUNBUFFERED": "1"}
    environment.pop("PYTHONPATH", None)
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=tuple(HELD),
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            if echo:
                print("  " + lines[-1], flush=True)
    if process.returncode:
        shown = "" if echo else "\n".join(lines[-15:]) + "\n"
        raise SetupError(f"{shown}setup: {what} failed (exit code {process.returncode}); {advice(lines)}")
    return "\n".join(lines)


def advice(lines: list[str]) -> str:
    text = "\n".join(lines).lower()
    if "no space left" in text:
        return "the disk is full: about 8 GB are needed for packages and embedded models"
    signs = ("resolve host", "dns error", "name resolution", "connection", "network", "timed out")
    if any(sign in text for sign in signs):
        return "the package index could not be reached: check the network or the proxy, then run the same again"
    return "see the lines above; running the same again continues where it can"


def seconds_in(text: str) -> float:
    """'1m 02s', '3.20s', '345ms' as uv prints durations."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)(ms|us|µs|ns|h|m|s)", text))


def uv_times(output: str) -> tuple[float, float]:
    """(download, install) seconds from uv's own lines; resolving and fetching count as download."""
    times = {"Resolved": 0.0, "Prepared": 0.0, "Installed": 0.0, "Uninstalled": 0.0}
    for verb, duration in re.findall(r"^(\w+) \d+ packages? in ([\d.a-zµ ]+)$", output, flags=re.MULTILINE):
        if verb in times:
            times[verb] += seconds_in(duration)
    return times["Resolved"] + times["Prepared"], times["Installed"] + times["Uninstalled"]


def make_venv() -> None:
    if sys.version_info < OLDEST:
        found = "{}.{}".format(*sys.version_info[:2])
        raise SetupError(f"setup: Python {found} found, 3.11 or newer needed: make setup PYTHON=/path/to/python3.11")
    if VENV.exists() and (STARTED.exists() or not (VENV / "pyvenv.cfg").exists() or not works()):
        if VENV.is_symlink():
            raise SetupError(f"setup: .venv is a link to {VENV.resolve()} and no working environment: remove the link")
        print("setup: .venv is half made, making it again", flush=True)
        shutil.rmtree(VENV)
    if not VENV.exists():
        print("setup: making .venv", flush=True)
        VENV.mkdir()
        STARTED.touch()
        make_empty()
    STARTED.touch()


def make_empty() -> None:
    run([sys.executable, "-m", "venv", str(VENV)], "python3 -m venv (Debian: apt install python3-venv)")


def works() -> bool:
    try:
        command = [str(venv_python()), "-c", ""]
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def find_uv() -> list[str] | None:
    """uv inside the environment, installed there if need be; None where it cannot be had."""
    uv = VENV / "bin" / "uv"
    if not uv.exists():
        with contextlib.suppress(SetupError):
            pin = next(line for line in (ROOT / "constraints.txt").read_text().split() if line.startswith("uv=="))
            run([str(venv_python()), "-m", "pip", "install", "-q", pin], "pip install uv", echo=False)
    if uv.exists() and subprocess.run([str(uv), "--version"], capture_output=True).returncode == 0:
        return [str(uv), "pip", "install", "--python", str(venv_python())]
    print("setup: uv cannot be had here, using pip (slower)", flush=True)
    return None


def install_packages() -> tuple[float, float]:
    """(download, install) seconds of everything in pyproject.toml, at the pinned versions."""
    start = time.monotonic()
    make_venv()
    uv = find_uv()
    prepared = time.monotonic() - start
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text("\n".join(requirements()) + "\n")
        constrained = ["-r", str(wanted), "-c", "constraints.txt"]
        nodeps = ["--no-deps", "-r", "requirements-nodeps.txt"]
        print("setup: installing packages (some GB the first time)", flush=True)
        if uv:
            first = uv_times(run([*uv, *constrained], "uv pip install"))
            second = uv_times(run([*uv, *nodeps], "uv pip install --no-deps"))
            download, install = first[0] + second[0], first[1] + second[1]
        else:
            pip = [str(venv_python()), "-m", "pip"]
            start = time.monotonic()
            for arguments in (constrained, nodeps):
                run([*pip, "wheel", "-q", "-w", folder, *arguments], "pip wheel")
            download = time.monotonic() - start
            start = time.monotonic()
            for arguments in (constrained, nodeps):
                run([*pip, "install", "-q", "--no-index", "--find-links", folder, *arguments], "pip install")
            install = time.monotonic() - start
    link_checkout()
    return download, prepared + install


def link_checkout() -> None:
    """Make `import ima` work from everywhere in the environment, without a build step."""
    command = [str(venv_python()), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    Path(packages, "ima-checkout.pth").write_text(f"{ROOT}\n")


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("IMA_CACHE") or Path(base) / "ima")


def has_packages(record: dict[str, Any]) -> bool:
    same = (record.get("fingerprint"), record.get("root")) == (fingerprint(), str(ROOT))
    return same and not STARTED.exists() and works()


def has_assets(record: dict[str, Any]) -> bool:
    return record.get("assets") == str(cache_folder()) and cache_folder().is_dir()


def setup(only_packages: bool) -> None:
    record = read_record()
    if not has_packages(record):
        RECORD.unlink(missing_ok=True)
        download, install = install_packages()
        record = {"fingerprint": fingerprint(), "root": str(ROOT)}
        record |= {"download_seconds": download, "install_seconds": install}
        write_record(record)
        STARTED.unlink()
    if only_packages or has_assets(record):
        return
    print("setup: fetching and converting the embedded models and pictures", flush=True)
    start = time.monotonic()
    output = run([str(venv_python()), "-m", "ima", "assets", "fetch"], "ima assets fetch")
    fetched = re.findall(r"^(?:stamps|scratch)\s+[\d.]+ MB\s+([\d.]+) s", output, flags=re.MULTILINE)
    download = sum(map(float, fetched))
    record["download_seconds"] += download
    record["install_seconds"] += time.monotonic() - start - download
    record["assets"] = str(cache_folder())
    write_record(record)


def times_line(record: dict[str, Any], run_seconds: float) -> str:
    """Download: packages and pictures. Install: unpacking them and converting the models."""
    download = float(record.get("download_seconds", 0.0))
    install = float(record.get("install_seconds", 0.0))
    return f"download {download:.0f} s | install {install:.0f} s | run {run_seconds:.0f} s"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m ima.cli.install", description="set up this checkout in .venv")
    parser.add_argument("command", nargs="?", choices=("setup", "times"), default="setup")
    parser.add_argument("--only-packages", action="store_true", help="leave the embedded models and pictures out")
    parser.add_argument("--run-seconds", type=float, default=0.0)
    options = parser.parse_args(argv)
    try:
        if options.command == "times":
            print(times_line(read_record(), options.run_seconds))
        elif not (has_packages(read_record()) and (options.only_packages or has_assets(read_record()))):
            with one_at_a_time():
                setup(options.only_packages)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("setup: interrupted; running the same again continues", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
