"""Which nouns a word names, for scores that look words up: the vocabulary that a sample's facts are written in."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from ima.tasks.metrics.chair import COCO, coco_names, coco_objects
from ima.tasks.metrics.nouns import reader, words_of
from ima.tasks.metrics.vocabulary import TABLES

Named = tuple[frozenset[str], frozenset[str]]
NOTHING: Named = (frozenset(), frozenset())


class Namer:
    """`vocabulary`: a table of nouns, or COCO's classes. Synonyms and plurals name a noun; a broader term does not."""

    def __init__(self, vocabulary: str) -> None:
        self.vocabulary = vocabulary
        self.reader = None if vocabulary == COCO else reader(vocabulary)

    @staticmethod
    def known(vocabulary: str) -> bool:
        return vocabulary == COCO or vocabulary in TABLES

    @functools.cached_property
    def forms(self) -> list[str]:
        """Every name and broader term, in the singular and in the plural."""
        if self.reader is None:
            return sorted(coco_names())
        return sorted(" ".join(form) for form in (*self.reader.names, *self.reader.terms))

    def __call__(self, word: str) -> Named:
        """(nouns that it names, nouns that it is true of without naming them)."""
        if self.reader is None:
            return frozenset(coco_objects(word)), frozenset()
        form = tuple(words_of(word))
        nouns = frozenset(self.reader.names.get(form, ()))
        broad = frozenset(noun for term in self.reader.terms.get(form, ()) for noun in self.reader.below[term])
        return (nouns, broad - nouns) if nouns or broad else NOTHING

    def ending(self, words: Sequence[str]) -> str:
        """The longest name that a text so far ends with: fire truck; its last word where no name has several."""
        longest = 2 if self.reader is None else self.reader.longest
        for size in range(min(longest, len(words)), 1, -1):
            name = " ".join(words[-size:])
            known = name in coco_names() if self.reader is None else tuple(words[-size:]) in self.reader.names
            if known:
                return name
        return words[-1]
