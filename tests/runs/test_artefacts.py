"""What earlier code wrote stays usable: the artefacts in tests/artefacts are read, evaluated, reported and compared."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from shlex import split
from typing import Any

import pytest
from launcher import Launcher
from omegaconf import OmegaConf

from ima.config.compose import compose
from ima.core.metric_names import current_metric
from ima.core.moved_keys import MOVED_KEYS
from ima.core.moved_names import current_name
from ima.runs.find import run_config
from ima.runs.record import read_result
from ima.runs.results import read_rows

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "tests/artefacts"
RUNS = sorted(path.parent for path in STORED.rglob("result.json"))
EVALUATION = next(folder for folder in RUNS if folder.name.startswith("evaluate-"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a copy of the artefacts where the paths in them lead."""
    shutil.copytree(STORED, tmp_path / "tests/artefacts", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return tmp_path


def typed(command: str) -> list[str]:
    """The arguments of a stored command, keys that have moved under their new names."""
    pairs = [text.partition("=") for text in split(command)[2:]]
    return [f"{MOVED_KEYS.get(key, key)}={value}" for key, _, value in pairs]


def close(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Names of metrics that differ by more than 1e-5, or that are not there any more; new scores may have come. Their
    6 examples have fewer clusters than a standard error needs, which is therefore none today."""
    wanted = {current_metric(name): value for name, value in wanted.items()}
    odd = sorted(wanted.keys() - found.keys() - {"train/loss"})  # of trainings only
    for name in found.keys() & wanted.keys():
        if name.endswith("_bytes"):  # what measuring costs, no result
            continue
        a, b = found[name], None if name.endswith("/se") else wanted[name]
        if (a is None) != (b is None) or (a is not None and abs(a - b) > 1e-5):
            odd.append(f"{name}: {a} was {b}")
    return odd


@pytest.mark.parametrize("folder", RUNS, ids=[str(folder.relative_to(STORED)) for folder in RUNS])
def test_results_rows_and_configs_are_read(folder: Path) -> None:
    result = read_result(folder)
    assert result["status"] == "ok" and result["metrics"] and result["identity"] == 2
    assert list(read_rows(folder / "rows.jsonl"))
    assert run_config(str(folder))["llm"]["family"] == "llama"


def test_nothing_in_them_tells_of_the_machine() -> None:
    for path in STORED.rglob("*"):
        if path.is_file() and path.suffix != ".py":
            assert not re.search(rb"[\"'= ]/(work|tmp|root|home)\b", path.read_bytes()), path


def test_a_stored_run_is_recognised_and_evaluated_with_the_same_numbers(launcher: Launcher, place: Path) -> None:
    train = typed(read_result(STORED / "run")["command"])
    done = launcher.run("train", train, cwd=place)
    assert done.code == 0 and "finished already" in done.stdout, done.stderr
    plain = ["checkpoint=tests/artefacts/run", "name=again", "output_dir=out"]
    done = launcher.run("evaluate", plain, cwd=place)
    assert done.code == 0, done.stderr
    assert close(read_result(place / "out/again")["metrics"], read_result(STORED / "run")["metrics"]) == []


def test_a_stored_evaluation_is_measured_again_with_the_same_numbers(launcher: Launcher, place: Path) -> None:
    argv = typed(read_result(EVALUATION)["command"])
    done = launcher.run("evaluate", [*argv, "name=again", "output_dir=out"], cwd=place)
    assert done.code == 0, done.stderr
    again = read_result(place / "out/again")
    assert close(again["metrics"], read_result(EVALUATION)["metrics"]) == []


def test_a_stored_mixture_is_evaluated_with_the_same_numbers(launcher: Launcher, place: Path) -> None:
    argv = ["checkpoint=tests/artefacts/mixture", "name=again", "output_dir=out"]
    done = launcher.run("evaluate", argv, cwd=place)
    assert done.code == 0, done.stderr
    assert close(read_result(place / "out/again")["metrics"], read_result(STORED / "mixture")["metrics"]) == []


@pytest.mark.parametrize("name", ["run", "mixture", "sweep", EVALUATION.relative_to(STORED).as_posix()])
def test_pages_are_written(place: Path, name: str) -> None:
    """With every figure; the files beside the page are drawn for one of them."""
    from report_runs import write_page

    from ima.report.build import write_report
    from ima.report.load import find_runs

    folders = find_runs([place / "tests/artefacts" / name])
    write = write_report if name == "run" else write_page
    text = write(folders, place / "page.html").read_text()
    assert name == "sweep" or list((place / "figures").glob("*.csv"))  # two runs are too few for its figures
    assert text.rstrip().endswith("</html>") and all(folder.name in text for folder in folders)


def test_runs_are_collected_and_compared() -> None:
    from ima.report.collect import collect
    from ima.runs.compare import compare

    rows = collect(RUNS)
    assert len(rows) == len(RUNS) and {row["status"] for row in rows} == {"ok"}
    tracks = compare(STORED / "run", EVALUATION)["tracks"]
    assert tracks and all(found["n"] == 6 for found in tracks.values())
    assert compare(*sorted((STORED / "sweep").glob("*/")))["tracks"]


def test_masks_are_read_compared_and_applied(launcher: Launcher, place: Path) -> None:
    from ima.interventions.prune.mask import Mask
    from ima.interventions.prune.rows import matrix_text, named

    paths = sorted(str(path) for path in (STORED / "masks").glob("*.safetensors"))
    masks = [Mask.load(path) for path in paths]
    assert [round(mask.density, 3) for mask in masks] == [0.5, 0.5]
    assert {mask.facts["llm"] for mask in masks} == {"tiny-llama"}
    assert re.search(r"percept 0.5 \| wanda run text 0.5 +0.696 ", matrix_text(named(paths))[1])
    path = Path(paths[0]).relative_to(ROOT)
    argv = ["checkpoint=tests/artefacts/run", "intervention=[mask]", f"intervention.mask.path={path}", "alignment=none"]
    done = launcher.run("evaluate", [*argv, "name=masked", "output_dir=out"], cwd=place)
    assert done.code == 0, done.stderr


def test_the_table_of_a_sweep_is_made_again_from_jobs_that_are_found_by_their_hash(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ima.cli.sweep import plan
    from ima.sweep.table import finish_table

    monkeypatch.chdir(place)
    folder = Path("tests/artefacts/sweep")
    kept = json.loads((folder / "sweep.json").read_text())
    jobs = plan(typed(kept["command"]))[1]
    for job, name in zip(jobs, kept["folders"], strict=True):  # the hash of before the keys moved
        job.folder = folder / job.hash
        (folder / name).rename(job.folder)
        job.hash = name
    assert all(job.is_done() for job in jobs)
    stored = (folder / "table.csv").read_text()
    (folder / "table.csv").unlink()
    finish_table(folder, jobs)
    found, wanted = (list(csv.DictReader(text.splitlines())) for text in ((folder / "table.csv").read_text(), stored))
    assert len(found) == 2 and [row["hash"] if "hash" in row else row["folder"] for row in found]
    for new, old in zip(found, wanted, strict=True):
        names = {key: current_name(value) for key, value in old.items() if key.endswith("._target_")}
        shared = [key for key in old if "trainer" not in key and key not in ("folder", "command", "name")]
        assert {key: new.get(key) for key in shared} == {key: (old | names)[key] for key in shared}


def test_a_run_composes_from_its_own_command_to_its_own_hash() -> None:
    from ima.runs.identity import config_hash

    for folder in (STORED / "run", STORED / "mixture"):
        result = read_result(folder)
        config: Any = OmegaConf.to_container(compose(typed(result["command"])))
        assert config_hash(config) == config_hash(result["config"])
