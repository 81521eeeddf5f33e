"""The W&B mirror of a run: scalars while it goes, charts by layer, one long table of all rows, the resolved config.

The run's files are the truth: whatever is here can be rebuilt from them, so a mirror that cannot be had (no key, no
network) costs one line and never a run. Offline runs lie in `<run>/wandb` and are uploaded with `wandb sync`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ima.core.metric_names import layer_name, metric_name
from ima.core.types import ROW_FIELDS, Row
from ima.pipeline.loggers.wandb_charts import Charts

INIT_SECONDS = 20.0
REACH_SECONDS = 3.0
TABLE_FIELDS = tuple(field for field in ROW_FIELDS if field not in ("run", "schema"))


class WandbMirror:
    """mode: offline, or online (falls back to offline with one line where W&B cannot be reached)."""

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        mode: Literal["offline", "online"] = "offline",
        project: str = "ima",
        entity: str | None = None,
        group: str | None = None,
        job_type: str = "train",
        tags: Sequence[str] = (),
    ) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        self.run: Any = None
        self.table: Any = None
        self.unlogged = False
        self.entries = list(config.get("mixture") or ())
        self.charts, self.to_draw = Charts(bool(self.entries)), set[tuple[str, str | None]]()
        arguments: dict[str, Any] = {
            "dir": str(folder), "project": project, "entity": entity, "group": group, "job_type": job_type,
            "tags": list(tags), "name": folder.name, "config": dict(config), "reinit": "create_new",
        }  # fmt: skip
        for attempt in (mode, "offline") if mode == "online" else (mode,):
            try:
                import wandb

                if attempt == "online":
                    reach(wandb.Settings().base_url)
                settings = wandb.Settings(init_timeout=INIT_SECONDS, console="off", x_disable_stats=True)
                self.run = wandb.init(mode=attempt, settings=settings, **arguments)
                break
            except Exception as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                print(
                    f"warning: logger: W&B {attempt} is not there ({reason[:120]}); the run's files have everything",
                    file=sys.stderr,
                )
        if self.run is not None:
            self.table = wandb.Table(columns=list(TABLE_FIELDS), log_mode="INCREMENTAL")
            self.run.define_metric("epoch", hidden=True)
            self.run.define_metric("trainer/global_step", hidden=True)
            self.run.define_metric("train/*", step_metric="trainer/global_step")
            self.run.define_metric("ima_layer/*", step_metric="epoch", hidden=True)
            self.run.define_metric("ima*", step_metric="epoch")
            self.run.define_metric("val/*", step_metric="epoch")
            for entry in self.entries:
                self.run.define_metric(f"{entry}/ima_layer/*", step_metric="epoch", hidden=True)
                self.run.define_metric(f"{entry}/ima*", step_metric="epoch")
                self.run.define_metric(f"{entry}/val/*", step_metric="epoch")

    def mirror(self, rows: Sequence[Row]) -> None:
        """Scalars by step; every row that is not of a single step also goes to the table."""
        if self.run is None:
            return
        by_step: dict[tuple[int | None, int | None], dict[str, float]] = {}
        for row in rows:
            name = scalar_name(row, bool(self.entries))
            if name is not None:
                by_step.setdefault((row.epoch, row.step), {})[name] = row.value
            values = dataclasses.asdict(row)
            self.table.add_data(*(values[field] for field in TABLE_FIELDS))
        for (epoch, step), scalars in by_step.items():
            self.run.log(scalars | ({} if epoch is None else {"epoch": epoch}) | {"trainer/global_step": step})
        self.unlogged = self.unlogged or bool(rows)
        self.to_draw |= set(self.charts.add(rows))
        if any(row.split != "train" for row in rows):
            self._log_table()

    def _log_table(self) -> None:
        """Once per increment: a table without new rows would repeat its last ones."""
        if self.unlogged:
            self.run.log({"rows": self.table} | self.charts.logged(sorted(self.to_draw, key=str)))
        self.unlogged = False
        self.to_draw.clear()

    def finish(self, metrics: Mapping[str, float] | None = None, failed: bool = False) -> None:
        if self.run is None:
            return
        if metrics:
            self.run.summary.update(dict(metrics))
        self._log_table()
        picture = None if failed else self.charts.heat_map()
        if picture is not None:
            self.run.log({"charts/ima_heatmap": picture})
        self.run.finish(exit_code=1 if failed else 0)
        self.run = None


@contextlib.contextmanager
def failures_told(mirror: WandbMirror | None) -> Iterator[None]:
    """A run that fails or is interrupted inside is a failed one on W&B too."""
    try:
        yield
    except BaseException:
        if mirror is not None:
            mirror.finish(failed=True)
        raise


def reach(url: str) -> None:
    """Raises OSError at once where nobody answers at `url`: W&B itself tries again until its time is over. Behind a
    proxy nothing can be said."""
    if urllib.request.getproxies():
        return
    parts = urllib.parse.urlsplit(url)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    socket.create_connection((parts.hostname or "", port), timeout=REACH_SECONDS).close()


def scalar_name(row: Row, mixture: bool = False) -> str | None:
    """Name of the chart that a row belongs to, its metric's or its layer's; None for rows that only the table holds."""
    is_scalar = row.split == "train" or row.track is not None or row.score == "val_loss"
    if not is_scalar and (row.variant != "raw" or not row.score.startswith(("ima", "sim"))):
        return None
    return layer_name(row, mixture) or metric_name(row, mixture)
