"""The record of a run, `result.json`: what it holds, how it is read and written. No torch.

It exists from the first second of a run (status running) and says at the end whether the run is ok, failed or
interrupted, and why. Everybody who reads it does so here: what another program or an older version wrote may lack any
key, and keys that are not known here are kept. `ima.pipeline.record` fills one while a run goes on.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ima.core.errors import UserError
from ima.core.files import write_json
from ima.core.moved_keys import current_config
from ima.core.provenance import provenance
from ima.runs.identity import IDENTITY, config_hash, identified

RESULT = "result.json"
UNKNOWN = "unknown"  # the status of a record that tells none
MAX_REASON = 500  # characters
OMITTED = ("reason", "config_hash", "identity")  # keys that are not written where they are None


@dataclasses.dataclass
class RunRecord:
    """What `result.json` holds. status: running, ok, failed or interrupted; reason: why it is one of the last two.

    config: as composed, with today's names of classes. metrics: None where a number was not finite. facts: what is
    known of the run that neither its config nor its metrics say. wall_seconds: None until the run has ended. more: keys
    that somebody else wrote.
    """

    status: str = UNKNOWN
    reason: str | None = None
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    command: str = ""
    seeds: dict[str, Any] = dataclasses.field(default_factory=dict)
    config_hash: str | None = None
    identity: int | None = None
    versions: dict[str, Any] = dataclasses.field(default_factory=dict)
    git: dict[str, Any] = dataclasses.field(default_factory=dict)
    machine: dict[str, Any] = dataclasses.field(default_factory=dict)
    metrics: dict[str, float | None] = dataclasses.field(default_factory=dict)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    wall_seconds: float | None = None
    more: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, result: Mapping[str, Any], source: Path | str) -> RunRecord:
        """From the content of the file `source`. Raises UserError for a value of another type than its key has."""
        known: dict[str, Any] = {}
        for key, (kinds, words) in KINDS.items():
            value = result.get(key)
            if value is None:
                continue
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise UserError(f"{source}: {key} is {type(value).__name__}, not {words}; was it written by ima?")
            known[key] = value
        known["metrics"] = {name: number(value) for name, value in known.get("metrics", {}).items()}
        return cls(**known, more={key: value for key, value in result.items() if key not in KINDS})

    def to_dict(self) -> dict[str, Any]:
        """The keys of the file, in its order."""
        values = {key: getattr(self, key) for key in KINDS}
        return {key: value for key, value in values.items() if value is not None or key not in OMITTED} | self.more

    def write(self, folder: Path) -> None:
        write_json(folder / RESULT, self.to_dict())

    @property
    def is_ok(self) -> bool:
        return self.status == "ok"

    def is_of(self, config: Mapping[str, Any]) -> bool:
        """Whether the run was made with this config. One with another rule of identity is recognised by its own."""
        if self.identity == IDENTITY:
            return self.config_hash == config_hash(config)
        return bool(self.config) and config_hash(self.config) == config_hash(config)


TABLE = (dict, "a table of keys and values")
NUMBER = ((int, float), "a number")
# Key of the file -> (types, words for them). The order is that of the file.
KINDS: dict[str, tuple[Any, str]] = {
    "status": (str, "text"), "reason": (str, "text"), "config": TABLE, "command": (str, "text"), "seeds": TABLE,
    "config_hash": (str, "text"), "identity": (int, "a whole number"), "versions": TABLE, "git": TABLE,
    "machine": TABLE, "metrics": TABLE, "facts": TABLE, "wall_seconds": NUMBER,
}  # fmt: skip


def number(value: Any) -> float | None:
    """None for what is no number or is NaN or infinite (Python's JSON reads these; we write none)."""
    is_one = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_one and math.isfinite(value) else None


def start_record(config: Mapping[str, Any], command: str, facts: Mapping[str, Any] | None = None) -> RunRecord:
    """The record of a run that begins now. facts: of its earlier part, where it is resumed."""
    return RunRecord(
        "running", None, dict(config), command, {"seed": config.get("seed")}, facts=dict(facts or {}),
        **identified(config), **provenance(),
    )  # fmt: skip


def reason_of(error: BaseException) -> str:
    """Why a run ended early, on one line."""
    text = " ".join((str(error) or type(error).__name__).split())
    return f"{type(error).__name__}: {text}"[:MAX_REASON]


def record_failure(record: RunRecord, folder: Path, error: BaseException) -> None:
    """Write that the run has ended early and why: interrupted by a person or the batch system, or failed."""
    record.status = "interrupted" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "failed"
    record.reason = reason_of(error)
    record.write(folder)


def read_record(folder: Path) -> RunRecord:
    """The record of the run in `folder`. Raises UserError where it is missing or broken."""
    return RunRecord.of(read_result(folder), folder / RESULT)


def read_result(folder: Path) -> dict[str, Any]:
    """The keys of `result.json` as they stand there, the config with the current names of what has moved. Raises
    UserError where the file is missing or holds no table."""
    path = folder / RESULT
    try:
        result = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found; is {folder} a run folder (outputs/<run>)?") from error
    except OSError as error:
        what = "is a folder" if path.is_dir() else f"cannot be read ({error.strerror})"
        raise UserError(f"{path}: {what}; is {folder} a run folder (outputs/<run>)?") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; was it written by ima?") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise UserError(f"{path}: not JSON that can be read; was it written by ima?") from error
    if not isinstance(result, dict):
        raise UserError(f"{path}: not a JSON object but {json.dumps(result)[:20]}; was it written by ima?")
    if isinstance(result.get("config"), dict):
        result["config"] = current_config(result["config"])
    return result
