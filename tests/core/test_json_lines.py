"""Lines of JSON that somebody damaged or wrote by hand: what is read is what we write, or one line that says where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ima.core.errors import UserError
from ima.core.files import json_lines, read_object
from ima.runs.compare import read_predictions
from ima.runs.record import read_record
from ima.runs.results import read_rows

ODD = {
    "half a line": b'{"score": "ima", "val',
    "not UTF-8": b'{"score": "im\xe1"}\n',
    "NaN": b'{"score": "ima", "value": NaN}\n',
    "infinite": b'{"score": "ima", "value": 1e999}\n',
    "thousands of digits": b'{"score": "ima", "value": ' + b"9" * 5000 + b"}\n",
    "thousands of brackets": b'{"score": ' + b"[" * 100000 + b"\n",
    "a list": b'["score"]\n',
    "an odd schema": b'{"score": "ima", "schema": "1"}\n',
}


@pytest.mark.parametrize("kind", ODD)
def test_a_line_that_is_none_is_named_with_its_file_and_number(kind: str, tmp_path: Path) -> None:
    good = b'{"schema": 1, "score": "ima", "value": 0.5}\n'
    path = tmp_path / "rows.jsonl"
    path.write_bytes(good + ODD[kind])
    if kind == "half a line":  # what a kill leaves of a file that grows
        assert [row["value"] for row in read_rows(path)] == [0.5]
    else:
        with pytest.raises(UserError, match=r"rows\.jsonl:2: [^\n]+$"):
            list(read_rows(path))


@pytest.mark.parametrize("content", [*ODD.values(), b"", b"\xff\xfe{\0", b"null"])
def test_a_file_that_is_no_object_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    if content in (ODD["NaN"], ODD["infinite"], ODD["an odd schema"]):
        assert read_object(path)["score"] == "ima"
    else:
        with pytest.raises(UserError, match=r"config\.json: [^\n]+$"):
            read_object(path)
    with pytest.raises(UserError, match="none: No such file"):
        read_object(tmp_path / "none")


@pytest.mark.parametrize("kind", [*ODD, "an odd id"])
def test_predictions_are_whole_or_refused(kind: str, tmp_path: Path) -> None:
    more = b'{"track": "T0", "id": ["a"]}\n' if kind == "an odd id" else ODD[kind]
    (tmp_path / "predictions.jsonl").write_bytes(b'{"track": "T0", "id": "a", "right": true}\n' + more)
    with pytest.raises(UserError, match=r"predictions\.jsonl:2: [^\n]+$"):
        read_predictions(tmp_path)


def test_lines_are_numbered_and_may_lack_the_last_end(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"a": 1}\n{"a": 2.5}')
    assert list(json_lines(tmp_path / "a")) == [(1, {"a": 1}), (2, {"a": 2.5})]
    assert list(json_lines(tmp_path / "a", is_whole=False)) == [(1, {"a": 1})]


def test_a_metric_that_is_no_number_is_none(tmp_path: Path) -> None:
    metrics = {"nan": float("nan"), "inf": float("inf"), "text": "1", "right": True, "half": 0.5}
    (tmp_path / "result.json").write_text(json.dumps({"status": "ok", "metrics": metrics}))
    found = read_record(tmp_path).metrics
    assert found == {"nan": None, "inf": None, "text": None, "right": None, "half": 0.5}
