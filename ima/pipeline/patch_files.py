"""What a measurement leaves on disk, and among it the patch maps: `patches.json`, with the media they are drawn on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ima.alignment.logit_lens import Lens
from ima.alignment.measurement import Measurement, write_measurement
from ima.core.files import write_atomic
from ima.core.types import Sample
from ima.models.adapters.base import Cell
from ima.pipeline.predictions import files_of

NUM_COLUMNS = 2  # of the frames of a clip, as they are shown
NO_PLACE = "this adapter's tokens have no place on the medium"


def write_measured(
    folder: Path,
    measurement: Measurement,
    lens: Lens | None,
    facts: dict[str, Any],
    evaluator: Any,
    samples: Sequence[Sample],
) -> None:
    """All files that the last measurement leaves."""
    write_measurement(folder, measurement, lens, facts)
    write_patches(folder, measurement, evaluator, samples)


def write_patches(folder: Path, measurement: Measurement, evaluator: Any, samples: Sequence[Sample]) -> None:
    groups = measurement.groups
    if groups is None or not groups.mapped or groups.patches is None:
        return
    by_id = {sample.id: sample for sample in samples}
    media = []
    for number, entry in enumerate(groups.mapped):
        sample = by_id[entry["sample"]]
        cells = cells_of(evaluator, groups.beside.num_features, len(entry["tokens"]))
        rectangles = [on_frames(cell, sample.modality) for cell in cells]
        tokens = [token | {"places": places} for token, places in zip(entry["tokens"], rectangles, strict=True)]
        note = {} if any(rectangles) else {"note": NO_PLACE}
        files = files_of(folder, evaluator.source, sample, f"patches-{number}")
        media.append(entry | {"tokens": tokens, "reference": sample.references[0]} | files | note)
    facts = {"layer": groups.patches.layer, "media": media}
    write_atomic(folder / "patches.json", json.dumps(facts, ensure_ascii=False) + "\n")


def cells_of(evaluator: Any, num_encoder: int, num_percepts: int) -> list[Cell | None]:
    """None for all of them where there is no adapter of ours."""
    of = getattr(evaluator.module, "adapter_of", None)
    cells: list[Cell | None] = [] if of is None else of(evaluator.channel).places(num_encoder, num_percepts)
    return cells if len(cells) == num_percepts else [None] * num_percepts


def on_frames(cell: Cell | None, modality: str) -> list[Cell]:
    """Rectangles on the shown picture: of a clip one on each of its four frames."""
    if cell is None:
        return []
    if modality != "video":
        return [cell]
    left, top, width, height = (side / NUM_COLUMNS for side in cell)
    corners = [(column / NUM_COLUMNS, row / NUM_COLUMNS) for row in range(NUM_COLUMNS) for column in range(NUM_COLUMNS)]
    return [(left + x, top + y, width, height) for x, y in corners]
