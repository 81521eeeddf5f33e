"""What a run is called on W&B and where it goes, from the config, the environment and the command line. No wandb here.

The environment (WANDB_PROJECT, ...) wins over what files say, the command line over both. WANDB_MODE=offline and
disabled are never overridden by anything.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

# key of the logger -> the variable of W&B's documentation
VARIABLES = {
    "project": "WANDB_PROJECT", "entity": "WANDB_ENTITY", "group": "WANDB_RUN_GROUP", "job_type": "WANDB_JOB_TYPE",
    "tags": "WANDB_TAGS", "notes": "WANDB_NOTES", "name": "WANDB_NAME", "dir": "WANDB_DIR",
}  # fmt: skip
FINAL = {"offline": "offline", "dryrun": "offline", "disabled": "disabled"}
NOT_VARIED = ("name", "output_dir", "logger", "overwrite", "resume", "trust", "offline", "hydra")
NUM_PARTS = 2  # of a key in a name: skip_block.ratio


def chosen(given: Mapping[str, Any], typed: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """given: the keys of the logger as composed; typed: the overrides of the command line."""
    on_command_line = {text.partition("=")[0].lstrip("+") for text in typed}
    found = dict(given)
    for key, variable in VARIABLES.items():
        value = environment.get(variable)
        if value and f"logger.{key}" not in on_command_line:
            found[key] = [tag.strip() for tag in value.split(",") if tag.strip()] if key == "tags" else value
    mode = environment.get("WANDB_MODE", "").lower()
    if environment.get("WANDB_DISABLED", "").lower() in ("true", "1"):
        mode = "disabled"
    if mode in FINAL:
        found["mode"] = FINAL[mode]
    elif mode and not on_command_line & {"logger", "logger.mode"}:
        found["mode"] = "online"
    return found


def names(folder: Path, typed: Sequence[str], job_type: str) -> dict[str, str]:
    """`name`, what varies, and `group`, the sweep, of a run in `folder`."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        sweep = json.loads((folder.parent / "sweep.json").read_text(encoding="utf-8"))["config"]
        (varied,) = [job["varied"] for job in sweep["jobs"] if job["hash"] == folder.name]
        words = [word(str(key), str(value)) for key, value in varied.items()]
        return {"name": " ".join(words) or folder.name, "group": str(sweep["name"])}
    with contextlib.suppress(OSError, yaml.YAMLError, KeyError, TypeError):
        hydra = yaml.safe_load((folder.parent / "multirun.yaml").read_text(encoding="utf-8"))["hydra"]
        shared = set(hydra["overrides"]["task"])
        return {
            "name": told([text for text in typed if text not in shared]) or folder.name,
            "group": folder.parent.name,
        }
    if job_type != "evaluate" or not folder.name.startswith("evaluate-"):
        return {"name": folder.name}
    changed = told([text for text in typed if not text.lstrip("+").startswith("checkpoint=")])
    return {"name": f"{folder.parent.name}: {changed or 'evaluate'}"}


def told(overrides: Sequence[str]) -> str:
    pairs = [text.lstrip("+").partition("=") for text in overrides if "=" in text]
    return " ".join(word(key, value) for key, _, value in pairs if key.partition(".")[0] not in NOT_VARIED)


def word(key: str, value: str) -> str:
    """One thing that varies: skip_block.ratio=0.5; of a path its last part."""
    value = Path(value).name if "/" in value and "[" not in value else value
    return f"{'.'.join(key.split('.')[-NUM_PARTS:])}={value}"
