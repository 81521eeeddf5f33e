"""The W&B mirror of a run, as the training process sees it: a child process that reads the run's files.

The run's files are the truth. The child (`ima.pipeline.loggers.wandb_child`) follows `rows.jsonl` and tells W&B; this
process never calls W&B, so that no accident there can end, hang or slow the run. Whatever is lost on the way can be
sent again from the files (`python -m ima wandb sync`).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ima.core.commands import ROOT, arguments, called_as
from ima.pipeline.loggers.wandb_settings import chosen, names

BRIEF_SECONDS = 2.0  # for the child at the end of a run that failed or was interrupted
START = "import sys; sys.path.insert(0, {root!r}); from ima.pipeline.loggers.wandb_child import main; sys.exit(main())"
STATE = Path("wandb") / "mirror.json"  # of a run folder: what was sent as what
OPEN: dict[Path, WandbMirror] = {}  # by run folder: mirrors of this process that have not ended


class WandbMirror:
    """mode: offline, or online (falls back to offline with one line where W&B cannot be reached). name: what varies,
    where it is not given; group: the sweep. system_metrics: of this process (CPU, memory, GPU). artifacts: whether the
    adapter and the page are sent too (the rows always are); null: online only. alert: on a failed run. wait_seconds: at
    most so long the end of the run waits for W&B."""

    RANGES = {"wait_seconds": (0.0, None)}

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        mode: Literal["offline", "online"] = "offline",
        project: str = "ima",
        entity: str | None = None,
        group: str | None = None,
        job_type: str = "train",
        tags: Sequence[str] = (),
        notes: str | None = None,
        name: str | None = None,
        dir: str | None = None,
        system_metrics: bool = False,
        artifacts: bool | None = None,
        alert: bool = True,
        wait_seconds: float = 8.0,
    ) -> None:
        typed = (config.get("choices") or {}).get("overrides") or arguments()
        given = {
            "mode": mode, "project": project, "entity": entity, "group": group, "job_type": job_type,
            "tags": list(tags), "notes": notes, "name": name, "dir": dir, "system_metrics": system_metrics,
            "artifacts": artifacts, "alert": alert,
        }  # fmt: skip
        self.folder, self.wait_seconds = folder, wait_seconds
        self.told: dict[str, Any] = {}  # id, mode and url, as soon as the child knows them
        self.process: subprocess.Popen[str] | None = None
        self.ended, self.warned = threading.Event(), False
        found = chosen(given, typed, os.environ)
        if found["mode"] == "disabled":
            return
        found |= {key: value for key, value in names(folder, typed, job_type).items() if not found[key]}
        try:
            self.process = start(folder, found | {"program": sys.argv[0], "pid": os.getpid()})
        except OSError as error:
            self.warn(f"W&B cannot be started ({error.strerror or error})")
            return
        OPEN[folder] = self
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process is not None and self.process.stdout is not None
        for line in self.process.stdout:
            try:
                said = json.loads(line)
            except ValueError:
                continue  # something that a library printed
            if warning := said.pop("warning", None):
                self.warn(warning)
            if said.pop("done", False):
                self.ended.set()
            self.told |= said
        if self.process.wait() and not self.ended.is_set():
            self.warn(f"W&B's process ended early (exit code {self.process.returncode})")
        self.ended.set()

    def warn(self, reason: str) -> None:
        """One line a run at most."""
        if not self.warned:
            again = f"{called_as() or 'python -m ima'} wandb sync {self.folder}"
            print(
                f"warning: logger: {reason[:200]}; the run's files have everything, `{again}` sends them",
                file=sys.stderr,
            )
        self.warned = True

    def say(self, **words: Any) -> None:
        """To the child, which may be gone."""
        try:
            assert self.process is not None and self.process.stdin is not None
            self.process.stdin.write(json.dumps(words) + "\n")
            self.process.stdin.flush()
        except (OSError, ValueError):
            pass

    def finish(self, metrics: Mapping[str, float] | None = None, failed: bool = False, reason: str = "") -> None:
        """The run has ended. One that is well is waited for in `close`, when its page is drawn."""
        if self.process is None:
            return
        self.say(end="failed" if failed else "ok", reason=reason)
        if failed:
            self.close(BRIEF_SECONDS)

    def close(self, seconds: float | None = None) -> dict[str, Any]:
        """Wait for the child, not longer than that; what is not sent by then is sent by the child alone. Returns id,
        mode and url of the run on W&B."""
        brief, seconds = seconds is not None, self.wait_seconds if seconds is None else seconds
        OPEN.pop(self.folder, None)
        if self.process is None:
            return {}
        self.say(close=True)
        if not self.ended.wait(seconds) and not brief:
            self.warn(f"W&B is still sending after {seconds:.0f} s and goes on in the background")
        return dict(self.told)


def close(folder: Path) -> dict[str, Any]:
    """End the mirror of the run in `folder`, if it has one."""
    mirror = OPEN.get(folder)
    return mirror.close() if mirror is not None else {}


def start(folder: Path, asked: Mapping[str, Any]) -> subprocess.Popen[str]:
    """The child, told what it is asked for. Raises OSError."""
    place = folder / "wandb"
    place.mkdir(parents=True, exist_ok=True)
    environment = {
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_DATA_DIR": str((place / "data").absolute()),  # files on their way, else under the user's home
        "WANDB_CACHE_DIR": str((place / "data" / "cache").absolute()),
    } | os.environ  # fmt: skip
    environment["OMP_NUM_THREADS"] = "1"
    environment.pop("WANDB_MODE", None)  # decided already
    with open(place / "mirror.log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", START.format(root=str(ROOT))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            text=True,
            start_new_session=True,  # Ctrl-C is for the run, which tells the child
        )
    assert process.stdin is not None
    process.stdin.write(json.dumps({"folder": str(folder.absolute()), **asked}) + "\n")
    process.stdin.flush()
    return process


def replay(folder: Path, seconds: float, **asked: Any) -> dict[str, Any]:
    """Send a run that has ended, whole, from its files, if it is not there yet; what W&B calls it (id, mode, url), or
    {"warning": why not}."""
    with contextlib.suppress(OSError, ValueError):
        kept = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if kept["mode"] == "online" and kept["complete"]:
            return {key: kept[key] for key in ("id", "mode", "url")}
    asked = {"mode": "online", "project": "ima", "job_type": "train", **asked}
    asked |= {key: value for key, value in names(folder, (), asked["job_type"]).items() if not asked.get(key)}
    with start(folder, chosen(asked, (), os.environ) | {"mode": "online", "replay": True}) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps({"end": asked["end"], "close": True}) + "\n")
        process.stdin.flush()
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        told: dict[str, Any] = {}
        for line in process.stdout:
            try:
                told |= json.loads(line)
            except ValueError:
                continue
        timer.cancel()
    return told if told.get("done") or "warning" in told else {"warning": f"W&B did not answer for {seconds:.0f} s"}
