"""Run folders: which folder a config goes to, whether it is finished, resumed or refused, and who may write there.

A folder belongs to the hash of its config. The same command again goes on where the last one stopped, or says that
it is finished; another config in the same folder is refused unless `overwrite=true`, which removes what the run wrote
and nothing else.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ima.core.errors import UserError
from ima.core.files import make_folder, remove_temporaries
from ima.runs.identity import IDENTITY, config_hash
from ima.runs.record import RESULT, UNKNOWN, RunRecord, read_record

# What a run writes into its folder, at the top and in folders of its own; everything else there is somebody else's.
OWN = {
    "result.json", "rows.jsonl", "predictions.jsonl", "samples.jsonl", "tasks.csv", "report.html", "comparison.json",
    "alignment.safetensors", "alignment.json", "examples.jsonl",
    "adapter.safetensors", "adapter.json", "adapter.llm.safetensors",
}  # fmt: skip
FIGURE = re.compile(r"[^/]+\.(svg|png|csv)")  # where all three are there
NUM_FILES_OF_A_FIGURE = 3
OWN_BELOW = {
    "checkpoints": re.compile(r"(last|epoch-\d+)(\.llm)?\.(safetensors|json)"),
    "media": re.compile(r"[^/]+-\d\d\.(png|mp3|wav|webm)"),
    "entries": re.compile(r"[^/]+/(alignment\.(safetensors|json)|examples\.jsonl)"),
    "figures": FIGURE,
    "wandb": re.compile(
        r"(offline-)?run-[^/]+/.+|latest-run|debug[\w-]*\.log|mirror\.(json|log|lock)|data/.+", re.DOTALL
    ),
}
OF_HYDRA = (".hydra", "train.log", "evaluate.log")  # Hydra writes these anew before the run begins
OF_SWEEPS = ("sweep.json", "multirun.yaml")
BUSY = "another process is writing there"
MAX_NAMED = 6


def run_name(config: Mapping[str, Any]) -> str:
    """`name`, or the experiment's, or train-<hash>."""
    if config.get("name"):
        return str(config["name"])
    experiment = (config.get("choices") or {}).get("experiment")
    return str(experiment) if experiment else f"train-{config_hash(config)}"


def load_finished_or_clear(folder: Path, config: Mapping[str, Any]) -> RunRecord | None:
    """The record of a finished run of this very config in `folder`, or None where there is work to do. Removes what
    the run wrote where it is to be overwritten. Raises UserError where the folder holds another run."""
    record = find_own(folder, config)
    if not (folder / RESULT).is_file():
        if config.get("overwrite") and folder.is_dir():
            for stage in [path for path in folder.iterdir() if is_plain_folder(path) and is_stage(path)]:
                clear(stage)  # the run was killed before its last stage began
        return None
    if config.get("overwrite"):
        clear(folder)
        return None
    if record is not None and record.is_ok:
        return record
    if config.get("resume") == "never":
        clear(folder)
    return None


def find_own(folder: Path, config: Mapping[str, Any]) -> RunRecord | None:
    """The record of a run of this very config in `folder`; None where there is none or it is to be overwritten.
    Raises UserError where the folder holds something else, or a run that cannot go on. Touches nothing."""
    if (folder / RESULT).is_dir():
        raise UserError(f"{folder / RESULT}: is a folder; remove it or give another name=...")
    if not (folder / RESULT).is_file():
        refuse_sweep(folder)
        return None
    if config.get("overwrite"):
        return None
    record = read_record(folder)
    if not record.is_of(config):
        raise UserError(
            f"{folder}: holds a run with another config; give another name=..., or overwrite=true to replace it"
        )
    if record.status == UNKNOWN:
        raise UserError(
            f"{folder / RESULT}: has no status; give another name=..., or overwrite=true to replace the run"
        )
    if not record.is_ok and config.get("resume") != "never" and record.identity != IDENTITY:
        raise UserError(
            f"{folder}: holds an unfinished run of an earlier version of ima, which cannot be resumed; give another "
            "name=..., or overwrite=true to start it anew"
        )
    return record


def is_held(folder: Path) -> bool:
    """Whether a process is writing into the run folder now."""
    lock = folder / "lock"
    if not lock.exists():
        return False
    probe = FileLock(lock)
    try:
        probe.acquire(timeout=0)
    except Timeout:
        return True
    probe.release()
    return False


def refuse_held(folder: Path) -> None:
    """Raises UserError where another process is writing into the folder."""
    if is_held(folder):
        raise UserError(f"{folder}: {BUSY}; wait for it or give another name=...")


