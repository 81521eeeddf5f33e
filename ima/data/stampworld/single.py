"""Single-object captions: one stamp, anywhere, on a procedural background, said to be "a cow".

Splits: train; val (track V0: training stamps in new views, V1: new stamps of known nouns); T0 (training stamps, new
views, new backgrounds), T1 (new stamps of known nouns), T2 (nouns that no training picture shows; scored by category).
Everything is a function of (version, split, stamp, view); `seed` changes the training views and nothing else, so
that all seeds are tested on the same pictures.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable

import PIL
from PIL import Image

from ima.core.errors import UserError, nearest
from ima.core.keyed_random import Draws, hash_unit
from ima.core.types import Sample
from ima.data.source import Source
from ima.data.stampworld import words
from ima.data.stampworld.catalog import Catalog, Stamp
from ima.data.stampworld.render import Placed, compose, pose

VERSION = "stampworld-1"
STAMP_SPLITS = {"train": ("train",), "T0": ("train",), "T1": ("T1",), "T2": ("T2",)}


class StampSingle(Source):
    """Pictures of one stamp each.

    nouns: "demo", "all", "few" or a list; T2 always shows all its unknown nouns. views: training pictures of each
    stamp; views_t0, views_t1: test pictures of each stamp. limit: at most so many training pictures, first one view of
    every stamp, then the second. svg: also the stamps that exist only as SVG (needs resvg_py).
    folder, table: own stamps instead of Debian's, with a table like stamps.tsv.
    """

    modality = "image"
    splits = ("train", "val", "T0", "T1", "T2")
    RANGES = {"views": (1, None), "views_t0": (1, None), "views_t1": (1, None), "size": (32, None), "limit": (1, None)}

    def __init__(
        self,
        nouns: str | Iterable[str] = "demo",
        views: int = 8,
        views_t0: int = 2,
        views_t1: int = 4,
        seed: int = 0,
        size: int = 224,
        limit: int | None = None,
        svg: bool = False,
        folder: str | None = None,
        table: str | None = None,
    ) -> None:
        for key, value, low in (("views", views, 1), ("views_t0", views_t0, 1), ("views_t1", views_t1, 1),
                                ("size", size, 32), ("limit", 1 if limit is None else limit, 1)):  # fmt: skip
            if value < low:
                raise UserError(f"{key}: {value} is too small; at least {low}")
        self.name = "stampworld/single"
        self.catalog = Catalog(folder, table, svg)
        self.nouns = self.catalog.select(nouns)
        self.views, self.views_t0, self.views_t1 = views, views_t0, views_t1
        self.seed, self.size, self.limit = seed, size, limit
        self._stamps = {stamp.key: stamp for stamp in self.catalog.stamps}

    @property
    def fingerprint(self) -> str:
        facts = (VERSION, self.name, self.catalog.manifest, self.size, self.seed, PIL.__version__)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def samples(self, split: str) -> list[Sample]:
        """The samples of one split, always in the same order (shuffled by hash, so that any prefix is mixed)."""
        if split not in self.splits:
            raise UserError(f"split {split!r} does not exist in {self.name}; {nearest(split, self.splits)}")
        if split == "val":
            rows = [("V0", stamp, 0) for stamp in self._of("train") if hash_unit(VERSION, "V0", stamp.key) < 0.25]
            rows += [("V1", stamp, view) for stamp in self._of("V1") for view in range(self.views_t1)]
        else:
            views = {"train": self.views, "T0": self.views_t0}.get(split, self.views_t1)
            rows = [(split, stamp, view) for stamp in self._of(*STAMP_SPLITS[split]) for view in range(views)]
        if split == "train" and self.limit is not None:
            rows.sort(key=lambda row: (row[2], hash_unit(VERSION, "limit", row[1].key)))
            rows = rows[: self.limit]
        rows.sort(key=lambda row: hash_unit(VERSION, "order", row[0], row[1].key, row[2]))
        return [self._sample(split, track, stamp, view) for track, stamp, view in rows]

    def medium(self, sample: Sample) -> Image.Image:
        """RGB, size x size."""
        stamp = self._stamps[sample.facts["stamp"]]
        seed = self.seed if sample.split == "train" else 0
        draws = Draws(VERSION, "single", sample.track, stamp.key, sample.facts["view"], seed)
        edge = round(draws.between(96, 200) / 224 * self.size)
        mirror = draws.chance(0.5) and stamp.mirror
        image = pose(self.catalog.picture(stamp), edge, draws.between(-10, 10), mirror)
        left, top = draws.below(self.size - image.width + 1), draws.below(self.size - image.height + 1)
        side = "train" if sample.split == "train" else "test"
        return compose(draws, self.size, side, [Placed(image, left, top)])

    def _of(self, *splits: str) -> list[Stamp]:
        chosen = [stamp for stamp in self.catalog.stamps if stamp.split in splits]
        return [stamp for stamp in chosen if stamp.noun in self.nouns or stamp.split in ("T2", "V2")]

    @functools.cache  # noqa: B019 (a source lives as long as the run)
    def _texts(self, stamp: Stamp, side: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """References and their kinds: what people wrote is marked, everything else is a template."""
        templates = words.single_references(self.catalog.nouns[stamp.noun], side)
        human = self.catalog.human(stamp)
        if not human or human in templates:
            return templates, tuple("human" if text == human else "template" for text in templates)
        return (*templates, human), ("template",) * len(templates) + ("human",)

    def _sample(self, split: str, track: str, stamp: Stamp, view: int) -> Sample:
        references, kinds = self._texts(stamp, "train" if split == "train" else "test")
        noun = self.catalog.nouns[stamp.noun]
        return Sample(
            id=f"{self.name}/{track}/{stamp.noun.replace(' ', '_')}/{stamp.slug}/{view}",
            split=split,
            track=track,
            modality=self.modality,
            references=references,
            cluster=stamp.cluster,
            facts={
                "noun": noun.name,
                "nouns": (noun.name,),
                "category": noun.category,
                "stamp": stamp.key,
                "style": stamp.style,
                "view": view,
                "kinds": kinds,
                "vocabulary": "stamps",
            },
        )
