"""The set-up: what it reads from uv, and that a half-made environment is noticed and a whole one left alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ima.cli import install

UV = """Resolved 129 packages in 1.77s
Downloading torch (506.0MiB)
 Downloaded torch
Prepared 30 packages in 1m 31s
Uninstalled 1 package in 347ms
Installed 129 packages in 832ms
 + torch==2.11.0
"""


def test_download_and_install_are_told_apart() -> None:
    download, install_seconds = install.uv_times(UV)
    assert download == pytest.approx(92.77)
    assert install_seconds == pytest.approx(1.179)


def test_every_pin_is_a_plain_version() -> None:
    lines = (install.ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert len(pins) > 50
    for pin in pins:
        name, equals, version = pin.partition("==")
        assert equals and name and version and not set(" @/;\\") & set(pin), pin


def test_every_requirement_is_pinned() -> None:
    import re

    pins = {line.partition("==")[0] for line in (install.ROOT / "constraints.txt").read_text().splitlines()}
    for requirement in install.requirements():
        match = re.match(r"[A-Za-z0-9._-]+", requirement)
        assert match is not None and match[0].lower() in pins, requirement


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A checkout in a folder of its own whose package step is replaced by a note."""
    calls: list[str] = []
    for name in install.INPUTS:
        (tmp_path / name).write_text(name)
    for name, value in {"ROOT": tmp_path, "VENV": tmp_path / ".venv"}.items():
        monkeypatch.setattr(install, name, value)
    monkeypatch.setattr(install, "STARTED", tmp_path / ".venv" / ".ima-started")
    monkeypatch.setattr(install, "RECORD", tmp_path / ".venv" / ".ima-setup.json")
    monkeypatch.setattr(install, "make_empty", lambda: make_empty(tmp_path / ".venv"))

    def packages() -> tuple[float, float]:
        install.make_venv()
        calls.append("packages")
        return 1.0, 2.0

    monkeypatch.setattr(install, "install_packages", packages)
    return calls


def make_empty(folder: Path) -> None:
    (folder / "bin").mkdir()
    (folder / "pyvenv.cfg").write_text("")
    (folder / "bin" / "python").symlink_to(sys.executable)


def test_a_set_up_checkout_is_left_alone(checkout: list[str]) -> None:
    install.setup(only_packages=True)
    (install.VENV / "mine").touch()
    install.setup(only_packages=True)
    assert checkout == ["packages"]
    assert (install.VENV / "mine").exists()


def test_where_nothing_is_to_do_nothing_is_written(checkout: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a lock: the targets work in a checkout that cannot be written to."""
    assert install.main(["--only-packages"]) == 0
    lock = install.ROOT / ".ima-setup.lock"
    lock.unlink()
    before = {path: path.stat().st_mtime_ns for path in install.ROOT.rglob("*")}
    assert install.main(["--only-packages"]) == 0
    assert {path: path.stat().st_mtime_ns for path in install.ROOT.rglob("*")} == before
    (install.ROOT / "constraints.txt").write_text("other pins")
    assert install.main(["--only-packages"]) == 0
    assert lock.exists() and checkout == ["packages", "packages"]


def test_changed_pins_are_installed_into_the_same_environment(checkout: list[str]) -> None:
    install.setup(only_packages=True)
    (install.VENV / "mine").touch()
    (install.ROOT / "constraints.txt").write_text("other pins")
    install.setup(only_packages=True)
    assert checkout == ["packages", "packages"]
    assert (install.VENV / "mine").exists()


@pytest.mark.parametrize("damage", ["interrupted", "no config", "no python"])
def test_a_half_made_environment_is_made_again(checkout: list[str], damage: str) -> None:
    install.setup(only_packages=True)
    (install.VENV / "leftover").touch()
    if damage == "interrupted":
        install.STARTED.touch()
    elif damage == "no config":
        (install.VENV / "pyvenv.cfg").unlink()
        install.RECORD.unlink()
    else:
        (install.VENV / "bin" / "python").unlink()
    install.setup(only_packages=True)
    assert checkout == ["packages", "packages"]
    assert not (install.VENV / "leftover").exists()
    assert not install.STARTED.exists()


def test_a_failing_step_says_so_in_its_last_line_and_leaves_the_mark(
    checkout: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def packages() -> tuple[float, float]:
        install.make_venv()
        install.run([sys.executable, "-c", "print('dns error: no such host'); raise SystemExit(3)"], "uv pip install")
        raise AssertionError

    monkeypatch.setattr(install, "install_packages", packages)
    assert install.main(["--only-packages"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "uv pip install failed (exit code 3)" in last and "network" in last
    assert install.STARTED.exists() and not install.RECORD.exists()


def test_make_alone_lists_the_targets() -> None:
    done = subprocess.run(["make", "--no-print-directory"], cwd=install.ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    for target in ("help", "setup", "demo", "test", "check", "train", "evaluate", "sweep", "bench", "report", "clean"):
        assert f"make {target} " in done.stdout
