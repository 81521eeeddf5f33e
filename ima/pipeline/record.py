"""A run while it goes on: its record, clock, rows and logger, and what is written when it ends, well or not.

Training, evaluating a run and evaluating a foreign model are stories told inside a `RunInProgress`. The order of writes
is what a kill relies on: the record first (running), everything else, the record last (ok).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from hydra.utils import get_object, instantiate
from lightning.pytorch.loggers import Logger

from ima.core.files import write_atomic
from ima.core.moved_names import current_name
from ima.core.progress import timed
from ima.core.types import Row
from ima.pipeline.predictions import write_all_predictions
from ima.pipeline.recorder import Recorder, drop_unfinished
from ima.pipeline.streams import Measure, gather, seconds_of, write_table
from ima.runs.record import RunRecord, record_failure, start_record
from ima.runs.results import RowWriter, read_rows


class RunInProgress:
    """A context manager: entered, the record says running; left by an exception, it says failed or interrupted and why,
    and so does the logger. Only the first rank (is_main) writes.

    earlier: facts of the part of the run that was killed, where it is resumed."""

    def __init__(
        self,
        config: dict[str, Any],
        folder: Path,
        command: str,
        is_main: bool = True,
        earlier: Mapping[str, Any] | None = None,
    ) -> None:
        self.started = time.perf_counter()
        self.folder, self.is_main = folder, is_main
        self.record = start_record(config, command, earlier)
        self.clock: dict[str, float] = {}
        self.logger: Any = None

    def __enter__(self) -> RunInProgress:
        self.save()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        try:
            if self.is_main:
                record_failure(self.record, self.folder, error)
        finally:
            if self.logger is not None:
                self.logger.finish(failed=True, reason=self.record.reason if self.record.status == "failed" else "")

    def save(self) -> None:
        if self.is_main:
            self.record.write(self.folder)

    def timed(self, phase: str) -> timed:
        """Seconds of a phase, for the facts."""
        return timed(self.clock, phase)

    def set_facts(self, facts: dict[str, Any]) -> None:
        self.record.facts = facts
        self.save()

    def open_recorder(
        self, facts: dict[str, Any], resumed: tuple[int, int, int | None] | None = None, job_type: str | None = None
    ) -> Recorder:
        """The recorder of `rows.jsonl`, mirrored by the logger of the config. facts: fields of every row.

        resumed: the step and the measured step up to which rows of before are kept, and how many these are; None for a
        run that begins. job_type: what the logger calls the run, where the config does not say it.
        """
        path = self.folder / "rows.jsonl"
        if resumed is None and self.is_main:
            write_atomic(path, "")
        writer = RowWriter(path) if self.is_main else None
        recorder = Recorder(self.folder.name, writer, facts)
        if writer is None:
            return recorder
        if resumed is not None:
            drop_unfinished(writer, *resumed)
        node = self.record.config.get("logger")
        if node and not is_lightnings(node):
            more = {"job_type": job_type} if job_type and "job_type" not in node else {}
            self.logger = instantiate(node)(self.folder, self.record.config, **more)
            if hasattr(self.logger, "mirror"):  # one that is told of rows; others read the file
                self.logger.mirror(kept_rows(path))
                recorder.mirrors.append(self.logger.mirror)
        return recorder

    def gather(self, recorder: Recorder, measures: Sequence[Measure]) -> None:
        """The metrics and seconds of all entries into the record."""
        gather(recorder, measures)
        seconds = self.clock | seconds_of(measures)
        self.record.facts["seconds"] = {key: round(value, 2) for key, value in seconds.items()}
        self.record.metrics = dict(recorder.metrics)

    def stop(self, reason: str) -> RunRecord:
        """A run that ends before it is finished and has not failed."""
        self.record.status, self.record.reason = "interrupted", reason
        self.save()
        if self.logger is not None:
            self.logger.finish(failed=True)
        return self.record

    def finish_record(self, measures: Sequence[Measure], epoch: int | None) -> RunRecord:
        """Write predictions, table and, last, the record. epoch: which the predictions are of."""
        record = self.record
        if self.is_main:
            write_all_predictions(self.folder, [measure.final for measure in measures], epoch)
            write_table(self.folder, record)
        record.status, record.wall_seconds = "ok", round(time.perf_counter() - self.started, 2)
        self.save()
        if self.logger is not None:
            self.logger.finish(record.metrics)
        return record


def is_lightnings(node: Mapping[str, Any]) -> bool:
    """Whether a logger is of Lightning's kind, which the trainer calls; our own are told of rows."""
    found = get_object(current_name(str(node.get("_target_"))))
    return isinstance(found, type) and issubclass(found, Logger)


def kept_rows(path: Path) -> list[Row]:
    return [Row(**row | {"value": math.nan if row["value"] is None else row["value"]}) for row in read_rows(path)]
