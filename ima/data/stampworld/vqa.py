"""Questions about pairs of scenes that differ by one edit, so that every question has two pictures and two answers.

Within each pattern of question all answers are about equally frequent, in training and in every test track: who does
not look stays at chance. T0 asks about training stamps in new scenes, T1 about new stamps of known nouns, T2 about
nouns that no training picture shows (by category, place, number only). A function of (version, track, index).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable

import PIL
from PIL import Image

from ima.core.errors import UserError, nearest
from ima.core.keyed_random import Draws
from ima.core.types import Sample
from ima.data.source import Source
from ima.data.stampworld.catalog import Catalog
from ima.data.stampworld.pairs import Edit, Pair, Scene, draw_pair, feasible
from ima.data.stampworld.questions import MAIN, TYPES, Asker, Question, Type, options, present
from ima.data.stampworld.render import Placed, ground_for, paste
from ima.data.stampworld.scenery import NUM_KINDS, Scenery

VERSION = "stampworld-vqa-1"
# Shares of the edits: about 38 % of the questions are yes/no, 18 % object, 15 % each of the others.
CYCLE: tuple[Edit, ...] = ("noun", "kind", "move", "count") * 3 + ("noun",)


class StampVqa(Source):
    """One or two questions about each picture. `facts`: "type", "answers" (all that its type can have), "pair" (shared
    with the sample that has the other answer), "synonyms", "template", "nouns", "objects", "ground", "theme", "edit".

    nouns: "all", "demo", "few" or a list. num_*: pairs of pictures of each track (val has V0 and V1, half each).
    types: "all" or some of yes/no, object, number, category, position. max_kinds: at most so many different nouns in a
    picture. The rest as StampSingle.
    """

    modality = "image"
    splits = ("train", "val", "T0", "T1", "T2")
    RANGES = {
        "num_train": (1, None),
        "num_val": (2, None),
        "num_t0": (1, None),
        "num_t1": (1, None),
        "num_t2": (1, None),
        "max_kinds": (2, 4),
        "size": (96, None),
    }

    def __init__(
        self,
        nouns: str | Iterable[str] = "all",
        types: str | Iterable[str] = "all",
        num_train: int = 4000,
        num_val: int = 200,
        num_t0: int = 800,
        num_t1: int = 800,
        num_t2: int = 300,
        max_kinds: int = 4,
        seed: int = 0,
        size: int = 224,
        svg: bool = False,
        folder: str | None = None,
        table: str | None = None,
    ) -> None:
        for key, value, low in (("num_train", num_train, 1), ("num_val", num_val, 2), ("num_t0", num_t0, 1),
                                ("num_t1", num_t1, 1), ("num_t2", num_t2, 1), ("size", size, 96)):  # fmt: skip
            if value < low:
                raise UserError(f"{key}: {value} is too small; at least {low}")
        if max_kinds not in NUM_KINDS[1:]:  # of one thing, none would be left where it is taken away
            raise UserError(f"max_kinds: {max_kinds} is out of range; allowed: 2 to {NUM_KINDS[-1]}")
        self.name = "stampworld/vqa"
        self.catalog = Catalog(folder, table, svg)
        self.nouns = self.catalog.select(nouns)
        self.scenery = Scenery(self.catalog, self.nouns)
        self.types = chosen_types(types)
        self.seed, self.size, self.max_kinds = seed, size, max_kinds
        self._nums = {"train": num_train, "V0": num_val // 2, "V1": num_val - num_val // 2}
        self._nums |= {"T0": num_t0, "T1": num_t1, "T2": num_t2}
        self._options = options(self.scenery)
        self._pair = functools.lru_cache(maxsize=4096)(self._draw)

    @property
    def fingerprint(self) -> str:
        chosen = (sorted(self.nouns), self.types, self.max_kinds, self.size, self.seed)
        facts = (VERSION, self.name, self.catalog.manifest, chosen, PIL.__version__)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def samples(self, split: str) -> list[Sample]:
        """The questions of one split, always in the same order. A track without a stamp is empty."""
        if split not in self.splits:
            raise UserError(f"split {split!r} does not exist in {self.name}; {nearest(split, self.splits)}")
        return list(self._samples(split))

    def medium(self, sample: Sample) -> Image.Image:
        """RGB, size x size. The background suits both scenes of the pair."""
        track, index, which = sample.track, sample.facts["index"], sample.facts["which"]
        pair = self._pair(track, index)
        scenes = [self._placed(scene) for scene in (pair.first, pair.second)]
        draws = Draws(VERSION, "vqa pixels", track, index, self._seed(track))
        side = "train" if sample.split == "train" else "test"
        return paste(ground_for(draws, self.size, side, scenes[0] + scenes[1], pair.ground), scenes[which])

    @functools.cache  # noqa: B019 (a source lives as long as the run)
    def _samples(self, split: str) -> tuple[Sample, ...]:
        tracks = ("V0", "V1") if split == "val" else (split,)
        return tuple(
            sample
            for track in tracks
            if self._cycle(track)
            for index in range(self._nums[track])
            for sample in self._ask(split, track, index)
        )

    @functools.cache  # noqa: B019
    def _cycle(self, track: str) -> tuple[Edit, ...]:
        """The edits of a track, as they take turns."""
        possible = set(feasible(self.scenery, track)) - ({"noun"} if track == "T2" else set())
        wanted = {edit for edit, main in MAIN.items() if main in self.types or self.types == ("yes/no",)}
        return tuple(edit for edit in CYCLE if edit in possible & wanted)

    def _seed(self, track: str) -> int:
        return self.seed if track == "train" else 0

    def _draw(self, track: str, index: int) -> Pair:
        cycle = self._cycle(track)
        rounds, position = divmod(index, len(cycle))
        edit = cycle[position]
        turn = rounds * cycle.count(edit) + cycle[:position].count(edit)
        draws = Draws(VERSION, "vqa", track, index, self._seed(track))
        return draw_pair(self.scenery, draws, track, edit, turn, self.max_kinds, self.size)

    def _ask(self, split: str, track: str, index: int) -> list[Sample]:
        pair = self._pair(track, index)
        draws = Draws(VERSION, "vqa questions", track, index, self._seed(track))
        questions = Asker(self.scenery, track, self.types).ask(pair, draws)
        cluster = present(pair).group.stamp.cluster
        out = []
        for which, scene in enumerate((pair.first, pair.second)):
            picture = f"{self.name}/{track}/{index:06d}{'ab'[which]}"
            facts = {
                "nouns": tuple(thing.noun for thing in scene),
                "objects": [self.scenery.describe(thing.group, thing.boxes) for thing in scene],
                "vocabulary": "stamps",
                "ground": pair.ground,
                "theme": pair.theme,
                "edit": pair.edit,
                "index": index,
                "which": which,
            }
            for number, question in enumerate(questions):
                asked = {
                    "type": question.type,
                    "template": question.template,
                    "answers": self._options[question.type],
                    "pair": f"{track}/{index:06d}/{number}",
                    "synonyms": self._synonyms(question, which),
                }
                out.append(
                    Sample(
                        id=f"{picture}/{number}",
                        split=split,
                        track=track,
                        modality=self.modality,
                        references=(question.answers[which],),
                        question=question.text,
                        cluster=cluster,
                        facts=facts | asked,
                        medium_id=picture,
                    )
                )
        return out

    def _synonyms(self, question: Question, which: int) -> tuple[str, ...]:
        """What else is right where a noun is asked for."""
        return self.catalog.nouns[question.answers[which]].synonyms if question.type == "object" else ()

    def _placed(self, scene: Scene) -> list[Placed]:
        return [
            self.scenery.placed(thing.group.stamp, box, flip)
            for thing in scene
            for box, flip in zip(thing.boxes, thing.flips, strict=True)
        ]


def chosen_types(types: str | Iterable[str]) -> tuple[Type, ...]:
    """Raises UserError for a type that does not exist."""
    wanted = list(TYPES) if types == "all" else [types] if isinstance(types, str) else list(types)
    for name in wanted:
        if name not in TYPES:
            raise UserError(f"types: {name!r} is unknown; 'all' or some of {', '.join(TYPES)}; {nearest(name, TYPES)}")
    if not wanted:
        raise UserError(f"types: the list is empty; 'all' or some of {', '.join(TYPES)}")
    return tuple(kind for kind in TYPES if kind in wanted)
