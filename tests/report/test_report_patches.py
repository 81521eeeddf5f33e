"""Patch maps on the page: rectangles where tokens stand, shaded by their cosine, words escaped, no script needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ima.report.page.patches import DARKEST, FULL, patch_section, shade
from ima.report.run import Run

WORDS = [["cow", 0.41], ["<b>bull", 0.2]]


def made(folder: Path, **changes: Any) -> Run:
    (folder / "media").mkdir(exist_ok=True)
    Image.new("RGB", (30, 20), "green").save(folder / "media" / "a.png")
    tokens = [
        {"words": WORDS, "cosines": [0.1, -0.2], "places": []},
        {"words": WORDS, "cosines": [0.3, 0.25], "places": [[0.0, 0.0, 0.5, 1.0]]},
        {"words": WORDS, "cosines": [0.3, 0.75], "places": [[0.5, 0.0, 0.25, 0.5], [0.5, 0.5, 0.25, 0.5]]},
    ]
    entry = {"sample": "s/<1>", "text_words": ["green", "cow"], "tokens": tokens, "image": "media/a.png",
             "reference": "a green cow"}  # fmt: skip
    (folder / "patches.json").write_text(json.dumps({"layer": 2, "media": [entry | changes]}))
    return Run(folder, "r", {"metrics": {}})


def test_a_map_for_each_of_the_texts_last_words_with_its_rectangles(tmp_path: Path) -> None:
    page = patch_section(made(tmp_path))
    assert page.count('<figure class="card map">') == 2 and page.count('class="patch') == 2 * 3
    assert "left:0.000%;top:0.000%;width:50.000%;height:100.000%;--a:0.35" in page  # cow: 0.25 of 0.5
    assert "left:50.000%;top:50.000%;width:25.000%;height:50.000%;--a:0.70" in page  # 0.75: darkest
    assert "tokens without a place: 1" in page and "token 0" in page and "data:image/png" in page
    assert "<script" not in page


def test_what_words_and_names_hold_is_escaped(tmp_path: Path) -> None:
    page = patch_section(made(tmp_path))
    assert "<b>bull" not in page and "&lt;b&gt;bull" in page and "s/&lt;1&gt;" in page


def test_a_sound_plays_below_its_spectrogram_and_does_not_move_the_rectangles(tmp_path: Path) -> None:
    run = made(tmp_path, sound="media/a.mp3")
    (tmp_path / "media" / "a.mp3").write_bytes(b"ID3")
    page = patch_section(run)
    assert page.index("</div><audio controls") > page.index('class="patch')


def test_an_adapter_without_places_is_said(tmp_path: Path) -> None:
    tokens = [{"words": WORDS, "cosines": [0.1, 0.2], "places": []}]
    page = patch_section(made(tmp_path, tokens=tokens, note="no place on <it>"))
    assert "no place on &lt;it&gt;" in page and 'class="patch' not in page


@pytest.mark.parametrize("text", ["", "[]", "{", '{"media": [{}]}', '{"layer": 1, "media": []}'])
def test_files_of_another_kind_give_no_section(tmp_path: Path, text: str) -> None:
    (tmp_path / "patches.json").write_text(text)
    assert patch_section(Run(tmp_path, "r", {"metrics": {}})) == ""


def test_shades_grow_from_clear_to_the_darkest() -> None:
    assert shade(-0.3) == shade(0.0) == 0 and shade(FULL) == shade(2.0) == DARKEST
