"""Run folders: what the run wrote may go, everything else there is somebody else's and stays."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from launcher import Launcher
from test_mixture import MIXED
from test_training import NOISE

from ima.core.cache import build_folder
from ima.core.errors import UserError
from ima.core.files import remove_temporaries, temporary_beside, write_atomic
from ima.runs.folders import OF_HYDRA, clear, load_finished_or_clear, run_lock
from ima.runs.identity import identified

OURS = ["result.json", "rows.jsonl", "adapter.safetensors", "adapter.llm.safetensors", "checkpoints/last.safetensors",
        "checkpoints/epoch-001.llm.safetensors", "checkpoints/epoch-001.json", "media/T0-00.png", "media/a-T1-11.mp3",
        "figures/ima.svg", "figures/ima.png", "figures/ima.csv", "entries/pictures/alignment.safetensors",
        "wandb/offline-run-1/files/x.txt", "report.html", "comparison.json"]  # fmt: skip
THEIRS = ["notes.txt", ".gitignore", ".git/config", ".env", "figures/mine.png", "media/mine.png", "plots/a.png",
          "checkpoints/best.safetensors", "evaluate-0123abcd/result.json", "evaluate-0123abcd/rows.jsonl",
          "b/result.json", "b/adapter.safetensors", "b/checkpoints/last.safetensors", "entries/x/result.json",
          "entries/x/alignment.json", "swept/sweep.json", "swept/report.html"]  # fmt: skip


def fill(folder: Path, names: list[str], **result: Any) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result) if path.name == "result.json" else "x")


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() or path.is_symlink()}


# -- temporaries -------------------------------------------------------------------------------------------------------


def test_only_our_own_temporaries_go_from_a_run_folder(tmp_path: Path) -> None:
    theirs = [".gitignore", ".env", ".notes", ".git/config", "checkpoints/.keep", "media/.x", ".a.x1y2",
              ".rows.jsonl.x1y2abcd.ima-tmp.txt", ".x1y2abcd.ima-tmp"]  # fmt: skip
    ours = [".result.json.x1y2abcd.ima-tmp/result.json", "checkpoints/.last.safetensors.00000000.ima-tmp/.tmpAbC",
            "media/.a.png.abcdefgh.ima-tmp/a.png", "figures/.a.svg.abcdefgh.ima-tmp/a.svg",
            "entries/pictures/.alignment.json.abcdefgh.ima-tmp/x"]  # fmt: skip
    fill(tmp_path, [*theirs, *ours])
    (tmp_path / ".elsewhere").symlink_to(tmp_path / ".git")
    (tmp_path / ".link.x1y2abcd.ima-tmp").symlink_to(tmp_path / ".git")
    with run_lock(tmp_path):
        pass
    assert files(tmp_path) == {*theirs, ".elsewhere", ".link.x1y2abcd.ima-tmp", "lock"}


def test_a_temporary_bears_the_name_of_what_it_becomes_and_leaves_nothing(tmp_path: Path) -> None:
    for name in ("a.json", "ä" * 120, "x" * 255):
        write_atomic(tmp_path / name, name)
        with temporary_beside(tmp_path / name) as folder:
            (folder / "left").write_text("x")
            assert folder.name.startswith(".") and folder.name.endswith(".ima-tmp")
        killed = temporary_beside(tmp_path / name)
        stale = killed.__enter__()  # and never left
        remove_temporaries(tmp_path, "another")
        assert stale.is_dir()
        remove_temporaries(tmp_path, name)
        assert not stale.exists()
    assert {path.read_text() for path in tmp_path.iterdir()} == {path.name for path in tmp_path.iterdir()}


def test_a_folder_that_another_process_makes_under_a_longer_name_is_let_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMA_CACHE", str(tmp_path))
    with temporary_beside(tmp_path / "thing-1.5") as theirs:
        build_folder(tmp_path / "thing-1", lambda folder: None)
        assert theirs.is_dir() and (tmp_path / "thing-1").is_dir()


# -- overwriting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"overwrite": True}, {"resume": "never"}])
def test_overwriting_removes_what_the_run_wrote_and_says_what_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: dict[str, Any]
) -> None:
    config = {"seed": 1, **how}
    fill(tmp_path, [*OURS, *THEIRS, "lock"])
    (tmp_path / "result.json").write_text(json.dumps(identified(config) | {"status": "failed"}))
    assert load_finished_or_clear(tmp_path, config) is None
    assert files(tmp_path) == {"lock", *THEIRS}
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and "stays: .env, .git, .gitignore, b, checkpoints/best.safetensors" in line
    assert not (tmp_path / "wandb").exists() and not (tmp_path / "entries" / "pictures").exists()


def test_a_folder_of_the_run_alone_is_emptied_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path, OURS)
    clear(tmp_path)
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


def test_links_are_never_followed(tmp_path: Path) -> None:
    run, far = tmp_path / "run", tmp_path / "far"
    fill(far, ["last.safetensors", "run-1/x", "result.json"])
    fill(run, ["result.json", "media/T0-00.png"])
    for name in ("checkpoints", "notes", "wandb/latest-run", "rows.jsonl"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).symlink_to(far)
    (run / "data").symlink_to(run)
    clear(run)
    assert files(far) == {"last.safetensors", "run-1/x", "result.json"}
    assert files(run) == {"notes", "data"} and os.readlink(run / "notes") == str(far)


def test_stages_of_the_run_go_with_it_and_a_run_of_its_own_inside_stays(tmp_path: Path) -> None:
    top = tmp_path / "a"
    stages = {"pretrain": {}, "b": {}, "instruct": {}}
    fill(top, ["result.json", "rows.jsonl"], config={"name": "a", "stage": stages})
    fill(top / "pretrain", ["result.json", "checkpoints/last.safetensors", "lock"],
         config={"name": "a", "stage": {"pretrain": {}}})  # fmt: skip
    fill(top / "pretrain", ["mine.txt"])
    fill(top / "b", ["result.json", "rows.jsonl"], config={"name": "a/b", "stage": {"pretrain": {}, "b": {}}})
    fill(top / "instruct", ["result.json"], config={"name": "a/instruct"})
    clear(top)
    assert files(top) == {"pretrain/mine.txt", "pretrain/lock", "b/result.json", "b/rows.jsonl", "instruct/result.json"}


def test_stages_go_where_the_last_one_never_began(tmp_path: Path) -> None:
    top = tmp_path / "a"
    fill(top / "pretrain", ["result.json", "lock"], config={"name": "a", "stage": {"pretrain": {}}})
    fill(top, ["report.html"])  # of the runs below, perhaps
    assert load_finished_or_clear(top, {"name": "a"}) is None and (top / "pretrain" / "result.json").is_file()
    assert load_finished_or_clear(top, {"name": "a", "overwrite": True}) is None
    assert files(top) == {"report.html", "pretrain/lock"}


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["one", "several"])
def test_a_run_knows_all_that_it_writes(launcher: Launcher, tmp_path: Path, kind: str) -> None:
    """Of one task with page and mirror, of a mixture with stages and a trained LLM."""
    stages = "stage={pretrain: {_target_: ima.config.settings.Stage, entries: [pictures], max_epochs: 1}, " \
             "instruct: {_target_: ima.config.settings.Stage, max_epochs: 1}}"  # fmt: skip
    one = [*(text for text in NOISE if not text.startswith("logger")), "trainer.max_epochs=1", "logger=offline"]
    argv = {"one": [*one, "alignment=full", "alignment.num_tsne_layers=0"], "several": [*MIXED, stages, "llm=tiny"]}
    more = ["llm.train=lora"] if kind == "several" else []
    done = launcher.run("train", [*argv[kind], *more, f"output_dir={tmp_path}", "name=run"], report=kind == "one")
    assert done.code == 0, done.stderr
    before = files(tmp_path / "run")
    assert {"result.json", "checkpoints/epoch-001.safetensors"} <= before
    assert (kind == "one") == ({"report.html", "alignment.json", "examples.jsonl"} <= before)
    clear(tmp_path / "run")
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"lock"} <= left <= {"lock", *OF_HYDRA}, before


def test_a_folder_that_cannot_be_there_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "nowhere").symlink_to(tmp_path / "none" / "at all")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("file", "file/run", "nowhere", "loop", "loop/run", "a" * 300, "b/" + "a" * 300 + "/c"):
        says = "no folder can be made there .*; set output_dir or name"
        with pytest.raises(UserError, match=says) as refused, run_lock(tmp_path / name):
            pass
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 400
    with pytest.raises(UserError, match="/proc/run: no folder can be made there"), run_lock(Path("/proc/run")):
        pass
