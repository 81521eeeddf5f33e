"""One run as the report sees it: its folder, result, rows and samples."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from ima.core.metric_names import current_metric


@dataclasses.dataclass
class Run:
    """One run folder. `rows` and `samples` are empty where they were not asked for or not there."""

    folder: Path
    name: str
    result: dict[str, Any]
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    samples: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def status(self) -> str:
        return str(self.result.get("status") or "unknown")

    @property
    def metrics(self) -> dict[str, float | None]:
        """Flat name -> number, None where it was not measured (JSON has no NaN)."""
        return {current_metric(str(name)): number(value) for name, value in self.result["metrics"].items()}

    @property
    def reason(self) -> str:
        return str(self.result.get("reason") or "")


def number(value: Any) -> float | None:
    """A finite float, or None for everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None
