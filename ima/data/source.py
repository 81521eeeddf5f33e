"""What every data source offers: named splits of samples, and the medium of a sample on demand.

A source hides where its examples come from (rendered from a seed, read from files). Samples carry text and facts
only, so that a whole split is cheap to list; the picture is made or read when `medium` is called.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from PIL import Image

from ima.types import Sample


@runtime_checkable
class Source(Protocol):
    """Deterministic: the same arguments give the same samples and the same pixels, in any order of calls.

    `fingerprint` changes whenever a medium would change; feature caches are keyed by it and the sample's id.
    """

    name: str
    modality: str
    splits: tuple[str, ...]

    @property
    def fingerprint(self) -> str: ...

    def samples(self, split: str) -> list[Sample]: ...

    def medium(self, sample: Sample) -> Image.Image: ...
