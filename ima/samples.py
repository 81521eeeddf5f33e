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
            offset = len(lines) - len(predictions)
            for index, position in enumerate(varied(predictions, NUM_SHOWN)):
                image = picture(folder, source, predictions[position], f"{track}-{index:02d}")
                shown.append(lines[offset + position] | {"image": image})
    for name, content in (("predictions.jsonl", lines), ("samples.jsonl", shown)):
        write_atomic(folder / name, "".join(json.dumps(to_json(line)) + "\n" for line in content))


def varied(predictions: Sequence[Prediction], num: int) -> list[int]:
    """Positions of up to `num` predictions, spread over what there is to say: one of each first reference before a
    second of any. Chosen by the references alone, never by the answers."""
    rounds: dict[str, list[int]] = {}
    for position, prediction in enumerate(predictions):
        rounds.setdefault(prediction.sample.references[0] if prediction.sample.references else "", []).append(position)
    firsts = [positions[0] for positions in rounds.values()]
    if len(firsts) >= num:
        return [firsts[index * len(firsts) // num] for index in range(num)]
    rest = [position for positions in rounds.values() for position in positions[1:]]
    return sorted(firsts + rest[: num - len(firsts)])


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
