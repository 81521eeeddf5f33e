"""Masks in whole runs: an adapter trained under one, evaluations under made and given ones, the comparison of a sweep's
masks and its page, the command."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launcher import Launcher
from report_runs import write_page

from ima.cli.masks import main as masks_main
from ima.core.errors import UserError
from ima.core.files import write_json
from ima.interventions.prune.compare import overlap
from ima.interventions.prune.mask import Mask
from ima.interventions.prune.rows import compare_runs, named, write_comparison
from ima.report.figures.masks import mask_rows, overlap_figures
from ima.report.figures.retained import retained_of
from ima.report.figures.skip import skip_figures
from ima.report.load import load_run, load_runs
from ima.runs.record import read_result
from ima.sweep.run import page

TINY = ["llm=tiny", "data=shapes", "data.num_train=20", "data.num_test=6", "data.size=32", "adapter=linear",
        "trainer.accelerator=cpu", "loader.batch_size=6", "task.max_new_tokens=4", "logger=none", "encoder=noise",
        "encoder.dim=8", "encoder.num_tokens=4", "trainer.max_epochs=1"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """plain: a run; trained: one under a mask; wanda, text, random: evaluations of plain under masks."""
    top = tmp_path_factory.mktemp("masks")

    def go(script: str, *given: str) -> None:
        done = launcher.run(script, [*given, f"output_dir={top}"])
        assert done.code == 0, done.stdout + done.stderr

    prune = ["intervention=[prune]", "intervention.prune.num_examples=8", "logger=none", "alignment=none"]
    go("train", *TINY, "alignment=none", "name=plain")
    go("train", *TINY, *prune, "intervention.prune.method=magnitude", "intervention.prune.ratio=0.3", "name=trained")
    evaluate = [f"checkpoint={top / 'plain'}", *prune]
    go("evaluate", *evaluate, "name=wanda")
    go("evaluate", *evaluate, "intervention.prune.roles=text", "name=text")
    go("evaluate", *evaluate, "intervention.prune.method=random", "name=random")
    yield top


def acting(folder: Path) -> dict[str, Any]:
    (mask,) = read_result(folder)["facts"]["plan"]["interventions"]
    return dict(mask)


def test_an_adapter_learns_under_a_mask_and_the_result_says_which(folder: Path) -> None:
    result, mask = read_result(folder / "trained"), acting(folder / "trained")
    assert result["status"] == "ok" and mask["method"] == "magnitude" and mask["asked"] == 0.3
    assert mask["sparsity"] == pytest.approx(0.3, abs=1e-3)
    weights = [(folder / name / "adapter.safetensors").read_bytes() for name in ("plain", "trained")]
    assert weights[0] != weights[1]


def test_an_evaluation_calibrates_on_the_run_that_it_evaluates(folder: Path) -> None:
    mask = acting(folder / "wanda")
    assert mask["kind"] == "mask" and mask["tasks"][0]["run"] == "plain" and mask["roles"] == "both"
    assert mask["sparsity"] == 0.5 and "no time" in mask["note"]
    assert read_result(folder / "wanda")["metrics"]["val/loss"] != read_result(folder / "plain")["metrics"]["val/loss"]


def test_a_mask_file_gives_what_the_recipe_gave(folder: Path, launcher: Launcher) -> None:
    given = ["intervention=[mask]", f"intervention.mask.path={acting(folder / 'wanda')['path']}", "alignment=none"]
    done = launcher.run("evaluate", [f"checkpoint={folder / 'plain'}", *given, f"output_dir={folder}", "name=given"])
    assert done.code == 0, done.stderr
    assert read_result(folder / "given")["metrics"] == read_result(folder / "wanda")["metrics"]
    shutil.rmtree(folder / "given")


def test_a_mask_file_that_is_not_there_is_one_line_that_begins_with_the_key(folder: Path, launcher: Launcher) -> None:
    given = ["intervention=[mask]", "intervention.mask.path=nowhere.safetensors", f"output_dir={folder}", "name=none"]
    done = launcher.run("evaluate", [f"checkpoint={folder / 'plain'}", *given])
    assert done.code == 2 and done.stderr.strip().splitlines()[-1].startswith("error: intervention.mask")
    assert "nowhere.safetensors: does not exist" in done.stderr
    shutil.rmtree(folder / "none", ignore_errors=True)


def test_masks_of_a_set_of_runs_are_compared_and_drawn(folder: Path, tmp_path: Path) -> None:
    runs = [folder / name for name in ("wanda", "text", "random")]
    target = compare_runs(runs, folder / "masks")
    assert target is not None
    (run,) = load_runs([target])
    masks = named([acting(path)["path"] for path in runs])
    (a, b), pair = list(masks.values())[:2], list(masks)[:2]
    rows = [row for row in run.rows if row["score"] == "mask_iou" and [row["dataset_a"], row["dataset_b"]] == pair]
    whole = [row for row in rows if row["layer_a"] is None and row["variant"] is None]
    assert [row["value"] for row in whole] == [overlap(a, b).iou]
    assert {row["variant"] for row in rows} >= {None, "attn", "ffn", "mlp.up_proj"}
    figures = {figure.name: figure for figure in overlap_figures(mask_rows([run]))}
    assert set(figures) == {"mask_iou", "mask_iou_by_block", "mask_iou_by_kind"}
    header, cells = figures["mask_iou"].table
    assert len(cells) == 3 and list(header[:3]) == ["mask_a", "mask_b", "iou"]
    page = write_page(runs, tmp_path / "report.html").read_text()
    assert "Overlap of masks" in page  # the comparison beside the runs
    with open(tmp_path / "figures" / "mask_iou.csv") as file:
        assert len(list(csv.DictReader(file))) == 3
    assert skip_figures(load_runs(runs)) == []  # masks are no skips


def test_a_sweeps_page_shows_how_its_masks_overlap_also_without_what_magnitude_keeps(
    folder: Path, tmp_path: Path
) -> None:
    class Job:
        def __init__(self, path: Path) -> None:
            self.folder = path

        def result(self) -> dict[str, Any]:
            return read_result(self.folder)

    for name in ("wanda", "text"):
        shutil.copytree(folder / name, tmp_path / name)
    mask = Mask.load(acting(folder / "wanda")["path"])
    other = Mask(mask.bits, mask.shapes, mask.facts | {"method": "magnitude", "name": "magnitude"})
    other.save(tmp_path / "m.safetensors")
    evaluated(tmp_path, "plain", "third", 0.5, path=str(tmp_path / "m.safetensors"))
    page(tmp_path, [Job(tmp_path / name) for name in ("wanda", "text", "sweep/third")])  # type: ignore[list-item]
    assert "Overlap of masks" in (tmp_path / "report.html").read_text()
    rows = load_run(tmp_path / "masks").rows
    text = named([acting(folder / "text")["path"]])
    found = [row for row in rows if row["score"] == "mask_rest_iou" and row["layer_a"] is None]
    expected = overlap(mask, next(iter(text.values())), without=mask)
    assert [row["value"] for row in found if row["dataset_b"] in text] == [expected.iou]
    panels = {row[0] for f in overlap_figures(rows) if f.name == "mask_iou_by_block" for row in f.table[1]}
    assert "without what magnitude keeps" in panels


def test_one_mask_is_nothing_to_compare(folder: Path, tmp_path: Path) -> None:
    assert compare_runs([folder / "wanda", folder / "plain"], tmp_path / "masks") is None
    with pytest.raises(UserError, match="a comparison needs two"):
        write_comparison(named([acting(folder / "wanda")["path"]]), tmp_path)


def test_the_command_makes_compares_searches_and_exports(
    folder: Path,
    launcher: Launcher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("IMA_CACHE", str(launcher.folder / "cache"))
    runs, few = [str(folder / "plain"), str(folder / "trained")], ["--num-examples", "8"]
    assert masks_main(["make", *runs, *few, "--roles", "percept", "text", "--out", str(tmp_path / "m")]) == 0
    files = sorted((tmp_path / "m").glob("*.safetensors"))
    assert [path.stem for path in files] == [
        f"wanda-{r}-{s}-0.5" for r in ("plain", "trained") for s in ("percept", "text")
    ]
    assert masks_main(["iou", *map(str, files), "--out", str(tmp_path / "iou")]) == 0
    assert (tmp_path / "iou" / "report.html").is_file()
    assert masks_main(["info", str(files[0])]) == 0
    assert masks_main(["subnet", *runs, *few, "--final-ratio", "0.5", "--out", str(tmp_path / "s")]) == 0
    masks = {path.stem: Mask.load(path) for path in (tmp_path / "s").glob("*.safetensors")}
    (whole,) = (mask for mask in masks.values() if mask.facts["method"] == "subnet")
    assert len(masks) == 1 + 2 * 5
    for mask in masks.values():
        assert mask.density == pytest.approx(whole.density, abs=0.02)
    assert masks_main(["export", str(files[0]), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "config.json").is_file()
    capsys.readouterr()
    assert masks_main(["info", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("error: ") and masks_main(["iou", str(files[0])]) == 2


# -- what is retained, from results alone ------------------------------------------------------------------------------


def evaluated(top: Path, task: str, name: str, value: float, ratio: float = 0.5, **mask: Any) -> None:
    facts = {"kind": "mask", "asked": ratio, "sparsity": ratio, "roles": "both"} | mask
    result = {
        "status": "ok",
        "metrics": {"T0/accuracy": value, "T0/accuracy/low": value - 0.1, "T0/accuracy/high": value},
    }
    checkpoint = str(top / task / "adapter.safetensors")
    result["facts"] = {"evaluated": checkpoint, "plan": {"interventions": [facts]}}  # type: ignore[assignment]
    write_json(top / "sweep" / name / "result.json", result)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for task, value in (("a", 0.8), ("b", 0.5)):
        write_json(tmp_path / task / "result.json", {"status": "ok", "metrics": {"T0/accuracy": value}, "facts": {}})
        for source in "ab":
            mine = {"method": "wanda", "tasks": [{"run": source}]}
            evaluated(tmp_path, task, f"w{task}{source}", value * (0.9 if source == task else 0.6), **mine)
        evaluated(tmp_path, task, f"s{task}", value * 0.7, method="subnet", tasks=[{"run": "a"}, {"run": "b"}])
        evaluated(tmp_path, task, f"r{task}", value * 0.1, ratio=0.3, method="random")
    return tmp_path


def test_what_is_retained_is_relative_to_the_same_adapter_without_a_mask(results: Path) -> None:
    found = {(each.task, each.mask): each for each in retained_of(load_runs([results / "sweep"]))}
    assert found["a", "own Wanda"].retained == pytest.approx(0.9)
    assert found["b", "Wanda of a"].retained == pytest.approx(0.6)
    each = found["b", "α-SubNet"]
    assert (each.retained, each.low, each.high) == (pytest.approx(0.7), pytest.approx(0.5), pytest.approx(0.7))


def test_bars_by_sparsity_and_the_transfer_matrix_are_drawn(results: Path, tmp_path: Path) -> None:
    page = write_page([results / "sweep"], tmp_path / "report.html").read_text()
    assert "save no time" in page
    names = {path.stem for path in (tmp_path / "figures").glob("mask_*.csv")}
    assert names == {"mask_retained_50", "mask_retained_30", "mask_transfer"}
    with open(tmp_path / "figures" / "mask_transfer.csv") as file:
        cells = {(row["source"], row["task"]): float(row["retained"]) for row in csv.DictReader(file)}
    assert cells == {pair: pytest.approx(0.9 if pair[0] == pair[1] else 0.6) for pair in cells} and len(cells) == 4


def test_without_the_unpruned_metric_the_reason_is_said(results: Path) -> None:
    shutil.rmtree(results / "a")
    shutil.rmtree(results / "b")
    assert retained_of([load_run(results / "sweep" / "sa")]) == []
