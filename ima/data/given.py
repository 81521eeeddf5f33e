"""Media that a person hands over in Python: paths, PIL pictures, arrays, sounds, clips, as a source like any other."""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ima.core.errors import UserError
from ima.core.media import Clip, Frames, Medium, Sound
from ima.core.types import Sample
from ima.data.decode import VideoFile, read_image, read_sound
from ima.data.source import Source
from ima.tasks.base import Metric, Prediction, Task

FULL = 255.0  # of a picture's bytes
KINDS = {
    "image": "a path, a PIL image, or an array (height, width, 3) of bytes or of numbers from 0 to 1",
    "audio": "a path, or (wave, rate) with a one-dimensional wave",
    "video": "a path, or a list of pictures",
}


def as_medium(value: Any, modality: str) -> Medium:
    """A picture, sound or clip of what a person has at hand. Raises UserError that says what is taken."""
    if isinstance(value, (str, Path)):
        path = Path(value)
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        if modality == "video":
            return VideoFile(path)
        return read_sound(path) if modality == "audio" else read_image(path)
    if modality == "image":
        return as_image(value)
    if modality == "audio":
        if isinstance(value, Sound):
            return value
        if isinstance(value, tuple) and len(value) == 2 and np.ndim(value[0]) == 1:
            return Sound(np.ascontiguousarray(value[0], dtype=np.float32), int(value[1]))
    elif isinstance(value, Clip):
        return value
    elif isinstance(value, (list, tuple)) or np.ndim(value) == 4:
        return Frames(tuple(as_image(frame) for frame in value))
    raise UserError(f"a {modality} of type {type(value).__name__} is not known; give {KINDS[modality]}")


def guess_modality(media: Any) -> str:
    """Of a medium, or of the first in a list of them: a file by its name, (wave, rate) a sound, a list in a list or
    four dimensions a clip; a picture otherwise."""
    first = media[0] if isinstance(media, list) and media else media
    if isinstance(first, (str, Path)):
        kind = (mimetypes.guess_type(str(first))[0] or "").partition("/")[0]
        return kind if kind in KINDS else "image"
    if isinstance(first, Sound) or (isinstance(first, tuple) and len(first) == 2 and np.ndim(first[0]) == 1):
        return "audio"
    clip = isinstance(first, (Clip, list)) or (isinstance(first, np.ndarray) and first.ndim == 4)
    return "video" if clip else "image"


def as_image(value: Any) -> Image.Image:
    if isinstance(value, Image.Image):
        return value.convert("RGB")
    array = np.asarray(value)
    if array.ndim != 3 or array.shape[-1] != 3:
        raise UserError(f"a picture of shape {array.shape} is not known; give {KINDS['image']}")
    if array.dtype != np.uint8:
        array = (np.clip(array, 0, 1) * FULL).round().astype(np.uint8)
    return Image.fromarray(array)


class GivenMedia(Source):
    """One sample for each medium, in the split "given". texts: what is said about each, where it is known. prompts:
    what is asked about each; None for the task's own."""

    name = "given"
    splits = ("given",)

    def __init__(
        self, media: Sequence[Any], modality: str, texts: Sequence[str] = (), prompts: Sequence[str] = ()
    ) -> None:
        for name, given in (("texts", texts), ("prompts", prompts)):
            if given and len(given) != len(media):
                raise UserError(f"{name}: {len(given)} for {len(media)} media; give one for each")
        self.modality = modality
        self._media = [as_medium(value, modality) for value in media]
        self._samples = [
            Sample(
                id=f"given/{index}",
                split="given",
                track="given",
                modality=modality,
                references=(texts[index],) if texts else (),
                question=prompts[index] if prompts else "",
            )
            for index in range(len(media))
        ]

    @property
    def fingerprint(self) -> str:
        names = "|".join(str(id(medium)) for medium in self._media)
        return hashlib.sha256(names.encode()).hexdigest()[:16]

    def samples(self, split: str) -> list[Sample]:
        return list(self._samples)

    def medium(self, sample: Sample) -> Medium:
        return self._media[int(sample.id.rpartition("/")[2])]


class GivenTask(Task):
    """The prompts and texts of `GivenMedia`. task: whose prompt is used for a sample without one (None: no prompt)."""

    name = "given"
    headline = ""

    def __init__(self, task: Task | None = None, max_new_tokens: int = 32, num_beams: int = 1) -> None:
        self.task = task
        self.max_new_tokens = max_new_tokens if task is None else task.max_new_tokens
        self.num_beams = num_beams if task is None else task.num_beams

    def prompt_for(self, sample: Sample) -> str:
        if self.task is None:
            return sample.question
        if sample.question and "{question}" not in getattr(self.task, "prompt", ""):
            return sample.question
        return self.task.prompt_for(sample)

    def target_for(self, sample: Sample, draw: int) -> str:
        if not sample.references:
            raise UserError("texts: none were given; give what is said about each medium")
        return f" {sample.references[0].strip()}"

    def clean(self, text: str) -> str:
        return text.strip() if self.task is None else self.task.clean(text)

    def score(self, predictions: Sequence[Prediction], idf_references: Sequence[Sequence[str]]) -> list[Metric]:
        return []

    def per_example(
        self, predictions: Sequence[Prediction], idf_references: Sequence[Sequence[str]] = ()
    ) -> list[dict[str, Any]]:
        return [{} for _ in predictions]
