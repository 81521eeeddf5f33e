"""What a person looks at: predictions of every test example as lines, and a few with their pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ima.data.source import Source
from ima.results import to_json, write_atomic
from ima.tasks.base import Prediction, Task

NUM_SHOWN = 12
PICTURE_SIZE = 160


def write_samples(
    folder: Path, final: Mapping[str, Sequence[Prediction]], task: Task, source: Source, epoch: int
) -> None:
    """`predictions.jsonl` (all, with per-example scores) and `samples.jsonl` with pictures in `media/`."""
    lines, shown = [], []
    for track, predictions in final.items():
        scores = task.per_example(predictions)
        for prediction, score in zip(predictions, scores, strict=True):
            sample = prediction.sample
            line: dict[str, Any] = {"id": sample.id, "track": track, "cluster": sample.cluster, "epoch": epoch}
            line |= {"references": list(sample.references), "prediction": prediction.text}
            line = score | line  # the blind row's samples are those of another track: `track` is not theirs
            lines.append(line)
        if track != "blind":
            num = min(NUM_SHOWN, len(predictions))
            offset = len(lines) - len(predictions)
            for index in range(num):
                position = index * len(predictions) // num
                image = picture(folder, source, predictions[position], f"{track}-{index:02d}")
                shown.append(lines[offset + position] | {"image": image})
    for name, content in (("predictions.jsonl", lines), ("samples.jsonl", shown)):
        write_atomic(folder / name, "".join(json.dumps(to_json(line)) + "\n" for line in content))


def picture(folder: Path, source: Source, prediction: Prediction, stem: str) -> str | None:
    """Path below `folder` of a small PNG of the sample; None for a source without pictures."""
    if source.modality != "image":
        return None
    image = source.medium(prediction.sample).convert("RGB")
    image.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write_atomic(folder / "media" / f"{stem}.png", buffer.getvalue())
    return f"media/{stem}.png"
