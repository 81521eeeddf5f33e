"""The W&B dashboard is code that reads back, shows what runs log and nothing else, and needs no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_runs import make_mixture, make_run

from ima.cli import wandb_workspace
from ima.cli.wandb_panels import LEFT, drawn, logged, panels, usual
from ima.cli.wandb_workspace import main, runs_below, sync, workspace
from ima.core.errors import UserError
from ima.core.files import write_json
from ima.runs.record import read_record

needs_workspaces = pytest.importorskip("wandb_workspaces.workspaces", reason="extra `dashboards` not installed")


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, in the environment or at home."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_ENTITY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_the_dashboard_is_written_without_a_key_and_reads_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.workspaces import internal

    out = tmp_path / "dashboard.json"
    assert main(["push", "--project", "mine", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    again = ws.Workspace._from_model(internal.View.model_validate_json(out.read_text()))
    assert [section.name for section in again.sections] == [
        section.name for section in workspace("e", "p", usual()).sections
    ]
    assert again.project == "mine"


AXES = {"epoch", "trainer/global_step"}


def skipped(folder: Path, **interventions: Any) -> Path:
    """An evaluation under a plan."""
    make_run(folder, layers=2, epochs=0, samples=2)
    record = read_record(folder)
    record.facts["plan"] = {"flops": {"prefill_left": 0.7}, "interventions": [interventions]}
    record.facts["plan_seconds"] = {"left": 0.8}
    record.write(folder)
    return folder


def test_no_panel_is_empty_and_what_runs_log_is_shown(tmp_path: Path) -> None:
    """Of a training, a mixture, an evaluation under a skip and one under a mask, each alone and all together."""
    make_run(tmp_path / "run", layers=2, epochs=1, samples=2)
    make_mixture(tmp_path / "mixed")
    skipped(tmp_path / "skip", kind="skip", ratio=0.5)
    skipped(tmp_path / "mask", kind="prune", ratio=0.5)
    for folders in ([tmp_path / "run"], [tmp_path / "mixed"], [tmp_path / "skip"], [tmp_path / "mask"],
                    runs_below([tmp_path])):  # fmt: skip
        found = logged(folders)
        shown = drawn(list(panels(found).values()))
        assert shown <= found.points | found.totals | AXES, "an empty panel"
        assert found.tasks <= shown
    alone = drawn(list(panels(logged([tmp_path / "run"])).values()))
    assert {"ima/mean", "train/loss", "val/loss", "T0/noun_accuracy"} <= alone and not alone & set(LEFT)
    assert "plan/flops_prefill_left" in drawn(list(panels(logged([tmp_path / "skip"])).values()))
    assert "mask/sparsity" in drawn(list(panels(logged([tmp_path / "mask"])).values()))
    assert "mask/sparsity" not in drawn(list(panels(logged([tmp_path / "skip"])).values()))


def test_layers_are_the_first_thing_that_is_seen(tmp_path: Path) -> None:
    make_run(tmp_path / "run", layers=2, epochs=1, samples=2)
    first = next(iter(panels(logged([tmp_path / "run"])).values()))[0]
    assert first.query == {"summaryTable": {"tableKey": "charts/ima_by_layer_table"}}
    assert first.chart_fields == {"x": "layer", "y": "sim", "stroke": "line"}


def test_runs_that_have_ended_are_sent_and_failures_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, status in (("a", "ok"), ("s/b", "failed"), ("c", "running")):
        make_run(tmp_path / name, layers=1, epochs=0, samples=0, status=status)
    evaluation = json.loads((tmp_path / "a" / "result.json").read_text())
    write_json(tmp_path / "a" / "evaluate-1" / "result.json", evaluation | {"config": {"checkpoint": "a"}})
    seen = []

    def replay(folder: Path, seconds: float, **asked: str) -> dict[str, str]:
        seen.append((folder.relative_to(tmp_path).as_posix(), asked["end"], asked["job_type"]))
        return {"warning": "lost"} if folder.name == "b" else {"url": f"https://there/{folder.name}"}

    monkeypatch.setattr(wandb_workspace, "replay", replay)
    with pytest.raises(UserError, match="WANDB_API_KEY"):
        sync([tmp_path])
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert main(["sync", str(tmp_path)]) == 1
    assert sorted(seen) == [("a", "ok", "train"), ("a/evaluate-1", "ok", "evaluate"), ("s/b", "failed", "train")]
    assert "https://there/a" in capsys.readouterr().out
    assert main(["sync", str(tmp_path / "a")]) == 0
    with pytest.raises(UserError, match="no run folders"):
        sync([tmp_path / "nowhere"])
