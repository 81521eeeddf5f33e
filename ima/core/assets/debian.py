"""The stamps and the sounds of scratch from their Debian packages, without root and without installing anything.

Downloads with apt-get (where it knows no packages, with private package lists in the cache), checks the sum and
unpacks only what StampWorld reads. The package is opened with the standard library, so that a copy from elsewhere
works on any system. Hides apt, ar, tar and the progress bars.
"""

from __future__ import annotations

import io
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from ima.core.assets.registry import Asset, locate_deb, own_folder, unpacked_folder, verify
from ima.core.cache import build_folder, cache_dir, locked
from ima.core.errors import UserError
from ima.core.files import temporary_beside

# base_desc_fr.ogg and its like are foreign speech; base_desc.ogg (English) stays
WANTED = {
    "stamps": re.compile(r"(?!.*_desc_\w+\.ogg$).*\.(png|svg|txt|dat|ogg)$", re.IGNORECASE),
    "scratch": re.compile(r".*\.(wav|mp3)$", re.IGNORECASE),
}
COUNT_INTERVAL = 0.2  # seconds between two looks at a growing file


def obtain_deb(asset: Asset, deb: Path | None = None) -> tuple[Path | None, str]:
    """(folder, "") or (None, why not). With `deb` that file is unpacked and its faults are a UserError."""
    if not (deb or unpacked_folder(asset).is_dir()) and os.environ.get(own_folder(asset)):
        return locate_deb(asset), ""
    try:
        return build_folder(unpacked_folder(asset), lambda folder: fill(asset, folder, deb)), ""
    except UserError as error:
        if deb:
            raise
        try:
            return locate_deb(asset), ""
        except UserError:
            return None, str(error)


def fill(asset: Asset, folder: Path, deb: Path | None) -> None:
    if deb:
        if not deb.is_file():
            raise UserError(f"{deb}: no such file")
        verify(asset, deb)
        unpack(deb, asset, folder)
        return
    with tempfile.TemporaryDirectory(prefix=".download.", dir=folder) as scratch:
        deb = download(asset, Path(scratch))
        verify(asset, deb)
        unpack(deb, asset, folder)


def download(asset: Asset, folder: Path) -> Path:
    """`apt-get download` into `folder`, first with the system's package lists, then with fresh private ones."""
    if shutil.which("apt-get") is None:
        raise UserError(f"no apt-get here to download {asset.package} with")
    quick = ["-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20", "-o", "APT::Sandbox::User=root", "-q"]
    command = ["apt-get", "download", f"{asset.package}={asset.version}", *quick]
    found, complaint = run_apt(command, asset, folder)
    if found is None:
        with locked("apt"), temporary_beside(cache_dir() / "apt") as private:
            lists, archives = private / "lists", private / "cache"
            for place in (lists / "partial", archives / "archives" / "partial"):
                place.mkdir(parents=True, exist_ok=True)
            places = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={archives}"]
            try:
                subprocess.run(["apt-get", "update", *quick, *places], capture_output=True, timeout=120, check=False)
                found, complaint = run_apt([*command, *places], asset, folder)
            except subprocess.TimeoutExpired:
                complaint = "apt-get update took longer than two minutes"
    if found is None:
        raise UserError(f"apt-get cannot download {asset.package} {asset.version}: {complaint}")
    return found


def run_apt(command: list[str], asset: Asset, folder: Path) -> tuple[Path | None, str]:
    """(the package or None, the last complaint of apt-get)."""
    with Progress("download", asset.num_bytes) as progress, tempfile.TemporaryFile() as output:
        # LC_ALL: messages in English, whatever the user's language, since one of them may be shown in our line.
        process = subprocess.Popen(
            command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "LC_ALL": "C"}
        )
        try:
            while process.poll() is None:
                time.sleep(COUNT_INTERVAL)
                progress.reach(sum(file.stat().st_size for file in folder.glob("*.deb*")))
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        lines = [line for line in output.read().decode(errors="replace").splitlines() if line.startswith("E:")]
    found = sorted(folder.glob("*.deb"))
    if process.returncode == 0 and found:
        return found[0], ""
    return None, lines[-1] if lines else f"exit code {process.returncode}"


def unpack(deb: Path, asset: Asset, folder: Path) -> int:
    """Copy the wanted files under `asset.file` of the package to `folder`; returns how many.

    Names come from the archive: anything but a plain file below it is left out, so none can leave `folder`.
    """
    num_files = 0
    prefix = asset.file.strip("/") + "/"
    try:
        with (
            open(deb, "rb") as file,
            Progress("unpack", deb.stat().st_size) as progress,
            data_member(file, deb) as data,
            tarfile.open(fileobj=data, mode="r|") as archive,
        ):
            for member in archive:
                name = member.name.removeprefix("./").removeprefix("/")
                path = name.removeprefix(prefix)
                if not member.isfile() or path == name or ".." in Path(path).parts or Path(path).is_absolute():
                    continue
                if not WANTED[asset.name].match(path):
                    continue
                source = archive.extractfile(member)
                assert source is not None
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(target, "wb") as out:
                    shutil.copyfileobj(source, out)
                num_files += 1
                progress.reach(file.tell())
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise UserError(f"{deb}: a damaged package ({error}); download it again") from error
    if num_files == 0:
        raise UserError(f"{deb}: nothing of use under {asset.file}; is it the right package?")
    return num_files


def data_member(file: IO[bytes], deb: Path) -> IO[bytes]:
    """A Debian package is an `ar` archive: an 8-byte magic, then members with 60-byte heads; data.tar.xz is ours."""
    if file.read(8) != b"!<arch>\n":
        raise UserError(f"{deb}: not a Debian package")
    while len(head := file.read(60)) == 60:
        name, size = head[:16].decode("ascii", errors="replace").rstrip(" /"), int(head[48:58])
        if name == "data.tar":
            return io.BytesIO(file.read(size))
        if name == "data.tar.xz":
            return lzma.open(file)  # reads on from here; nothing follows the data
        if name.startswith("data.tar"):
            raise UserError(f"{deb}: {name} is compressed in a way that we do not read; xz is")
        file.seek(size + size % 2, io.SEEK_CUR)
    raise UserError(f"{deb}: a damaged package (no data.tar inside); download it again")


class Progress:
    """A bar on a terminal, silent elsewhere; shown only for what lasts longer than two seconds."""

    def __init__(self, what: str, num_bytes: int) -> None:
        self.what, self.num_bytes = what, num_bytes
        self.bar: Any = None

    def __enter__(self) -> Progress:
        from tqdm import tqdm

        self.bar = tqdm(
            desc=self.what, total=self.num_bytes, unit="B", unit_scale=True, delay=2, leave=False,
            disable=not sys.stderr.isatty(),
        )  # fmt: skip
        return self

    def reach(self, num_bytes: int) -> None:
        self.bar.update(max(0, num_bytes - self.bar.n))

    def __exit__(self, *_: object) -> None:
        self.bar.close()
