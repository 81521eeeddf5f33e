"""The W&B dashboard is code that reads back, shows what runs log, needs no network; what is newest is uploaded."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from report_runs import make_run

from ima.cli.wandb_workspace import SCORES, TRACKS, main, offline_runs, sync, workspace
from ima.core.errors import UserError
from ima.core.types import Row
from ima.pipeline.loggers.wandb import scalar_name
from ima.runs.results import read_rows


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, in the environment or at home."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_ENTITY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_the_dashboard_is_written_without_a_key_and_reads_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    internal = pytest.importorskip("wandb_workspaces.workspaces.internal", reason="extra `dashboards` not installed")
    ws = pytest.importorskip("wandb_workspaces.workspaces")
    out = tmp_path / "dashboard.json"
    assert main(["push", "--project", "mine", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    again = ws.Workspace._from_model(internal.View.model_validate_json(out.read_text()))
    assert [section.name for section in again.sections] == [section.name for section in workspace("e", "p").sections]
    assert again.project == "mine"


def test_its_lines_are_what_a_run_logs(tmp_path: Path) -> None:
    pytest.importorskip("wandb_workspaces", reason="extra `dashboards` not installed")
    rows = read_rows(make_run(tmp_path / "run", layers=2, epochs=1, samples=0) / "rows.jsonl")
    logged = {scalar_name(Row(**row)) for row in rows} | {f"{track}/{score}" for track in TRACKS for score in SCORES}
    pooled = {"role_a": "P", "role_b": "T", "variant": "raw"}  # these two the synthetic run has not
    logged |= {scalar_name(Row("run", score, 0.5, **pooled)) for score in ("ima_matched", "ima_gap")}
    lines = [panel.y for section in workspace("e", "p").sections for panel in section.panels if hasattr(panel, "y")]
    drawn = {name for y in lines if isinstance(y, list) for name in y}
    assert len(drawn) > 6 and drawn <= logged


def test_of_a_run_that_was_resumed_the_newest_is_uploaded(tmp_path: Path) -> None:
    for name in ("a/wandb/offline-run-20260101_000000-x", "a/wandb/offline-run-20260102_000000-y",
                 "s/b/wandb/offline-run-20260101_000000-z"):  # fmt: skip
        (tmp_path / name).mkdir(parents=True)
    assert [path.name[-1] for path in offline_runs([tmp_path])] == ["y", "z"]


def test_nothing_is_uploaded_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_: pytest.fail("was run"))
    with pytest.raises(UserError, match="no offline runs"):
        sync([tmp_path])
    (tmp_path / "a/wandb/offline-run-20260101_000000-x").mkdir(parents=True)
    with pytest.raises(UserError, match="WANDB_API_KEY"):
        sync([tmp_path])


def test_with_a_key_wandb_is_given_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setattr(subprocess, "run", lambda command: seen.append(command) or subprocess.CompletedProcess([], 0))
    (tmp_path / "a/wandb/offline-run-20260101_000000-x").mkdir(parents=True)
    assert main(["sync", str(tmp_path)]) == 0
    assert seen[0][1:4] == ["-m", "wandb", "sync"] and json.dumps(seen[0][-1]).endswith('-x"')
