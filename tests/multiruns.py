"""Multiruns of tiny trainings and evaluations as a person starts them, in a folder with encoders of her own.

The page is not drawn, the tests of the report do that.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TINY = ["llm=tiny", "data=shapes", "data.num_train=20", "data.num_test=6", "data.size=32", "adapter=linear",
        "trainer.accelerator=cpu", "loader.batch_size=6", "task.max_new_tokens=4", "trainer.max_epochs=2",
        "callbacks.checkpoint.every_num_steps=3", "logger=none"]  # fmt: skip
SECONDS = 900.0  # after that something hangs


class Place:
    """A folder with encoders of one's own, and what is started in it."""

    def __init__(self, folder: Path, more: Mapping[str, str] | None = None) -> None:
        """more: of the environment of what is started."""
        self.folder, self.more = folder, dict(more or {})
        (folder / "own" / "encoder").mkdir(parents=True)
        for name, dim in (("a", 8), ("b", 9), ("c", 10)):
            text = f"# noise\n_target_: ima.models.encoders.controls.NoiseEncoder\ndim: {dim}\nnum_tokens: 4\n"
            (folder / "own" / "encoder" / f"{name}.yaml").write_text(text)
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(
            "import pathlib, sys, types\n"
            "page = types.ModuleType('ima.report.build')\n"
            "page.write_report = lambda folders, out=None: pathlib.Path('no page')\n"
            "sys.modules['ima.report.build'] = page\n"
        )

    def start(self, script: str, name: str, words: Sequence[str]) -> subprocess.Popen[str]:
        mine = ["-cd", str(self.folder / "own")] if script == "train" else []
        command = [sys.executable, str(ROOT / f"{script}.py"), *mine, *words]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "IMA_CACHE": str(self.folder / "cache")}
        environment |= {"IMA_TEST_PLACE": self.mark(name), "PYTHONPATH": str(self.folder / "site"), **self.more}
        log = open(self.folder / f"{name}.log", "a")  # noqa: SIM115 (the process keeps it)
        return subprocess.Popen(
            [*command, f"name={name}", f"output_dir={self.folder}"],
            cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True,
        )  # fmt: skip

    def mark(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def run(self, script: str, name: str, words: Sequence[str]) -> int:
        return self.start(script, name, words).wait(timeout=SECONDS)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def results(self, name: str) -> dict[str, dict[str, Any]]:
        """Folder of a job -> what its result.json says."""
        found = {}
        for path in (self.folder / name).glob("*/result.json"):
            if path.parent.name != "masks":  # a comparison of masks, no job
                found[path.parent.name] = json.loads(path.read_text())
        return found

    def num_ok(self, name: str) -> int:
        return sum(each["status"] == "ok" for each in self.results(name).values())

    def table(self, name: str) -> list[dict[str, str]]:
        with open(self.folder / name / "table.csv", newline="") as file:
            return list(csv.DictReader(file))

    def kill_all(self, name: str) -> None:
        """kill -9 of the command and of everything that it has started."""
        mark = f"IMA_TEST_PLACE={self.mark(name)}".encode()
        for _ in range(3):  # what was being started while the list was made
            for path in Path("/proc").glob("[0-9]*/environ"):
                try:
                    if mark in path.read_bytes().split(b"\0"):
                        os.kill(int(path.parent.name), signal.SIGKILL)
                except (OSError, ProcessLookupError):
                    continue

    def killed_and_given_again(self, script: str, name: str, words: list[str], num_before: int) -> tuple[int, int]:
        """(how many jobs were done when it was killed, exit code of the second time)."""
        first = self.start(script, name, words)
        until = time.monotonic() + SECONDS
        while self.num_ok(name) < num_before:
            assert first.poll() is None and time.monotonic() < until, self.log(name)
            time.sleep(0.01)
        self.kill_all(name)
        assert first.wait(timeout=60) == -signal.SIGKILL
        return self.num_ok(name), self.run(script, name, words)


def numbers(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Job -> metrics, without how long things took."""
    timed = ("seconds", "time", "per_second", "memory")
    return {
        job: {name: value for name, value in each["metrics"].items() if not any(word in name for word in timed)}
        for job, each in results.items()
    }
