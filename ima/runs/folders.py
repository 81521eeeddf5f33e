"""Run folders: which folder a config goes to, whether it is finished, resumed or refused, and who may write there.

A folder belongs to the hash of its config. The same command again goes on where the last one stopped, or says that
it is finished; another config in the same folder is refused unless `overwrite=true`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ima.config.roots import config_hash
from ima.core.errors import UserError
from ima.core.files import remove_temporaries, write_json
from ima.runs.results import read_result


def run_name(config: Mapping[str, Any]) -> str:
    """`name`, or the experiment's, or train-<hash>."""
    if config.get("name"):
        return str(config["name"])
    experiment = (config.get("choices") or {}).get("experiment")
    return str(experiment) if experiment else f"train-{config_hash(config)}"


def finished(folder: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result of a finished run of this very config in `folder`, or None where there is work to do. Empties the
    folder where it is to be overwritten. Raises UserError where it holds another run."""
    if not (folder / "result.json").is_file():
        refuse_sweep(folder)
        return None
    if config.get("overwrite"):
        clear(folder)
        return None
    result = read_result(folder)
    if result.get("config_hash") != config_hash(config):
        raise UserError(
            f"{folder}: holds a run with another config; give another name=..., or overwrite=true to replace it"
        )
    if result["status"] == "ok":
        return result
    if config.get("resume") == "never":
        clear(folder)
    return None


def refuse_sweep(folder: Path) -> None:
    """A sweep keeps the folders of its jobs in its own: no run goes there. Raises UserError."""
    if (folder / "sweep.json").is_file():
        raise UserError(f"{folder}: holds a sweep, no run; give another name=...")


def refuse_run(folder: Path) -> None:
    """The other way round. Raises UserError where `folder` is that of a run."""
    if (folder / "result.json").is_file():
        raise UserError(f"{folder}: holds a run, no sweep; give the sweep another name=...")


def is_finished(folder: Path, config: Mapping[str, Any]) -> bool:
    """The same question without touching anything."""
    if not (folder / "result.json").is_file():
        return False
    result = read_result(folder)
    return result.get("config_hash") == config_hash(config) and result.get("status") == "ok"


def clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name == "lock":
            continue
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@contextmanager
def owned(folder: Path, hint: str = "") -> Iterator[None]:
    """Only one process writes into a run folder. Raises UserError where another one does; hint: what else to say."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"{folder}: another process is writing there; wait for it or give another name=...{hint}"
        ) from error
    try:
        for place in (folder, *(folder / name for name in ("checkpoints", "media", "figures")), *entries_in(folder)):
            remove_temporaries(place)  # of a process that was killed while it wrote a file
        yield
    finally:
        lock.release()


def entries_in(folder: Path) -> list[Path]:
    """Folders of a mixture's entries."""
    place = folder / "entries"
    return [] if place.is_symlink() or not place.is_dir() else list(place.iterdir())


@contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """A run that raises leaves `result.json` with status failed and its reason."""
    try:
        yield
    except BaseException as error:
        path = folder / "result.json"
        if path.is_file():
            status = "interrupted" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "failed"
            reason = " ".join((str(error) or type(error).__name__).split())
            write_json(
                path, read_result(folder) | {"status": status, "reason": f"{type(error).__name__}: {reason}"[:500]}
            )
        raise


def last_checkpoint(folder: Path) -> Path:
    return folder / "checkpoints" / "last.safetensors"
