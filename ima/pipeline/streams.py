"""What is measured of each stream of a run: its evaluator, its alignment, its tasks; and the table of all of them.

A run of one task has one such measure, whose metrics are the run's. In a mixture the names of metrics, and of tracks
in rows and predictions, begin with the entry's name.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ima.core.files import write_atomic
from ima.core.metric_names import VAL_LOSS
from ima.models.multimodal import MultimodalModel
from ima.pipeline.callbacks import AlignmentLogger, GenerationScorer
from ima.pipeline.data_checks import PreparedSamples
from ima.pipeline.evaluator import Evaluator
from ima.pipeline.moments import Part
from ima.pipeline.parts import Parts, TaskStream
from ima.pipeline.predictions import Final
from ima.pipeline.recorder import Recorder
from ima.report.entry_table import csv_of, entry_lines, text_rows
from ima.runs.record import RunRecord


@dataclasses.dataclass
class Measure:
    stream: TaskStream
    recorder: Recorder
    evaluator: Evaluator
    scorer: GenerationScorer
    parts: list[Part]

    @property
    def final(self) -> Final:
        return self.stream.name, self.scorer.final, self.stream.task, self.stream.source


def measures_of(
    parts: Parts, model: MultimodalModel, prepared: Sequence[PreparedSamples], recorder: Recorder, folder: Path
) -> list[Measure]:
    """In the order of the streams. Sums of a mixture's entry lie in a folder of its name."""
    loader, out = parts.loader, []
    for stream, one in zip(parts.streams, prepared, strict=True):
        facts = facts_of(stream)
        mine = recorder.of_entry(stream.name, facts) if stream.name else recorder
        evaluator = Evaluator(
            model, stream.task, stream.source, stream.percepts, loader.eval_batch_size, loader.num_workers,
            stream.channel.name, loader.max_tokens,
        )  # fmt: skip
        scorer = GenerationScorer(evaluator, one.tracks, one.controls, parts.evaluation, mine)
        place = folder / "entries" / stream.name if stream.name else folder
        if stream.name and recorder.writer is not None:
            place.mkdir(parents=True, exist_ok=True)
        logger = AlignmentLogger(evaluator, one.val, parts.alignment, mine, place)
        out.append(Measure(stream, mine, evaluator, scorer, [*([logger] if one.val else []), scorer]))
    return out


def facts_of(stream: TaskStream) -> dict[str, Any]:
    """The fields of rows that tell what a stream is."""
    return {"task": stream.task.name, "dataset_a": stream.source.name, "modality_a": stream.source.modality}


def gather(recorder: Recorder, measures: Sequence[Measure]) -> None:
    """The metrics of all entries into the run's, and the mean validation loss of them."""
    losses = []
    for measure in measures:
        if measure.recorder is not recorder:
            name, metrics = measure.stream.name, measure.recorder.metrics
            recorder.metrics |= {f"{name}/{key}": value for key, value in metrics.items()}
            losses += [metrics[VAL_LOSS]] if VAL_LOSS in metrics else []
    if losses:
        recorder.metrics[VAL_LOSS] = statistics.fmean(losses)


def seconds_of(measures: Sequence[Measure]) -> dict[str, float]:
    out: dict[str, float] = {}
    for measure in measures:
        for key, value in measure.evaluator.seconds.items():
            out[key] = out.get(key, 0.0) + value
    return out


def write_table(folder: Path, record: RunRecord) -> None:
    """`tasks.csv` of a mixture."""
    entries = record.facts.get("entries")
    if not entries:
        return
    write_atomic(folder / "tasks.csv", csv_of(entry_lines(record.metrics, entries)))


def print_table(record: RunRecord) -> None:
    """The same on the terminal."""
    rows = text_rows(entry_lines(record.metrics, record.facts["entries"]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
