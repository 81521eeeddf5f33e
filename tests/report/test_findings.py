"""The sentences on a page's first screen say what the numbers say: above, below, or not shown, with the interval."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from report_runs import make_run

from ima.cli.compare import main as compare
from ima.cli.report import main as report
from ima.core.files import write_json
from ima.report.build import watch, write_report
from ima.report.figures.order import figures_of
from ima.report.findings import Finding, findings
from ima.report.load import load_run
from ima.report.page.html import page_html
from ima.report.run import Run


def run_of(metrics: dict[str, Any], **facts: Any) -> Run:
    facts = {"headline": "accuracy", "modality": "image", "encoder": "Some"} | facts
    return Run(Path("nowhere/mine"), "mine", {"metrics": metrics, "facts": facts, "config": {}})


def interval(name: str, value: float, low: float, high: float) -> dict[str, float]:
    return {name: value, f"{name}/low": low, f"{name}/high": high}


def found(metrics: dict[str, Any], kind: str, **facts: Any) -> Finding:
    (one,) = [one for one in findings(run_of(metrics, **facts)) if one.kind == kind]
    return one


@pytest.mark.parametrize("track", ["T0", "test", "val"])
@pytest.mark.parametrize("beside", ["blind", "prior"])
@pytest.mark.parametrize(
    ("low", "high", "verdict", "words"),
    [(0.31, 0.5, "yes", "depends on the"), (0.3, 0.5, "open", "overlap"), (0.0, 0.09, "no", "do harm")],
)
def test_learnt_is_what_the_intervals_say(
    track: str, beside: str, low: float, high: float, verdict: str, words: str
) -> None:
    metrics = interval(f"{track}/accuracy", (low + high) / 2, low, high)
    metrics |= interval(f"{beside}/accuracy", 0.2, 0.1, 0.3)
    one = found(metrics, "learnt")
    assert one.verdict == verdict and words in one.text
    assert "[0.100, 0.300]" in one.text and one.text.count("[") == 2


def test_the_better_of_blind_and_prior_counts_and_without_both_nothing_is_claimed() -> None:
    metrics = interval("T0/accuracy", 0.5, 0.4, 0.6) | interval("blind/accuracy", 0, 0, 0)
    assert found(metrics, "learnt").verdict == "yes"
    assert found(metrics | interval("prior/accuracy", 0.5, 0.45, 0.55), "learnt").verdict == "open"
    assert found(interval("T0/accuracy", 0.5, 0.4, 0.6), "learnt").verdict == "open"
    assert findings(run_of({"T0/noun_accuracy": 1.0})) == []


@pytest.mark.parametrize(("modality", "word"), [("image", "picture"), ("video", "clip"), ("audio", "sound")])
def test_media_are_called_what_they_are(modality: str, word: str) -> None:
    metrics = interval("T0/accuracy", 0.5, 0.4, 0.6) | interval("T1/accuracy", 0.5, 0.4, 0.6)
    metrics |= interval("blind/accuracy", 0, 0, 0) | {"retrieval/mean": 0.5, "retrieval/chance": 0.1}
    text = "\n".join(one.text for one in findings(run_of(metrics, modality=modality)))
    assert f"without the {word}" in text and f"of the {word}s find" in text
    others = {"picture", "clip", "sound"} - {word}
    assert not any(other in text for other in others) and ("scene" in text) == (modality == "image")


def test_a_run_on_noise_is_called_one() -> None:
    metrics = interval("T0/accuracy", 0.1, 0.0, 0.2) | interval("blind/accuracy", 0.1, 0, 0.2)
    assert "gives noise" in found(metrics, "learnt", encoder="NoiseEncoder").text


@pytest.mark.parametrize(
    ("error", "verdict", "words"),
    [(0.01, "yes", "aligned, above chance"), (0.3, "open", "not shown"), (None, "open", "")],
)
def test_aligned_is_retrieval_above_chance_by_its_error(error: float | None, verdict: str, words: str) -> None:
    metrics = {"retrieval/mean": 0.4, "retrieval/mean/se": error, "retrieval/chance": 0.1}
    one = found(metrics, "aligned")
    assert one.verdict == verdict and words in one.text and "by chance 10 %" in one.text


@pytest.mark.parametrize(("p", "verdict"), [(0.01, "yes"), (0.2, "open")])
def test_growth_is_judged_by_its_null(p: float, verdict: str) -> None:
    metrics = {"retrieval/mean": 0.4, "retrieval/chance": 0.1, "retrieval/growth": 0.2, "retrieval/growth_null": 0.1}
    assert found(metrics | {"retrieval/growth_p": p}, "growth").verdict == verdict


def test_what_was_not_measured_says_why(tmp_path: Path) -> None:
    run = run_of({"retrieval/mean": None, "retrieval/chance": None})
    run.rows = [{"score": "retrieval_mean", "note": "3 units; at least 8"}]
    assert [one.text for one in findings(run)] == ["Alignment is not known: 3 units; at least 8."]


def test_entries_of_a_mixture_are_told_apart() -> None:
    metrics: dict[str, Any] = {}
    for entry, low in (("a", 0.4), ("b", 0.0)):
        metrics |= interval(f"{entry}/T0/accuracy", 0.5, low, 0.6) | interval(f"{entry}/blind/accuracy", 0.1, 0, 0.2)
    facts = {"headline": "accuracy", "modality": "image"}
    out = findings(run_of(metrics, entries={"a": facts, "b": facts}))
    assert [(one.text[:3], one.verdict) for one in out] == [("a: ", "yes"), ("b: ", "open")]


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs on the same examples: one right in 9 of 10, one in none."""
    folders = tmp_path / "good", tmp_path / "twin"
    for folder, times in zip(folders, (9, 0), strict=True):
        make_run(folder, layers=3, epochs=1, samples=0)
        lines = [{"track": "T0", "id": f"{n}", "cluster": f"{n}", "right": n % 10 < times} for n in range(40)]
        (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folders


def test_comparing_two_runs_writes_a_page_of_both_and_each_page_says_it(
    two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (two[0] / "report.html").write_text("old")
    assert compare([str(one) for one in two]) == 0
    page = two[1] / "comparison" / "report.html"
    assert capsys.readouterr().out.strip().endswith(str(page))
    texts = [[one.text for one in findings(load_run(folder)) if "paired" in one.text] for folder in two]
    assert texts[0] == ["T0: better than twin on the same examples; the paired difference of right is "
                        "0.900 [0.800, 0.975]."]  # fmt: skip
    assert "worse than good" in texts[1][0] and "-0.900 [-0.975, -0.800]" in texts[1][0]
    assert texts[0][0] in page.read_text() and texts[0][0] in (two[0] / "report.html").read_text()
    assert not (two[1] / "figures").exists()  # those of the run itself are not touched
    assert compare([*(str(one) for one in two), "--no-page"]) == 0


def test_a_page_of_an_evaluation_draws_no_curve_of_one_point(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "run", layers=3, epochs=1))
    assert {"training", "ima_by_epoch"} <= {figure.name for figure in figures_of(run)}
    last = [row for row in run.rows if row["epoch"] == 1 and row["split"] != "train"]
    run.rows = [row | {"epoch": None} for row in last]
    names = {figure.name for figure in figures_of(run)}
    assert not {"training", "ima_by_epoch"} & names and "ima_by_layer" in names


def test_tables_are_folded_with_what_stands_for_the_task_first(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "run", layers=3, epochs=1))
    page = page_html([run], [])
    tasks = page.partition('<section id="tasks">')[2].partition("</section>")[0]
    assert tasks.count("<details>") == 1 and tasks.index("noun accuracy") < tasks.index(">cider<")
    assert page.index('class="findings"') < page.index("<section")


def test_a_run_in_progress_has_a_page_that_loads_itself_again_until_it_ends(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", layers=3, epochs=1, samples=0, status="running")
    page, refresh = folder / "report.html", '<meta http-equiv="refresh" content="7">'
    assert refresh not in write_report([folder]).read_text()
    lock = FileLock(folder / "lock")
    lock.acquire()
    seen: list[bool] = []

    def steps() -> Iterator[None]:
        yield
        with open(folder / "rows.jsonl", "a") as file:
            file.write(file.name and "\n")
        yield
        lock.release()
        result = json.loads((folder / "result.json").read_text())
        write_json(folder / "result.json", result | {"status": "ok"})
        yield

    coming = steps()

    def wait(seconds: float) -> None:
        assert seconds == 7
        seen.append(refresh in page.read_text())
        next(coming)

    assert watch([folder], None, 7, wait) == page
    assert seen == [True] * len(seen) and len(seen) == 3 and refresh not in page.read_text()


def test_watching_a_run_that_has_ended_is_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run", layers=3, epochs=1, samples=0)
    assert report([str(folder), "--watch"]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
