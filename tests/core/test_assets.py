"""Assets: found without import, checked once, fetched whole or not at all, also by two processes or after a kill."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ima.cli.assets import main as assets_main
from ima.core.assets import registry as assets
from ima.core.assets.debian import obtain_deb
from ima.core.assets.registry import ASSETS, Asset, locate, verify
from ima.core.cache import build_folder, cache_dir
from ima.core.errors import UserError

INSIDE = "usr/share/tuxpaint/stamps"
FILES = {
    "animals/cat.png": b"picture",
    "animals/cat.txt": b"A cat.",
    "animals/cat.dat": b"colorable",
    "animals/cat.ogg": b"meow",
    "animals/cat_desc.ogg": b"spoken",
    "animals/cat_desc_fr.ogg": b"parle",
    "animals/cat_desc_pt_BR.wav": b"fala",
    "food/pear.SVG": b"<svg/>",
}
KEPT = {name for name in FILES if "_desc_" not in name}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("IMA_STAMPS", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def deb(tmp_path: Path) -> Path:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not installed")
    root = tmp_path / "root"
    for name, content in FILES.items():
        path = root / INSIDE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / INSIDE / "animals/link.png").symlink_to("/etc/passwd")
    (root / "usr/share/doc").mkdir(parents=True)
    (root / "usr/share/doc/notes.txt").write_text("not a stamp")
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN/control").write_text(
        "Package: fake\nVersion: 1\nArchitecture: all\nMaintainer: a\nDescription: b\n"
    )
    command = ["dpkg-deb", "-Zxz", "--root-owner-group", "--build", str(root), str(tmp_path / "fake_1_all.deb")]
    subprocess.run(command, check=True, capture_output=True)
    return tmp_path / "fake_1_all.deb"


def stamps_of(deb: Path) -> Asset:
    sha256 = hashlib.sha256(deb.read_bytes()).hexdigest()
    return dataclasses.replace(ASSETS["stamps"], package="fake", version="1", sha256=sha256, file=INSIDE)


def fake_apt(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `apt-get` on the PATH that writes down how it was called, then runs `body`."""
    folder.mkdir()
    log = folder / "calls"
    (folder / "apt-get").write_text(f'#!/bin/sh\necho "$@" >> {log}\n{body}\n')
    (folder / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return log


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_package_is_unpacked_to_what_is_read_and_nothing_else(deb: Path, own_cache: Path) -> None:
    folder, reason = obtain_deb(stamps_of(deb), deb)
    assert (folder, reason) == (own_cache / "stamps-1", "")
    assert tree(folder) == {name: FILES[name] for name in KEPT}


def test_of_scratch_only_the_sounds_are_unpacked(deb: Path, own_cache: Path, tmp_path: Path) -> None:
    for name in ("Animal/Dog1.wav", "Animal/Cat.mp3", "Animal/Notes.txt", "Animal/thumbs.db"):
        path = tmp_path / "root/usr/share/scratch/Media/Sounds" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    other = tmp_path / "scratch_1_all.deb"
    subprocess.run(["dpkg-deb", "-Zxz", "--build", str(tmp_path / "root"), str(other)], check=True, capture_output=True)
    asset = dataclasses.replace(ASSETS["scratch"], version="1", sha256=hashlib.sha256(other.read_bytes()).hexdigest())
    folder, reason = obtain_deb(asset, other)
    assert (folder, reason) == (own_cache / "scratch-1", "")
    assert sorted(tree(folder)) == ["Animal/Cat.mp3", "Animal/Dog1.wav"]


def test_fetching_again_touches_nothing(deb: Path, own_cache: Path) -> None:
    asset = stamps_of(deb)
    first, _ = obtain_deb(asset, deb)
    assert first is not None
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    deb.unlink()
    assert obtain_deb(asset) == (first, "")
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before


def test_apt_is_asked_with_private_lists_where_it_knows_no_package(
    deb: Path, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = (
        f'case "$*" in *State::Lists*) [ $1 = update ] || cp {deb} .;; *) echo "E: Unable to locate"; exit 100;; esac'
    )
    log = fake_apt(tmp_path / "bin", body, monkeypatch)
    folder, reason = obtain_deb(stamps_of(deb))
    assert reason == "" and folder is not None and set(tree(folder)) == KEPT
    calls = log.read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["download", "update", "download"]
    assert calls[0].split()[1] == "fake=1"
    assert not (own_cache / "apt").exists()


def test_without_network_one_line_names_the_stand_in_and_the_exit_code_is_0(
    deb: Path, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_apt(tmp_path / "bin", 'echo "E: Could not resolve"; exit 100', monkeypatch)
    asset = dataclasses.replace(stamps_of(deb), file="no/such/place")
    monkeypatch.setattr(assets, "ASSETS", {"stamps": asset, "smollm2": ASSETS["smollm2"]})
    monkeypatch.setattr(assets, "locate", lambda name: deb)
    assets.converted_folder(ASSETS["smollm2"]).mkdir(parents=True)
    monkeypatch.setattr("ima.cli.assets.ASSETS", assets.ASSETS)
    monkeypatch.setattr("ima.cli.assets.locate", assets.locate)
    assert assets_main(["fetch"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stamps")]
    assert len(lines) == 1
    assert "StampWorld is not available" in lines[0] and "E: Could not resolve" in lines[0] and "shapes" in lines[0]
    assert not list(own_cache.glob(".stamps*"))


def test_another_package_than_the_pinned_one_is_refused(deb: Path, own_cache: Path) -> None:
    asset = dataclasses.replace(stamps_of(deb), sha256="0" * 64)
    with pytest.raises(UserError, match="sha256"):
        obtain_deb(asset, deb)
    assert not list(own_cache.glob("*stamps*"))


@pytest.mark.parametrize("keep", [4, 100, 400])
def test_a_damaged_package_is_refused(deb: Path, own_cache: Path, keep: int) -> None:
    deb.write_bytes(deb.read_bytes()[:keep])
    with pytest.raises(UserError, match="package"):
        obtain_deb(stamps_of(deb), deb)
    assert not list(own_cache.glob("*stamps*"))


def run_python(code: str, cache: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "IMA_CACHE": str(cache), "PYTHONPATH": str(Path(assets.__file__).parents[3])}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)


BUILD = """
import os, signal, sys, time
from pathlib import Path
from ima.core.cache import build_folder, cache_dir
def build(folder):
    (folder / "a").write_text("1")
    {middle}
    (folder / "b").write_text("2")
    print("built")
build_folder(cache_dir() / "thing-1", build)
"""


def test_a_kill_in_the_middle_leaves_nothing_that_counts(own_cache: Path) -> None:
    killed = run_python(BUILD.format(middle="os.kill(os.getpid(), signal.SIGKILL)"), own_cache)
    killed.communicate()
    assert killed.returncode == -9
    assert not (own_cache / "thing-1").exists() and list(own_cache.glob(".thing-1.*"))
    done, _ = run_python(BUILD.format(middle="pass"), own_cache).communicate()
    assert done == "built\n"
    assert set(tree(own_cache / "thing-1")) == {"a", "b"}
    assert not list(own_cache.glob(".thing-1.*"))


def test_two_processes_at_once_build_once(own_cache: Path) -> None:
    processes = [run_python(BUILD.format(middle="time.sleep(0.5)"), own_cache) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert sorted(outputs) == ["", "built\n"]
    assert [process.returncode for process in processes] == [0, 0]


def test_a_failed_build_is_tried_again(own_cache: Path) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        build_folder(own_cache / "thing-1", full)
    assert not list(own_cache.glob("*thing*"))
    build_folder(own_cache / "thing-1", lambda folder: (folder / "a").write_text("1"))
    assert set(tree(own_cache / "thing-1")) == {"a"}


def fake_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> Asset:
    """A package whose import fails: locating must not import it."""
    (tmp_path / "site/fake_model").mkdir(parents=True)
    (tmp_path / "site/fake_model/__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "site/fake_model/weights.bin").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path / "site")
    asset = dataclasses.replace(
        ASSETS["lite0"],
        name="fake",
        module="fake_model",
        file="weights.bin",
        sha256=hashlib.sha256(b"good").hexdigest(),
    )
    monkeypatch.setitem(ASSETS, "fake", asset)
    return asset


def test_a_wheel_is_located_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_wheel(tmp_path, monkeypatch, b"good")
    assert locate("fake") == tmp_path / "site/fake_model/weights.bin"
    assert "fake_model" not in sys.modules


def test_a_file_with_another_sum_is_refused_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asset = fake_wheel(tmp_path, monkeypatch, b"evil")
    with pytest.raises(UserError, match="sha256") as caught:
        locate("fake")
    assert asset.package in str(caught.value) and "pip install" in str(caught.value)


def test_a_good_sum_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asset = fake_wheel(tmp_path, monkeypatch, b"good")
    path = locate("fake")
    with monkeypatch.context() as patch:
        patch.setattr(assets, "sha256_of", lambda path: pytest.fail("summed again"))
        verify(asset, path)
    path.write_bytes(b"evil, and later")
    with pytest.raises(UserError, match="sha256"):
        verify(asset, path)


def test_a_missing_package_or_file_says_make_setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asset = fake_wheel(tmp_path, monkeypatch, b"good")
    (tmp_path / "site/fake_model/weights.bin").unlink()
    with pytest.raises(UserError, match="make setup"):
        locate("fake")
    monkeypatch.setitem(ASSETS, "fake", dataclasses.replace(asset, module="no_such_package_here"))
    with pytest.raises(UserError, match="make setup"):
        locate("fake")
    with pytest.raises(UserError, match="did you mean smollm2"):
        locate("smolm2")


def test_stamps_come_from_the_variable_the_cache_or_the_system(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = tmp_path / "system"
    monkeypatch.setitem(ASSETS, "stamps", dataclasses.replace(ASSETS["stamps"], file=str(system), version="1"))
    with pytest.raises(UserError, match="make setup"):
        locate("stamps")
    system.mkdir()
    assert locate("stamps") == system
    (own_cache / "stamps-1").mkdir(parents=True)
    assert locate("stamps") == own_cache / "stamps-1"
    monkeypatch.setenv("IMA_STAMPS", str(tmp_path))
    assert locate("stamps") == tmp_path
    monkeypatch.setenv("IMA_STAMPS", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="IMA_STAMPS"):
        locate("stamps")


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("IMA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "ima"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir() == tmp_path / "home" / ".cache" / "ima"


def test_listing_says_what_is_missing_and_imports_no_torch(own_cache: Path) -> None:
    code = "import sys; from ima.cli.assets import main; main(['list']); print('torch' in sys.modules)"
    output, _ = run_python(code, own_cache).communicate()
    lines = output.splitlines()
    assert lines[-1] == "False"
    assert [line.split()[0] for line in lines[1:-1]] == list(ASSETS)
