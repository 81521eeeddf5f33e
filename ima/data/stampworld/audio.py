"""Captions of sounds: one recording, two at the same time, or one after the other, five seconds each.

Splits: train; val (track V0) and T0 (the training recordings in pairs of nouns that training never pairs, and alone, at
other moments, levels and noise: what was memorised, in new mixtures); T1 (second recordings of known nouns, only with
Debian's scratch: few, an indication); T2 (recordings of nouns that training never heard; scored by category and
order). A function of (version, track, index); `seed` changes the training mixes and nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ima.core.errors import UserError, nearest
from ima.core.keyed_random import Draws, hash_unit
from ima.core.media import Sound
from ima.core.types import Sample
from ima.data.source import Source
from ima.data.stampworld.mixing import layers_of, shuffled
from ima.data.stampworld.sound_words import sound_references
from ima.data.stampworld.sounds import RATE, Recording, SoundCatalog
from ima.tasks.metrics.nouns import NounReader

VERSION = "stampworld-audio-1"
KINDS = {"single": 0.4, "together": 0.25, "sequence": 0.35}
SPLIT_OF = {"train": "train", "V0": "train", "T0": "train", "T1": "T1", "T2": "T2"}
HELD_RATIO = 0.15
SAME_RATIO = 0.5  # of pairs whose second noun is of the first one's category
FEW = frozenset({"cat", "cow", "cymbal", "dog", "drum", "duck", "goose", "horse", "owl", "rooster", "sea lion",
                 "trumpet"})  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Mix:
    """One sound to be: `recordings` in the order heard (for together: any)."""

    id: str
    track: str
    kind: str
    recordings: tuple[Recording, ...]

    @property
    def nouns(self) -> tuple[str, ...]:
        return tuple(recording.noun for recording in self.recordings)


class StampAudio(Source):
    """Sounds with ground truth in `facts`: "kind" (single, together, sequence), "nouns", "order" (of a sequence).

    nouns: "all", "few" (twelve) or a list of those that train, T0 and T1 use; T2 always has all its own. num_*: sounds
    of each track. alone: one recording in each sound instead of one or two, which is learnt sooner. folders, table: own
    recordings by package instead of Debian's, with a table like sounds.tsv.
    """

    modality = "audio"
    splits = ("train", "val", "T0", "T1", "T2")
    controls = ("shuffled",)
    RANGES = {"num_train": (1, None), "num_val": (1, None), "num_t0": (1, None), "num_t1": (1, None),
              "num_t2": (1, None)}  # fmt: skip

    def __init__(
        self,
        nouns: str | Iterable[str] = "all",
        num_train: int = 1200,
        num_val: int = 96,
        num_t0: int = 200,
        num_t1: int = 96,
        num_t2: int = 64,
        seed: int = 0,
        folders: Mapping[str, str] | None = None,
        table: str | None = None,
        alone: bool = False,
    ) -> None:
        nums = {"train": num_train, "V0": num_val, "T0": num_t0, "T1": num_t1, "T2": num_t2}
        for track, value in nums.items():
            if value < 1:
                raise UserError(f"num_{ {'V0': 'val'}.get(track, track.lower()) }: {value} is too small; at least 1")
        self.name = "stampworld/audio"
        self.catalog = SoundCatalog(folders, table)
        self.nouns = self._chosen(nouns)
        self.seed, self.nums, self.alone = seed, nums, alone
        self._recordings = {recording.key: recording for recording in self.catalog.recordings}
        self._reader = NounReader(self.catalog.nouns)

    @property
    def fingerprint(self) -> str:
        nouns = hashlib.sha256(repr(sorted(self.nouns)).encode()).hexdigest()
        facts = (VERSION, self.name, self.catalog.manifest, nouns, self.seed, self.alone)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def samples(self, split: str) -> list[Sample]:
        """The samples of one split, always in the same order. A track without recordings is empty."""
        return [self._sample(split, mix) for mix in self.mixes(split)]

    def medium(self, sample: Sample) -> Sound:
        """Five seconds, mono, 44.1 kHz."""
        wave = np.stack(self.layers(sample)).sum(0)
        if sample.facts.get("spoilt") == "shuffled":
            wave = shuffled(Draws(VERSION, "shuffled", sample.medium_key), wave)
        return Sound(wave, RATE)

    def layers(self, sample: Sample) -> list[np.ndarray]:
        """What the medium is the sum of: one layer for each recording, one of noise."""
        waves = [self.catalog.wave(self._recordings[key]) for key in sample.facts["recordings"]]
        seed = self.seed if sample.split == "train" else 0
        draws = Draws(VERSION, "waves", sample.facts["mix"], seed)
        return layers_of(draws, sample.facts["kind"], waves)

    def control(self, sample: Sample, name: str) -> Sample:
        """shuffled: half-second blocks in another order, so that nothing is left of first and second."""
        if name not in self.controls:
            return super().control(sample, name)
        medium_id = f"{sample.medium_key}/{name}"
        facts = {**sample.facts, "spoilt": name}
        return dataclasses.replace(sample, id=f"{sample.id}/{name}", medium_id=medium_id, facts=facts)

    def mixes(self, split: str) -> list[Mix]:
        if split not in self.splits:
            raise UserError(f"split {split!r} does not exist in {self.name}; {nearest(split, self.splits)}")
        track = "V0" if split == "val" else split
        return [self._mix(track, index) for index in range(self.nums[track])] if self._pool(track) else []

    def related(self, noun: str, other: str) -> bool:
        """A hen and a chicken in one sound could not be told apart by what is said."""
        return noun == other or noun in self._reader.above[other] or other in self._reader.above[noun]

    def _chosen(self, nouns: str | Iterable[str]) -> frozenset[str]:
        known = {recording.noun for recording in self.catalog.recordings if recording.split == "train"}
        groups = {"all": known, "few": known & FEW}
        chosen = (groups.get(nouns) or {nouns}) if isinstance(nouns, str) else set(nouns)
        for noun in sorted(chosen - known):
            raise UserError(
                f"nouns: no training recording is of {noun!r}; 'all', 'few' or a list; {nearest(noun, known)}"
            )
        if not chosen:
            raise UserError("nouns: the list is empty; 'all', 'few', or at least one noun")
        return frozenset(chosen)

    @functools.cache  # noqa: B019 (a source lives as long as the run)
    def _pool(self, track: str) -> dict[str, tuple[Recording, ...]]:
        """The recordings that a track may use, by noun."""
        pool: dict[str, list[Recording]] = {}
        for recording in self.catalog.recordings:
            if recording.split == SPLIT_OF[track] and (recording.noun in self.nouns or track == "T2"):
                pool.setdefault(recording.noun, []).append(recording)
        return {noun: tuple(found) for noun, found in sorted(pool.items())}

    def _mix(self, track: str, index: int) -> Mix:
        pool, seed = self._pool(track), self.seed if track == "train" else 0
        draws = Draws(VERSION, "mix", track, index, seed)
        round_, place = divmod(index, len(pool))  # every noun comes first equally often
        first = Draws(VERSION, "round", track, round_, seed).shuffled(list(pool))[place]
        kind = "single" if self.alone else draws.weighted(list(KINDS), list(KINDS.values()))
        nouns = [first]
        if kind != "single":
            second = self._partner(draws, track, first)
            kind, nouns = (kind, [first, second]) if second else ("single", nouns)
        if kind == "sequence" and draws.chance(0.5):
            nouns = nouns[::-1]
        recordings = tuple(draws.choice(pool[noun]) for noun in nouns)
        return Mix(f"{self.name}/{track}/{index:05d}", track, kind, recordings)

    def _partner(self, draws: Draws, track: str, first: str) -> str | None:
        """Another noun for `first`, half of the time of its category; None where no pair is allowed."""
        category = self.catalog.nouns[first].category
        allowed = [
            noun for noun in self._pool(track)
            if not self.related(first, noun)
            and (track not in ("train", "V0", "T0") or held_pair(first, noun) == (track != "train"))
        ]  # fmt: skip
        same = [noun for noun in allowed if self.catalog.nouns[noun].category == category]
        if not allowed:
            return None
        return draws.choice(same if same and draws.chance(SAME_RATIO) else allowed)

    def _sample(self, split: str, mix: Mix) -> Sample:
        said = [(self.catalog.nouns[r.noun].single, self.catalog.phrase(r)) for r in mix.recordings]
        return Sample(
            id=mix.id,
            split=split,
            track=mix.track,
            modality=self.modality,
            references=sound_references(mix.kind, said, "train" if split == "train" else "test"),
            cluster=mix.recordings[0].cluster,
            facts=self.facts(mix),
        )

    def facts(self, mix: Mix) -> dict[str, Any]:
        categories = tuple(self.catalog.nouns[noun].category for noun in mix.nouns)
        facts: dict[str, Any] = {
            "nouns": mix.nouns,
            "category": categories[0] if len(set(categories)) == 1 else categories,
            "kind": mix.kind,
            "recordings": tuple(recording.key for recording in mix.recordings),
            "mix": mix.id,
            "vocabulary": "sounds",
        }
        return facts | ({"order": mix.nouns} if mix.kind == "sequence" else {})


@functools.cache
def held_pair(noun: str, other: str) -> bool:
    """Pairs that no training sound mixes."""
    return hash_unit(VERSION, "pair", *sorted((noun, other))) < HELD_RATIO
