"""What every data source offers: named splits of samples, and the medium of a sample on demand.

A source hides where its examples come from (rendered from a seed, read from files). Samples carry text and facts
only, so that a whole split is cheap to list; the picture, sound or clip is made or read when `medium` is called.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ima.core.errors import UserError
from ima.core.media import Medium
from ima.core.types import Sample


class MediumError(UserError):
    """The medium of one sample is missing or damaged; `data.on_bad_medium: skip` leaves such samples out."""


@runtime_checkable
class Source(Protocol):
    """Deterministic: the same arguments give the same samples and the same media, in any order of calls.

    `fingerprint` changes whenever a medium would change; feature caches are keyed by it and the medium's id.
    `controls` names ways to spoil a medium that the end of a run measures beside the first test track (frames in
    random order, ...); `control` gives the spoilt twin of a sample: another id, the same cluster and texts.
    """

    name: str
    modality: str
    splits: tuple[str, ...]
    controls: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str: ...

    def samples(self, split: str) -> list[Sample]: ...

    def medium(self, sample: Sample) -> Medium: ...

    def control(self, sample: Sample, name: str) -> Sample:
        raise UserError(f"{self.name} has no control {name!r}; it has: {', '.join(self.controls) or 'none'}")
