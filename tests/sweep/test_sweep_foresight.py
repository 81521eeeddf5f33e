"""A sweep says before it starts how long it takes, from runs like its jobs; of a short one it says nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ima.core.files import write_json
from ima.sweep.foresight import foretold
from ima.sweep.job import Job


def config(llm: str, epochs: int = 6) -> dict[str, Any]:
    return {"choices": {"llm": llm, "data": "shapes"}, "trainer": {"max_epochs": epochs}}


def ended(folder: Path, llm: str, seconds: float, size: int = 1_000_000, **more: Any) -> None:
    record = {"status": "ok", "config": config(llm), "wall_seconds": seconds} | more
    write_json(folder / "result.json", record)
    (folder / "adapter.safetensors").write_bytes(bytes(size))


def jobs(outputs: Path, *llms: str) -> list[Job]:
    return [
        Job([], f"{n}", {}, outputs / "sweep" / f"{n}", outputs / "log", config=config(llm))
        for n, llm in enumerate(llms)
    ]


def test_time_and_disk_are_those_of_runs_alike_shared_by_the_processes(tmp_path: Path) -> None:
    ended(tmp_path / "earlier", "large", 1000)
    ended(tmp_path / "other" / "deep", "small", 200, 2_000_000)
    ended(tmp_path / "failed", "large", 9999, status="failed")
    line = foretold(jobs(tmp_path, "large", "large", "small"), 2, tmp_path)
    assert line.startswith("3 jobs, 2 at a time: about 18:20 and 4 MB of disk")
    assert "about 36:40" in foretold(jobs(tmp_path, "large", "large", "small"), 1, tmp_path)


def test_a_job_of_which_nothing_is_known_counts_as_the_others_do(tmp_path: Path) -> None:
    ended(tmp_path / "earlier", "large", 1000)
    assert "2 jobs, 1 at a time: about 33:20" in foretold(jobs(tmp_path, "large", "new"), 1, tmp_path)
    assert foretold(jobs(tmp_path, "new", "new"), 1, tmp_path) == ""


@pytest.mark.parametrize("seconds", [10, 299])
def test_a_short_sweep_is_not_foretold(tmp_path: Path, seconds: float) -> None:
    ended(tmp_path / "earlier", "large", seconds)
    assert foretold(jobs(tmp_path, "large", "large"), 1, tmp_path) == ""
    assert foretold([], 1, tmp_path) == ""


def test_another_number_of_epochs_is_another_run(tmp_path: Path) -> None:
    ended(tmp_path / "earlier", "large", 1000)
    (job,) = jobs(tmp_path, "large")
    job.config = config("large", epochs=7)
    assert foretold([job], 1, tmp_path) == ""
