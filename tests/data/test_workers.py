"""Loader processes where shared memory is small: fewer of them, and one line."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ima.data import workers
from ima.data.loader import eval_loader


@pytest.mark.parametrize(("free", "asked", "fed"), [(64, 4, 0), (600, 4, 2), (8192, 4, 4), (64, 0, 0)])
def test_no_more_workers_than_shared_memory_feeds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], free: int, asked: int, fed: int
) -> None:
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda path: SimpleNamespace(free=free << 20))
    workers.warn.cache_clear()
    assert workers.num_fed(asked) == workers.num_fed(asked) == fed
    said = capsys.readouterr().err
    assert said.count("\n") == (fed < asked) and (not said or f"{free} MB free, so {fed} loader processes" in said)
    collate: Any = list
    assert eval_loader([], collate, 2, num_workers=asked).num_workers == fed
