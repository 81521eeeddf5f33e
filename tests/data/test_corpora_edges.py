"""Odd annotation files and names: one line each, or read as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ima.core.errors import UserError
from ima.data.corpora.reading import read_json, read_lines
from ima.data.decode import read_image, read_sound
from ima.data.source import MediumError


@pytest.mark.parametrize("content", ["[" + "7" * 5000 + "]", "[" * 100_000, "{" + '"a":' * 3])
def test_numbers_without_end_and_deep_nesting_are_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    for read in (read_json, lambda path: list(read_lines(path))):
        with pytest.raises(UserError, match=r"a\.json") as caught:
            read(tmp_path / "a.json")
        assert "\n" not in str(caught.value)


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    lines = [{"text": "is there\u2028a cat\x85?"}, {"text": "b"}]
    (tmp_path / "a.json").write_text("\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    assert [record.values for record in read_lines(tmp_path / "a.json")] == lines


def test_half_a_character_is_refused_where_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(r'{"caption": "a \ud83d cat", "all": ["ok", "\udc00"], "fine": "\ud83d\ude00"}')
    record = next(read_lines(tmp_path / "a.json"))
    assert record.text("fine") == "\U0001f600"
    with pytest.raises(UserError, match=r"a\.json:1: key 'caption' holds half a character"):
        record.text("caption")
    with pytest.raises(UserError, match="key 'all' holds half a character"):
        record.texts("all")


def test_a_link_to_itself_and_a_name_with_nul_are_bad_media(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "a.png")
    for read in (read_image, read_sound):
        with pytest.raises(MediumError, match="a.png"):
            read(tmp_path / "a.png")
        with pytest.raises(MediumError) as caught:
            read(tmp_path / "b\0c.png")
        assert "\0" not in str(caught.value) and "null byte" in str(caught.value)
