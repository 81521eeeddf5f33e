"""Which run a folder or file belongs to: `checkpoint=`, `init=` and `run=` are resolved here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ima.core.errors import UserError
from ima.core.trust import check_foreign
from ima.runs.folders import last_checkpoint
from ima.runs.hub import is_hub, local
from ima.runs.identity import config_hash
from ima.runs.record import read_record

# What a finished run brings along when it is evaluated; what evaluate.yaml or the command line chooses replaces it.
INHERITED = (
    "encoder", "adapter", "llm", "task", "data", "mixture", "stage", "intervention", "alignment", "loader",
    "trainer", "evaluation", "seed",
)  # fmt: skip
# What a run's model, samples and questions are made of, apart from what acted on it and what was measured.
PARTS = tuple(name for name in INHERITED if name not in ("intervention", "alignment"))


def run_folder(checkpoint: str, key: str = "checkpoint") -> Path:
    """The run folder that a folder or a file inside it belongs to. key: what names it, for messages."""
    path = Path(local(checkpoint, key))
    if not path.exists():
        raise UserError(
            f"{key}: {checkpoint!r} does not exist; give a run folder (outputs/<run>) or a file in it, or hub:user/name"
        )
    for folder in (path, *path.absolute().parents[:3]):
        if (folder / "result.json").is_file():
            return folder
    raise UserError(f"{key}: {checkpoint!r} is no run folder and in none: no result.json there")


def run_config(checkpoint: str, keys: Collection[str] = INHERITED) -> dict[str, Any]:
    """Those keys of the config that a run was trained with, and its choices. Somebody else may have written it: raises
    UserError where it names what nobody here named."""
    folder = run_folder(checkpoint)
    config = read_record(folder).config
    if not config:
        raise UserError(f"{folder / 'result.json'}: holds no config; is it a training run's?")
    kept = {name: config[name] for name in keys if name in config}
    check_foreign(kept, folder / "result.json")
    choices = config.get("choices")
    return kept | {"choices": choices if isinstance(choices, dict) else {}}


def find_adapter(checkpoint: str, key: str = "checkpoint") -> tuple[Path, Path]:
    """(run folder, adapter file) of what the user named: a run folder or one of its files."""
    run, path = run_folder(checkpoint, key), Path(local(checkpoint, key))
    if path.is_file():
        return run, path
    for candidate in (path / "adapter.safetensors", last_checkpoint(run)):
        if candidate.is_file():
            return run, candidate
    raise UserError(f"{key}: {checkpoint} has no adapter.safetensors and no checkpoint yet; train it first")


def evaluation_folder(config: Mapping[str, Any]) -> Path:
    """Where an evaluation goes: `name`, or below its run, or for a whole model a folder of its own."""
    if config.get("name"):
        return Path(config["output_dir"]) / config["name"]
    if config.get("lmm"):
        stem = Path(str(config["lmm"].get("path") or "lmm")).name
        return Path(config["output_dir"]) / f"{stem}-{config_hash(config)}"
    if is_hub(config["checkpoint"]):  # its folder is the hub's cache
        stem = config["checkpoint"].rpartition("/")[2].replace("@", "-")
        return Path(config["output_dir"]) / f"{stem}-evaluate-{config_hash(config)}"
    return find_adapter(config["checkpoint"])[0] / f"evaluate-{config_hash(config)}"
