"""The page in a real browser: quiet, asks for nothing, fits narrow and wide windows, sorts and filters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import chromium
import numpy as np
import pytest
from PIL import Image
from report_runs import make_run

from ima.core.media import Frames, Sound
from ima.data.first_look import look_at
from ima.data.shapes import Shapes
from ima.pipeline.predictions import media_files
from ima.report.build import write_report
from ima.report.page.first_look import look_page

BINARY = chromium.find()
NONE = "no Chromium found (make test-browser)"
pytestmark = [pytest.mark.browser, pytest.mark.skipif(BINARY is None, reason=NONE)]


@pytest.fixture(scope="module")
def browser() -> Iterator[chromium.Chromium]:
    assert BINARY is not None
    with chromium.Chromium(BINARY) as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("outputs")
    single = write_report([make_run(root / "demo")])
    for index, skill in enumerate((0.5, 0.9, 0.1, 0.7)):
        make_run(
            root / "sweep" / f"job-{index}",
            seed=index,
            skill=skill,
            layers=6,
            epochs=2,
            samples=0,
            encoder=f"an-encoder-with-a-long-name-{index}",
        )
    make_run(
        root / "sweep" / "job-9",
        layers=6,
        epochs=1,
        samples=0,
        metrics={},
        status="failed",
        reason="OutOfMemoryError: " + "x" * 300,
    )
    look = root / "look.html"
    look.write_text(
        look_page([look_at(Shapes(num_train=6, num_test=2, size=32), len, "letters")], "ima data data=shapes")
    )
    return {"single": single, "sweep": write_report([root / "sweep"]), "look": look}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("kind", ["single", "sweep", "look"])
def test_page_is_quiet_fits_the_window_and_shows_its_figures(
    browser: chromium.Chromium, pages: dict[str, Path], kind: str, width: int, scheme: str
) -> None:
    browser.open(pages[kind], width, scheme=scheme)
    assert browser.complaints() == []
    assert browser.requests() == []
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("document.body.scrollWidth") <= width
    widths = browser.run("Array.from(document.querySelectorAll('svg'), svg => svg.getBoundingClientRect().width)")
    assert len(widths) == {"single": 9, "sweep": 7, "look": 0}[kind]
    assert all(300 <= found <= width for found in widths)
    assert browser.run("Array.from(document.images).every(image => image.naturalWidth > 0)")


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_ink_and_paper_follow_the_colour_scheme(
    browser: chromium.Chromium, pages: dict[str, Path], scheme: str, dark: bool
) -> None:
    browser.open(pages["single"], 800, scheme=scheme)
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    label = browser.run("getComputedStyle(document.querySelector('svg text')).fill")
    assert (sum(numbers(paper)) < 200) == dark
    assert abs(sum(numbers(paper)) - sum(numbers(label))) > 250


def numbers(colour: str) -> list[int]:
    return [int(part) for part in colour[4:-1].split(",")]


def test_dark_scheme_prints_on_white(browser: chromium.Chromium, pages: dict[str, Path]) -> None:
    browser.open(pages["sweep"], 760, scheme="dark", media="print")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("document.documentElement.scrollWidth") <= 760


def column(browser: chromium.Chromium, index: int) -> list[str]:
    return list(
        browser.run(
            f"Array.from(document.querySelectorAll('#runs tbody tr'),"
            f" row => row.cells[{index}].dataset.v ?? row.cells[{index}].firstChild.textContent)"
        )
    )


def click(browser: chromium.Chromium, heading: str) -> int:
    """Click the column whose heading is `heading`; returns its index."""
    return int(
        browser.run(
            "(() => { const heads = Array.from(document.querySelectorAll('#runs thead th'));"
            f" const index = heads.findIndex(head => head.textContent.trim() === {heading!r});"
            " heads[index].querySelector('button').click(); return index; })()"
        )
    )


def test_table_sorts_both_ways_with_empty_cells_last(browser: chromium.Chromium, pages: dict[str, Path]) -> None:
    browser.open(pages["sweep"], 1200)
    index = click(browser, "T0/noun_accuracy")
    assert column(browser, index) == ["0.1", "0.5", "0.7", "0.9", ""]
    click(browser, "T0/noun_accuracy")
    assert column(browser, index) == ["0.9", "0.7", "0.5", "0.1", ""]
    assert browser.run("document.querySelectorAll('th[aria-sort=descending]').length") == 1
    assert click(browser, "run") == 0
    assert column(browser, 0) == ["job-0", "job-1", "job-2", "job-3", "job-9"]


def test_filter_keeps_the_rows_that_hold_all_words(browser: chromium.Chromium, pages: dict[str, Path]) -> None:
    browser.open(pages["sweep"], 1200)
    browser.run(
        "(() => { const box = document.getElementById('filter'); box.value = 'FAILED memory';"
        " box.dispatchEvent(new Event('input')); })()"
    )
    shown = browser.run(
        "Array.from(document.querySelectorAll('#runs tbody tr')).filter(row => !row.hidden)"
        ".map(row => row.cells[0].firstChild.textContent)"
    )
    assert shown == ["job-9"]
    assert browser.run("document.getElementById('count').textContent") == "1 of 5 runs"


def test_chosen_rows_show_where_their_configurations_differ_also_after_sorting(
    browser: chromium.Chromium, pages: dict[str, Path]
) -> None:
    browser.open(pages["sweep"], 1200)
    click(browser, "T0/noun_accuracy")
    click(browser, "T0/noun_accuracy")
    names = browser.run(
        "(() => { const rows = Array.from(document.querySelectorAll('#runs tbody tr')).slice(0, 2);"
        " rows.forEach(row => row.querySelector('.pick').click());"
        " return rows.map(row => row.cells[0].firstChild.textContent); })()"
    )
    assert names == ["job-1", "job-3"]
    shown = browser.run(
        "Array.from(document.querySelectorAll('#chosen tr'), row => Array.from(row.cells, cell => cell.textContent))"
    )
    assert shown[0] == ["differs", "job-1", "job-3"]
    assert ["trainer.seed", "1", "3"] in shown
    assert ["encoder.name", "an-encoder-with-a-long-name-1", "an-encoder-with-a-long-name-3"] in shown
    assert all(row[1] != row[2] for row in shown)
    browser.run("document.querySelector('#runs tbody tr .pick').click()")
    assert browser.run("document.getElementById('chosen').children.length") == 0
    assert browser.complaints() == []


def test_sounds_and_clips_play(browser: chromium.Chromium, tmp_path: Path) -> None:
    """The media that a run writes, as data inside the page: a browser knows how long they are."""
    folder = make_run(tmp_path / "heard", samples=2)
    wave = np.sin(np.arange(8000) / 9).astype(np.float32)
    frames = tuple(Image.new("RGB", (64, 48), (30 * index, 90, 40)) for index in range(8))
    lines = [
        {"id": "a", "track": "T0", "references": ["a tone"], "prediction": "a tone", "right": True}
        | media_files(folder, Sound(wave, 16000), "T0-00"),
        {"id": "b", "track": "T0", "references": ["a fade"], "prediction": "a cut", "right": False}
        | media_files(folder, Frames(frames, 8.0), "T0-01"),
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    browser.open(write_report([folder]), 400)
    lasted = browser.run(
        "Promise.all(Array.from(document.querySelectorAll('audio,video'), async medium => {"
        " if (medium.readyState < 1) await new Promise((done, fail) => {"
        " medium.onloadedmetadata = done; medium.onerror = fail; medium.load(); });"
        " return [medium.tagName, medium.duration]; }))"
    )
    assert [kind for kind, _ in lasted] == ["AUDIO", "VIDEO"]
    assert lasted[0][1] == pytest.approx(0.5, abs=0.15) and lasted[1][1] == pytest.approx(1.0, abs=0.2)
    assert browser.complaints() == [] and browser.requests() == []
    assert browser.run("document.documentElement.scrollWidth") <= 400
