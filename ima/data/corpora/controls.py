"""Clips of a corpus with their time taken away: the controls of StampWorld's clips, for films of any length.

"single_frame" shows the middle frame all the time; "shuffled_frames" cuts a clip into eight parts and puts them into
an order that is neither the true one nor its reverse, so that an encoder of eight frames sees the same ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from PIL import Image

from ima.core.media import Clip
from ima.core.types import Sample
from ima.data.stampworld.motions import control_order

CONTROLS = {"video": ("single_frame", "shuffled_frames")}  # modality -> names
NUM_PARTS = 8


@dataclasses.dataclass(frozen=True)
class Spoilt:
    """A clip as long as `clip` that shows it otherwise. key: what the order is drawn from."""

    clip: Clip
    name: str
    key: str

    @property
    def num_frames(self) -> int:
        return self.clip.num_frames

    @property
    def fps(self) -> float:
        return self.clip.fps

    def frames(self, indices: Sequence[int]) -> list[Image.Image]:
        return self.clip.frames([self.place(index) for index in indices])

    def place(self, index: int) -> int:
        """The frame of `clip` that stands at `index`."""
        num = self.num_frames
        parts = min(NUM_PARTS, num)
        if self.name == "single_frame" or parts < 3:  # two parts have no other order
            return num // 2
        starts = [part * num // parts for part in range(parts + 1)]
        part = next(part for part in range(parts) if index < starts[part + 1])
        found = control_order(self.name, parts, (self.key,))[part]
        return min(starts[found] + index - starts[part], starts[found + 1] - 1)


def spoil(sample: Sample, name: str) -> Sample:
    """The twin of a sample whose medium `Spoilt` is to show."""
    return dataclasses.replace(
        sample,
        id=f"{sample.id}/{name}",
        medium_id=f"{sample.medium_key}/{name}",
        facts={**sample.facts, "control": name, "control_of": sample.medium_key},
    )
