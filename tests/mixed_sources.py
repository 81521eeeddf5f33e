"""Sources of other modalities for tests of mixtures, drawn as shapes (their encoders are noise and never look)."""

from __future__ import annotations

import dataclasses

from ima.core.types import Sample
from ima.data.shapes import Shapes


class SoundShapes(Shapes):
    modality = "audio"


class Albums(Shapes):
    """No picture, one, two or three of them for each sample in turn."""

    def samples(self, split: str) -> list[Sample]:
        found = super().samples(split)
        return [
            dataclasses.replace(sample, media=tuple(found[(index + more) % len(found)] for more in range(index % 4)))
            for index, sample in enumerate(found)
        ]
