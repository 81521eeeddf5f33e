"""Links inside the repository: all lead somewhere, and the check of `make lint` sees each kind that does not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from docs_site import MENU, build, long_sentences, moved_links, num_words, sentences
from links import ELSEWHERE, ROOT, anchors, broken


def write(root: Path, **pages: str) -> Path:
    (root / "docs").mkdir()
    (root / "notebooks").mkdir()
    for name, text in pages.items():
        (root / ("README.md" if name == "README" else f"docs/{name}.md")).write_text(text)
    return root


def test_every_link_of_the_repository_leads_somewhere() -> None:
    assert broken(ROOT) == []


@pytest.mark.parametrize(
    "text, reason",
    [
        ("[a](docs/none.md)", "no such file"),
        ("![a](docs/none.svg)", "no such file"),
        ('<img src="docs/none.svg">', "no such file"),
        ("[a]: docs/none.md", "no such file"),
        ("[a](docs/a.md#none)", "no such heading in docs/a.md"),
        ("[a](#none)", "no such heading in README.md"),
        ("[a](../outside.md)", "no such file in the repository"),
        ("[a](docs/a.md#code)", "no such heading"),
    ],
)
def test_a_broken_one_is_found_with_its_line(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "outside.md").write_text("# Outside")
    root = write(
        tmp_path / "repository", README=f"# Top\n\n[well](docs/a.md#a-b)\n\n{text}\n", a="# A: b\n```\n# code\n```\n"
    )
    (line,) = broken(root)
    assert line.startswith("README.md:5: ") and reason in line


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()


def test_what_is_right_or_elsewhere_or_code_is_left_alone(tmp_path: Path) -> None:
    text = "# T\n[a](docs/a.md) [b](https://a.b/c) [c](#t) `[d](none)`\n```\n[e](none)\n```\n"
    assert broken(write(tmp_path / "repository", README=text, a="[back](../README.md#t)")) == []


def test_a_page_to_which_no_other_leads_is_found(tmp_path: Path) -> None:
    root = write(tmp_path / "repository", README="[a](docs/a.md)", a="# A", lost="[itself](lost.md)")
    assert broken(root) == ["docs/lost.md: no page leads to it"]


def test_links_of_a_notebooks_text_are_checked(tmp_path: Path) -> None:
    root = write(tmp_path / "repository", README="# T")
    cells = [{"cell_type": "markdown", "source": ["one\n", "[a](../none.md)"]}]
    (root / "notebooks/a.ipynb").write_text(json.dumps({"cells": cells}))
    assert broken(root) == ["notebooks/a.ipynb:2: ../none.md: no such file in the repository"]


def test_headings_are_called_as_on_github() -> None:
    text = "# A `b_c`: d, e-f\n## Same\n## Same\n### [Link](x.md) & more ###\n"
    assert anchors(text) == {"a-b_c-d-e-f", "same", "same-1", "link--more"}


def test_links_of_the_site_are_those_of_its_pages_and_name_what_they_need(tmp_path: Path) -> None:
    text = "[a](docs/a.md#x) ![p](docs/p.svg) [l](LICENSE) [t](#top) [h](https://h.h)"
    moved, needed = moved_links(text, tmp_path / "README.md", tmp_path)
    assert moved == "[a](a.md#x) ![p](p.svg) [l](LICENSE) [t](#top) [h](https://h.h)" and needed == {Path("LICENSE")}
    assert moved_links("[r](../README.md)", tmp_path / "docs/a.md", tmp_path) == ("[r](index.md)", set())


def test_the_menu_of_the_site_has_every_page_once() -> None:
    assert sorted(name for names in MENU.values() for name in names) == sorted(p.stem for p in ROOT.glob("docs/*.md"))


def test_sentences_end_at_stops_paragraphs_items_and_cells() -> None:
    text = "One two.\nThree `a. b` four? Five\n\n- six\n- seven\n\n| a | b |\n|---|---|\n"
    found = [sentence for _, sentence in sentences(text) if num_words(sentence)]
    assert found == ["One two.", "Three `a. b` four?", "Five", "- six", "- seven", "a", "b"]


def test_a_sentence_of_more_than_thirty_words_is_listed_with_its_line(tmp_path: Path) -> None:
    root = write(tmp_path / "repository", README=f"# T\n\nShort.\n\n{'word ' * 31}\n\n{'word ' * 30}\n")
    (line,) = long_sentences(root)
    assert line.startswith("README.md:5: 31 words: word")


@pytest.mark.docs
def test_the_site_has_every_page_and_asks_no_other_site_for_fonts_or_scripts(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="no MkDocs here: make docs installs it")
    assert build(ROOT, tmp_path) == 0
    for name in ["index", *(path.stem for path in ROOT.glob("docs/*.md"))]:
        text = (tmp_path / f"site/{name}.html").read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|link rel=\"stylesheet\")[^>]*?(?:src|href)=\"([^\"]+)\"", text)
        assert loaded and not any(ELSEWHERE.match(address) for address in loaded if "data:" not in address), name
    assert (tmp_path / "site/search/search_index.json").is_file()
