"""The notebooks run from top to bottom, offline, on a tiny run and a tiny model; git holds them without outputs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_are_two_of_them() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["inside_a_frozen_llm", "your_own_model"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_are_small_and_hold_no_outputs(path: Path) -> None:
    book = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert path.stat().st_size < 20_000 and code
    for cell in code:
        assert cell["outputs"] == [] and cell["execution_count"] is None
    assert max(len(line.rstrip("\n")) for cell in book["cells"] for line in cell["source"]) <= 120


@pytest.mark.docs
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_run_from_top_to_bottom(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "no notebook client here: pip install 'ima[docs]'"
    nbformat = pytest.importorskip("nbformat", reason=reason)
    nbclient = pytest.importorskip("nbclient", reason=reason)
    pytest.importorskip("ipykernel", reason=reason)
    (tmp_path / "outputs").mkdir()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "outputs/demo").symlink_to(ROOT / "tests/artefacts/run")
    for name, value in {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "agg", "IMA_CACHE": str(tmp_path / "cache"), "IPYTHONDIR": str(tmp_path / "ipython"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path / "notebooks")}}).execute()
    assert all(cell.get("execution_count") for cell in book.cells if cell.cell_type == "code")