def refuse_sweep(folder: Path) -> None:
    """A sweep keeps the folders of its jobs in its own: no run goes there. Raises UserError."""
    if any((folder / name).is_file() for name in OF_SWEEPS):
        raise UserError(f"{folder}: holds a sweep, no run; give another name=...")


def refuse_run(folder: Path) -> None:
    """The other way round. Raises UserError where `folder` is that of a run."""
    if (folder / "result.json").is_file():
        raise UserError(f"{folder}: holds a run, no sweep; give the sweep another name=...")


def is_finished(folder: Path, config: Mapping[str, Any]) -> bool:
    """The same question without touching anything."""
    if not (folder / "result.json").is_file():
        return False
    record = read_record(folder)
    return record.is_of(config) and record.is_ok


def clear(folder: Path) -> None:
    """Remove what a run wrote into its folder, its stages below it too, and say in one line what else there is."""
    if left := remove_own(folder):
        more = f" and {len(left) - MAX_NAMED} more" if len(left) > MAX_NAMED else ""
        print(f"{folder}: written anew; what the run did not write stays: {', '.join(left[:MAX_NAMED])}{more}")


def remove_own(folder: Path) -> list[str]:
    """Remove what a run wrote; names of the rest. result.json goes last: until then the folder says whose it is. A link
    goes where it has the name of something of ours, and is never followed."""
    left = []
    for path in sorted(folder.iterdir(), key=lambda path: (path.name == "result.json", path.name)):
        if path.name in ("lock", *OF_HYDRA):
            continue
        if is_plain_folder(path) and is_stage(path):
            left += [f"{path.name}/{name}" for name in remove_own(path)]
            if {inner.name for inner in path.iterdir()} <= {"lock", *OF_HYDRA}:
                shutil.rmtree(path)
        elif is_plain_folder(path) and path.name in OWN_BELOW and not is_run(path):
            left += [f"{path.name}/{name}" for name in remove_below(path, OWN_BELOW[path.name])]
        elif not is_plain_folder(path) and (path.name in OWN or (path.is_symlink() and path.name in OWN_BELOW)):
            path.unlink()
        else:
            left.append(path.name)
    return left


def remove_below(place: Path, own: re.Pattern[str]) -> list[str]:
    """The same of a folder that a run keeps inside its own; `own` matches its files by their path in `place`."""
    files, left = [], []
    for folder, children, names in os.walk(place):
        for child in [child for child in children if is_plain_folder(at := Path(folder, child)) and is_run(at)]:
            left.append(Path(folder, child).relative_to(place).as_posix())
            children.remove(child)
        links = [child for child in children if Path(folder, child).is_symlink()]
        files += [Path(folder, name).relative_to(place).as_posix() for name in [*names, *links]]
    stems = Counter(name.rpartition(".")[0] for name in files)
    for name in files:
        whole = own is not FIGURE or stems[name.rpartition(".")[0]] == NUM_FILES_OF_A_FIGURE
        if own.fullmatch(name) and whole:
            (place / name).unlink()
        else:
            left.append(name)
    for folder, _, _ in os.walk(place, topdown=False):
        with suppress(OSError):  # not empty
            Path(folder).rmdir()
    return sorted(left)


def is_plain_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("result.json", "sweep.json"))


def is_stage(folder: Path) -> bool:
    """Whether `folder` holds an earlier stage of the run whose folder it lies in (`ima.pipeline.stages.stage_configs`):
    its stages end with its name, and it bears the name of that run. Another run could lie there too, with a name of its
    own."""
    with suppress(UserError, TypeError, AttributeError, ValueError):
        config, above = read_record(folder).config, folder.parent
        if list(config.get("stage") or {})[-1:] != [folder.name]:
            return False
        name = config.get("name")
        with suppress(UserError):
            if name == read_record(above).config.get("name"):
                return True
        parts = Path(str(name or "")).parts
        return above.absolute().parts[len(above.absolute().parts) - len(parts) :] == parts
    return False


@contextmanager
def run_lock(folder: Path, hint: str = "") -> Iterator[None]:
    """Only one process writes into a run folder. Raises UserError where another one does; hint: what else to say."""
    make_folder(folder, "set output_dir or name to a folder that can be written")
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{folder}: {BUSY}; wait for it or give another name=...{hint}") from error
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


def last_checkpoint(folder: Path) -> Path:
    return folder / "checkpoints" / "last.safetensors"
