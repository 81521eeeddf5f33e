"""The page in a real browser: quiet, asks for nothing, fits narrow and wide windows, sorts and filters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import chromium
import pytest
from report_runs import make_run

from ima.report import write_report

BINARY = chromium.find()
pytestmark = [pytest.mark.browser, pytest.mark.skipif(BINARY is None, reason="no Chromium found")]


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
    return {"single": single, "sweep": write_report([root / "sweep"])}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("kind", ["single", "sweep"])
def test_page_is_quiet_fits_the_window_and_shows_its_figures(
    browser: chromium.Chromium, pages: dict[str, Path], kind: str, width: int, scheme: str
) -> None:
    browser.open(pages[kind], width, scheme=scheme)
    assert browser.complaints() == []
    assert browser.requests() == []
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("document.body.scrollWidth") <= width
    widths = browser.run("Array.from(document.querySelectorAll('svg'), svg => svg.getBoundingClientRect().width)")
    assert len(widths) == {"single": 9, "sweep": 5}[kind]
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
