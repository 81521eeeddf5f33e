"""The user's cache folder, and folders in it that are made once, whole or not at all.

Hides locks, temporary names and what a killed process leaves. Light: converted models, unpacked data and feature
stores all go through here.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ima.core.errors import UserError
from ima.core.files import remove_temporaries, temporary_beside

LONGEST = 200  # characters that we add at most


def cache_dir() -> Path:
    """Where converted models and unpacked data go: $IMA_CACHE, else ima/ in the user's cache folder. Raises UserError
    for a name that the system does not take."""
    if own := os.environ.get("IMA_CACHE"):
        folder = Path(own).expanduser().absolute()
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ima"
    try:
        os.lstat(folder / ("x" * LONGEST))
    except (OSError, ValueError) as error:
        if getattr(error, "errno", errno.EINVAL) in (errno.ENAMETOOLONG, errno.EINVAL):
            said = os.strerror(errno.ENAMETOOLONG) if isinstance(error, OSError) else str(error)
            raise UserError(f"IMA_CACHE={str(folder)[:80]!r}…: no name of a folder ({said}); set another") from error
    return folder


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """One process at a time; freed by the system when the process dies. A second one waits."""
    from filelock import FileLock

    path = cache_dir() / "locks" / f"{name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; set IMA_CACHE to a folder that can be written") from error
    try:
        yield
    finally:
        lock.release()


def build_folder(target: Path, build: Callable[[Path], None]) -> Path:
    """Make the folder `target` once: `build(temporary folder)`, then one rename. Safe against kills and against
    other processes; whatever a killed one left is swept away. An existing folder is taken as it is."""
    if target.is_dir():
        return target
    with locked(target.name):
        if target.is_dir():
            return target
        remove_temporaries(target.parent, target.name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary_beside(target) as temporary:
                build(temporary)
                temporary.chmod(0o755)
                temporary.rename(target)
        except OSError as error:
            raise UserError(
                f"{target}: {error.strerror or error}; free some space or set IMA_CACHE to another folder"
            ) from error
    return target


def size_of(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
