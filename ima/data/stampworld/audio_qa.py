"""Questions about StampWorld's sounds: what is heard, what not, how many, what kind of thing, what first.

Every yes has its no: "Is a cow heard?" is asked of a sound with a cow and of one without (half of the time with
something of the cow's category instead). Whatever asks for order is asked of a sound and of its twin with the two
recordings exchanged. Tracks as in StampAudio; T2 asks for categories, number and order only, since nobody can know
the nouns.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ima.core.errors import UserError, nearest
from ima.core.keyed_random import Draws, hash_unit
from ima.core.media import Sound
from ima.core.types import Sample
from ima.data.source import Source
from ima.data.stampworld.audio import VERSION, Mix, StampAudio

TYPES = ("number", "relation", "category", "first_category", "which", "other", "first", "last", "before", "presence")
ALONE_TYPES = ("category", "which", "presence")
ASKED_CATEGORIES = ("bird", "mammal", "insect", "instrument", "machine", "household thing")
TWIN = "exchanged"
SAME_CATEGORY_RATIO = 0.5


@dataclasses.dataclass(frozen=True)
class Question:
    """`pair` is shared by two questions with the same words, two sounds and two answers; `place` tells apart what is
    asked of one sound."""

    mix: Mix
    type: str
    text: str
    answer: str
    noun: str = ""
    pair: str = ""
    place: int = 0


class StampAudioQa(Source):
    """types: "all" or some of presence, which, other (what sounds with it), number, relation (at once or in turn),
    category, first, last, before, first_category. alone: one thing in a sound instead of one or two, which is learnt
    sooner; of the types, category, which and presence are left. num_*: sounds of each track, a few questions each. The
    rest as StampAudio."""

    modality = "audio"
    splits = ("train", "val", "T0", "T1", "T2")
    controls = ("shuffled",)
    RANGES = {"num_train": (2, None), "num_val": (2, None), "num_t0": (2, None), "num_t1": (2, None),
              "num_t2": (2, None)}  # fmt: skip

    def __init__(
        self,
        nouns: str | Iterable[str] = "all",
        num_train: int = 600,
        num_val: int = 32,
        num_t0: int = 120,
        num_t1: int = 48,
        num_t2: int = 48,
        seed: int = 0,
        folders: Mapping[str, str] | None = None,
        table: str | None = None,
        types: str | Iterable[str] = "all",
        alone: bool = False,
    ) -> None:
        self.name = "stampworld/audio_qa"
        self.types = chosen_types(types, alone)
        self.sounds = StampAudio(nouns, num_train, num_val, num_t0, num_t1, num_t2, seed, folders, table, alone)
        self.nouns = self.sounds.catalog.nouns

    @property
    def fingerprint(self) -> str:
        return self.sounds.fingerprint

    def samples(self, split: str) -> list[Sample]:
        """All questions of a split, mixed, always in the same order."""
        asked = (question for question in self._questions(split) if question.type in self.types)
        questions = sorted(asked, key=lambda q: hash_unit(VERSION, "order", sample_id(q)))
        return [self._sample(split, question) for question in questions]

    def medium(self, sample: Sample) -> Sound:
        return self.sounds.medium(sample)

    def control(self, sample: Sample, name: str) -> Sample:
        return self.sounds.control(sample, name)

    def _questions(self, split: str) -> Iterator[Question]:
        mixes = self.sounds.mixes(split)
        everything = mixes + [exchanged(mix) for mix in mixes if mix.kind == "sequence"]
        known = split != "T2"
        yield from balanced("number", everything, "How many different things are heard?",
                            lambda mix: "one" if mix.kind == "single" else "two")  # fmt: skip
        yield from balanced("relation", [mix for mix in everything if mix.kind != "single"],
                            "Are the two heard together or in turn?",
                            lambda mix: "together" if mix.kind == "together" else "in turn")  # fmt: skip
        for mix in everything:
            yield from self._about_categories(mix)
            yield from self._about_nouns(mix) if known else ()
        yield from self._presence(everything) if known else ()

    def _about_categories(self, mix: Mix) -> Iterator[Question]:
        categories = [self.nouns[noun].category for noun in mix.nouns]
        if not set(categories) <= set(ASKED_CATEGORIES):
            return
        if mix.kind == "single":
            yield Question(mix, "category", "What kind of thing is heard?", categories[0])
        elif mix.kind == "sequence" and categories[0] != categories[1]:
            text = "What kind of thing is heard first?"
            yield Question(mix, "first_category", text, categories[0], pair=f"{root(mix)}/first_category")

    def _about_nouns(self, mix: Mix) -> Iterator[Question]:
        nouns = mix.nouns
        if mix.kind == "single":
            yield Question(mix, "which", "What is heard?", nouns[0], nouns[0])
        elif mix.kind == "together":
            given = int(hash_unit(VERSION, "other", mix.id) < 0.5)
            text = f"What is heard together with {the(nouns[given])}?"
            yield Question(mix, "other", text, nouns[1 - given], nouns[1 - given])
        else:
            asked = int(hash_unit(VERSION, "first or last", root(mix)) < 0.5)
            word = ("first", "last")[asked]
            yield Question(mix, word, f"What is heard {word}?", nouns[asked], nouns[asked], f"{root(mix)}/{word}")
            a, b = sorted(nouns)
            text = f"Is {the(a)} heard before {the(b)}?"
            yield Question(mix, "before", text, "yes" if nouns[0] == a else "no", pair=f"{root(mix)}/before")

    def _presence(self, mixes: list[Mix]) -> Iterator[Question]:
        """One yes of every sound, and its no of another one, each sound's turn for a no coming equally often where
        there is a choice."""
        asked_no = dict.fromkeys((mix.id for mix in mixes), 0)
        for mix in mixes:
            draws = Draws(VERSION, "presence", mix.id)
            noun = draws.choice(mix.nouns)
            category = self.nouns[noun].category
            others = [m for m in mixes if not any(self.sounds.related(noun, heard) for heard in m.nouns)]
            alike = [m for m in others if any(self.nouns[heard].category == category for heard in m.nouns)]
            others = alike if alike and draws.chance(SAME_CATEGORY_RATIO) else others
            if not others:
                continue
            fewest = min(asked_no[m.id] for m in others)
            other = draws.choice([m for m in others if asked_no[m.id] == fewest])
            asked_no[other.id] += 1
            text, pair = f"Is {self.nouns[noun].single} heard?", f"{mix.id}/presence"
            yield Question(mix, "presence", text, "yes", pair=pair)
            yield Question(other, "presence", text, "no", pair=pair, place=asked_no[other.id])

    @functools.cached_property
    def _cluster(self) -> dict[str, str]:
        return {recording.key: recording.cluster for recording in self.sounds.catalog.recordings}

    def _sample(self, split: str, question: Question) -> Sample:
        mix = question.mix
        facts: dict[str, Any] = self.sounds.facts(mix) | {"type": question.type, "mix": root(mix)}
        if question.pair:
            facts["pair"] = question.pair
        if question.noun:
            facts["synonyms"] = self.nouns[question.noun].synonyms
        return Sample(
            id=sample_id(question),
            split=split,
            track=mix.track,
            modality=self.modality,
            references=(question.answer,),
            question=question.text,
            cluster=min(self._cluster[recording.key] for recording in mix.recordings),
            facts=facts,
            medium_id=mix.id,
        )


def chosen_types(types: str | Iterable[str], alone: bool) -> frozenset[str]:
    """Raises UserError for a type that does not exist, or that asks of two things where each sound has one."""
    known = ALONE_TYPES if alone else TYPES
    allowed = ", ".join(known)
    wanted = list(known) if types == "all" else [types] if isinstance(types, str) else list(types)
    for name in wanted:
        if name in TYPES and alone and name not in known:
            raise UserError(
                f"types: {name} asks of two things, alone=true has one; 'all' or some of {', '.join(known)}"
            )
        if name not in known:
            raise UserError(f"types: {name!r} is unknown; 'all' or some of {allowed}; {nearest(name, known)}")
    if not wanted:
        raise UserError(f"types: the list is empty; 'all' or some of {allowed}")
    return frozenset(wanted)


def the(noun: str) -> str:
    return f"the {noun}"


def balanced(kind: str, mixes: list[Mix], text: str, answer: Any) -> Iterator[Question]:
    """The same question of as many sounds of each answer as the rarest answer has, taken in order."""
    by_answer: dict[str, list[Mix]] = {}
    for mix in mixes:
        by_answer.setdefault(answer(mix), []).append(mix)
    if len(by_answer) < 2:
        return
    fewest = min(map(len, by_answer.values()))
    for said, found in by_answer.items():
        chosen = sorted(found, key=lambda mix: hash_unit(VERSION, kind, mix.id))[:fewest]
        yield from (Question(mix, kind, text, said) for mix in chosen)


def exchanged(mix: Mix) -> Mix:
    """The same two recordings with the same levels and noise, the other one first."""
    return dataclasses.replace(mix, id=f"{mix.id}/{TWIN}", recordings=mix.recordings[::-1])


def root(mix: Mix) -> str:
    """What a sound and its twin share."""
    return mix.id.removesuffix(f"/{TWIN}")


def sample_id(question: Question) -> str:
    return f"{question.mix.id}/{question.type}" + (f"/{question.place}" if question.place else "")
