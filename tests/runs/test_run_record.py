"""`result.json`: whatever stands there is read or refused in one line, and what a run writes is what it ends as."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ima.core.errors import UserError
from ima.pipeline.record import RunInProgress
from ima.report.load import load_run, load_runs
from ima.runs.compare import compare
from ima.runs.find import run_config
from ima.runs.folders import is_finished, load_finished_or_clear
from ima.runs.identity import identified
from ima.runs.record import RunRecord, read_record

CONFIG: dict[str, Any] = {"seed": 3, "encoder": {"dim": 8}}

BROKEN: dict[str, tuple[bytes, str]] = {
    "null": (b"null", "not a JSON object but null"),
    "text": (b'"ok"', "not a JSON object"),
    "a list": (b"[1]", "not a JSON object"),
    "no JSON": (b"{'status'", "not JSON"),
    "empty": (b"", "not JSON"),
    "UTF-16": ('{"status": "ok"}'.encode("utf-16"), "not UTF-8"),
    "long numbers": (b'{"wall_seconds": ' + b"9" * 5000 + b"}", "not JSON that can be read"),
    "deep": (b"[" * 100_000, "not JSON that can be read"),
    "metrics of a list": (b'{"metrics": [1]}', "metrics is list"),
    "facts of text": (b'{"facts": "x"}', "facts is str"),
    "config of a list": (b'{"config": ["x"]}', "config is list"),
    "status of a number": (b'{"status": 1}', "status is int"),
    "seconds of text": (b'{"wall_seconds": "long"}', "wall_seconds is str"),
}

READERS: dict[str, Callable[[Path], Any]] = {
    "record": read_record,
    "page": load_run,
    "config": lambda folder: run_config(str(folder)),
    "finished": lambda folder: load_finished_or_clear(folder, CONFIG),
    "is finished": lambda folder: is_finished(folder, CONFIG),
    "compare": lambda folder: compare(folder, folder),
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("reader", READERS)
def test_a_broken_record_is_one_line_that_names_the_file(tmp_path: Path, what: str, reader: str) -> None:
    content, words = BROKEN[what]
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(UserError) as caught:
        READERS[reader](tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'result.json'}: {words}") and "\n" not in message and len(message) < 300


def test_a_folder_in_its_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "result.json").mkdir()
    for reader in ("record", "page", "finished"):
        with pytest.raises(UserError, match=r"result\.json: is a folder"):
            READERS[reader](tmp_path)


@pytest.mark.parametrize("lacking", ["status", "metrics", "facts", "config", "git", "wall_seconds"])
@pytest.mark.parametrize("how", ["gone", "null"])
def test_what_a_record_lacks_is_empty(tmp_path: Path, lacking: str, how: str) -> None:
    result: dict[str, Any] = {"status": "ok", "config": CONFIG, **identified(CONFIG), "metrics": {"a": 1.5},
                              "facts": {"llm": "x"}, "git": {"commit": "c"}, "wall_seconds": 2.0}  # fmt: skip
    result |= {lacking: None}
    if how == "gone":
        del result[lacking]
    (tmp_path / "result.json").write_text(json.dumps(result))
    record = read_record(tmp_path)
    assert getattr(record, lacking) in ({}, None, "unknown")
    assert load_run(tmp_path).status == record.status
    if lacking == "status":
        with pytest.raises(UserError, match="has no status; give another name"):
            load_finished_or_clear(tmp_path, CONFIG)
    else:
        assert load_finished_or_clear(tmp_path, CONFIG) == record


def test_keys_that_are_not_known_are_kept_and_metrics_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"status": "ok", "mine": [1], "metrics": {"a": 1, "b": null, "c": "x"}}')
    record = read_record(tmp_path)
    assert record.more == {"mine": [1]} and record.metrics == {"a": 1, "b": None, "c": None}
    record.write(tmp_path)
    assert read_record(tmp_path) == record


def test_a_broken_record_among_several_is_a_failed_run_on_the_page(tmp_path: Path) -> None:
    for name, text in (("a", "null"), ("b", '{"status": "ok"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(text)
    runs = load_runs([tmp_path])
    assert [run.status for run in runs] == ["failed", "ok"] and "not a JSON object" in runs[0].reason


# -- a run in progress -------------------------------------------------------------------------------------------------


class Logger:
    def __init__(self, folder: Path, config: dict[str, Any], job_type: str = "train") -> None:
        self.said: list[Any] = [job_type]
        RUNNING.append(self)

    def mirror(self, rows: Any) -> None:
        self.said.append(len(rows))

    def finish(self, metrics: Any = None, failed: bool = False, reason: str = "") -> None:
        self.said.append(f"failed: {reason}" if failed else metrics)


RUNNING: list[Logger] = []
LOGGED = CONFIG | {"logger": {"_target_": f"{__name__}.Logger", "_partial_": True}}


def test_a_run_says_running_from_the_first_second_and_ok_at_the_end(tmp_path: Path) -> None:
    with RunInProgress(LOGGED, tmp_path, "python train.py", earlier={"start_norm": 1}) as run:
        first = read_record(tmp_path)
        assert (first.status, first.facts, first.seeds) == ("running", {"start_norm": 1}, {"seed": 3})
        run.set_facts({"llm": "x"})
        assert read_record(tmp_path).facts == {"llm": "x"} and read_record(tmp_path).wall_seconds is None
        recorder = run.open_recorder({"task": "caption"}, job_type="evaluate")
        recorder.metrics["a"] = 0.5
        run.gather(recorder, [])
        run.finish_record([], None)
    assert RUNNING.pop().said == ["evaluate", 0, {"a": 0.5}]
    last = read_record(tmp_path)
    assert (last.status, last.reason, last.metrics) == ("ok", None, {"a": 0.5}) and last.wall_seconds is not None
    assert last.is_of(CONFIG) and not last.is_of(CONFIG | {"seed": 4})


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (RuntimeError("the plug\n was pulled"), "failed", "RuntimeError: the plug was pulled"),
        (UserError("data: no"), "failed", "UserError: data: no"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt: KeyboardInterrupt"),
        (SystemExit(143), "interrupted", "SystemExit: 143"),
    ],
)
def test_a_run_that_ends_early_says_why_and_so_does_its_logger(
    tmp_path: Path, error: BaseException, status: str, reason: str
) -> None:
    with pytest.raises(type(error)), RunInProgress(LOGGED, tmp_path, "") as run:
        run.set_facts({"llm": "x"})
        run.open_recorder({})
        raise error
    found = read_record(tmp_path)
    assert (found.status, found.reason, found.facts) == (status, reason, {"llm": "x"})
    assert RUNNING.pop().said == ["train", 0, f"failed: {reason if status == 'failed' else ''}"]


def test_a_rank_that_is_not_the_first_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), RunInProgress(LOGGED, tmp_path, "", is_main=False) as run:
        recorder = run.open_recorder({})
        run.gather(recorder, [])
        assert run.finish_record([], 1).status == "ok"
        raise RuntimeError
    assert list(tmp_path.iterdir()) == [] and RUNNING == []


def test_a_record_of_nothing_has_every_key_that_readers_ask_for() -> None:
    assert {"status", "config", "command", "metrics", "facts", "git", "versions"} <= RunRecord().to_dict().keys()
