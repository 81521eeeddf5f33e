"""Which run a folder or file belongs to: `checkpoint=`, `init=` and `run=` are resolved here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ima.core.errors import UserError
from ima.runs.folders import last_checkpoint
from ima.runs.results import read_result


def run_folder(checkpoint: str) -> Path:
    """The run folder that a folder or a file inside it belongs to."""
    path = Path(checkpoint)
    if not path.exists():
        raise UserError(f"checkpoint: {checkpoint!r} does not exist; give a run folder (outputs/<run>) or a file in it")
    for folder in (path, *path.absolute().parents[:3]):
        if (folder / "result.json").is_file():
            return folder
    raise UserError(f"checkpoint: {checkpoint!r} is no run folder and in none: no result.json there")


def run_config(checkpoint: str) -> dict[str, Any]:
    """The config that a run was trained with."""
    folder = run_folder(checkpoint)
    config = read_result(folder).get("config")
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'result.json'}: holds no config; is it a training run's?")
    return config


def find_adapter(checkpoint: str) -> tuple[Path, Path]:
    """(run folder, adapter file) of what the user named: a run folder or one of its files."""
    run, path = run_folder(checkpoint), Path(checkpoint)
    if path.is_file():
        return run, path
    for candidate in (path / "adapter.safetensors", last_checkpoint(run)):
        if candidate.is_file():
            return run, candidate
    raise UserError(f"checkpoint: {checkpoint} has no adapter.safetensors and no checkpoint yet; train it first")
