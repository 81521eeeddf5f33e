"""What hostile files of tests are made of: each makes the file `canary` when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

Json = dict[str, Any]
TINY = ["llm=tiny", "data=shapes", "data.num_train=12", "data.num_test=4", "data.size=32", "adapter=linear",
        "trainer.accelerator=cpu", "loader.batch_size=6", "task.max_new_tokens=2", "logger=none", "encoder=noise",
        "encoder.dim=8", "encoder.num_tokens=4", "trainer.max_epochs=1", "alignment=none"]  # fmt: skip


class Pickled:
    """Makes a file when it is unpickled freely."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.canary), "w")


def write_pickle(path: Path, canary: Path) -> Path:
    torch.save({"mm_projector.0.weight": torch.zeros(2, 2), "evil": Pickled(canary)}, path)
    return path


def write_code(folder: Path, name: str, canary: Path, rest: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.py"
    path.write_text(f"import pathlib\npathlib.Path({str(canary)!r}).touch()\n{rest}")
    return path


def one_line(err: str, *parts: str) -> None:
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for part in parts:
        assert part in err, err
