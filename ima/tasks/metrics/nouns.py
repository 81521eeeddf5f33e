"""What a caption says is there: nouns with number and place, read from free text.

Longest match first over nouns, synonyms and broader terms, so that a teddy bear is no bear and a fire truck no truck.
Words that are also verbs, adverbs or adjectives (well, saw, fly, orange) count only where they stand as nouns. Hides
all matching; the vocabulary comes from `vocabulary`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping

from ima.tasks.metrics.vocabulary import NUMBERS, Noun, load_nouns, pluralise


def listed(text: str) -> frozenset[str]:
    return frozenset(text.split())


DETERMINERS = listed(
    "a an the one two three four five six seven eight nine ten some this that these those his her its their my your "
    "our another each every both several many of"
)
FUNCTION_WORDS = DETERMINERS | listed(
    "and or with without on in at is are was were that which who in near next under over behind beside between to from "
    "lies lying stands standing sits sitting by for as there here also"
)
# Nouns of the vocabulary that are often something else: they need a determiner or a number before them.
AMBIGUOUS = listed(
    "well saw saws fly flies mine mines stable orange iron irons bow bows ram rams swallow swallows squash rake rakes "
    "star fire present presents sweet stone home store jet grave watch lock screen bug lime vacuum purse general "
    "does"
)
MODIFIERS = frozenset({"orange", "glass", "toy", "stone", "iron", "candy"})
PLACES = {
    "left": "left",
    "right": "right",
    "top": "top",
    "upper": "top",
    "above": "top",
    "bottom": "bottom",
    "lower": "bottom",
    "below": "bottom",
    "middle": "middle",
    "center": "middle",
    "centre": "middle",
}


@dataclasses.dataclass(frozen=True)
class Mention:
    """`nouns`: what it may name. `broad`: nouns that it would be true of without naming them (a bird: a penguin)."""

    text: str
    nouns: frozenset[str]
    broad: frozenset[str]
    num: int | None = None
    place: str | None = None

    def true_of(self, present: Iterable[str]) -> bool:
        return any(noun in self.nouns or noun in self.broad for noun in present)


def words_of(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+|\d+", re.sub(r"['’]", "", text.lower()))


def forms_of(text: str) -> set[tuple[str, ...]]:
    """A term as words, in the singular and in the regular plural."""
    return {tuple(words_of(text)), tuple(words_of(pluralise(text)))}


class NounReader:
    """Reads mentions out of captions, for one vocabulary."""

    def __init__(self, vocabulary: Mapping[str, Noun]) -> None:
        self.vocabulary = vocabulary
        self.above = {name: self._closure(name) for name in vocabulary}
        self.below: dict[str, set[str]] = {}
        for name, terms in self.above.items():
            for term in terms:
                self.below.setdefault(term, set()).add(name)
        self.names: dict[tuple[str, ...], set[str]] = {}
        self.terms: dict[tuple[str, ...], set[str]] = {}
        self._register()
        self.longest = max(map(len, (*self.names, *self.terms)))

    def _closure(self, name: str) -> set[str]:
        """Every broader term of a noun, its category and the words of the category included."""
        out: set[str] = set()
        waiting = list(self.vocabulary[name].broader)
        while waiting:
            term = waiting.pop()
            if term not in out:
                out.add(term)
                waiting += self.vocabulary[term].broader if term in self.vocabulary else ()
        out |= {self.vocabulary[name].category}
        out |= {"clothes"} if "clothing" in out else set()
        out |= {"people"} if "person" in out else set()
        return out - {name}

    def _register(self) -> None:
        own = {tuple(words_of(name)): name for name in self.vocabulary}
        for name, noun in self.vocabulary.items():
            said = {tuple(words_of(name)), tuple(words_of(noun.plural))}
            for form in said.union(*(forms_of(synonym) for synonym in noun.synonyms), forms_of(name)):
                if form not in own or own[form] == name or form in said:
                    self.names.setdefault(form, set()).add(name)
        for term in self.below:
            for form in forms_of(term):
                self.terms.setdefault(form, set()).add(term)

    def mentions(self, text: str) -> list[Mention]:
        """In order of appearance. Place and number are those that the same clause gives."""
        out: list[Mention] = []
        waiting: str | None = None
        parts = clauses(text)
        for words in parts:
            found = self._mentions_of(words, alone=len(parts) == 1 and len(words) == 1)
            place = place_of(words) or waiting
            out += [dataclasses.replace(mention, place=place) for mention in found]
            waiting = None if found else place
        if waiting and out and out[-1].place is None:
            out[-1] = dataclasses.replace(out[-1], place=waiting)
        return out

    def _mentions_of(self, words: list[str], alone: bool) -> list[Mention]:
        out: list[Mention] = []
        start, last_end = 0, 0
        while start < len(words):
            for size in range(min(self.longest, len(words) - start), 0, -1):
                form = tuple(words[start : start + size])
                if form in self.names or form in self.terms:
                    if size > 1 or alone or stands_as_noun(words, start, last_end):
                        out.append(self._mention(form, number_before(words[last_end:start], form)))
                        last_end = start + size
                    start += size
                    break
            else:
                start += 1
        return out

    def _mention(self, form: tuple[str, ...], num: int | None) -> Mention:
        nouns = frozenset(self.names.get(form, ()))
        broad: set[str] = set()
        for term in self.terms.get(form, ()):
            broad |= self.below[term]
        if num is None and any(self.vocabulary[noun].one for noun in nouns):
            num = 1  # "some scissors", "the moon"
        return Mention(" ".join(form), nouns, frozenset(broad) - nouns, num)


def stands_as_noun(words: list[str], start: int, last_end: int) -> bool:
    """Whether one word that may be something else is a noun here: 'an orange', not 'an orange fish' or 'as well'."""
    word, following = words[start], words[start + 1 : start + 2]
    if word in MODIFIERS and following and following[0] not in FUNCTION_WORDS:
        return False
    before = words[max(last_end, start - 3) : start]
    return word not in AMBIGUOUS or any(other in DETERMINERS or other.isdigit() for other in before)


def clauses(text: str) -> list[list[str]]:
    """The words of every clause that has any."""
    parts = re.split(r"[.,;:!?]|\b(?:and|while|with|but)\b", text.lower())
    return [words for part in parts if (words := words_of(part))]


def place_of(words: list[str]) -> str | None:
    """'a cow on the left' -> left; a top hat and something left of a cow have no place."""
    for index, word in enumerate(words):
        if word in PLACES and (
            len(words) == 1 or words[max(0, index - 1)] in ("the", "on", "at", "in", "upper", "lower")
        ):
            return PLACES[word]
    return None


def number_before(words: list[str], form: tuple[str, ...]) -> int | None:
    """The number that the up to three words before a noun give: 'two big' -> 2, 'a pair of' -> 1, '' -> None."""
    for word in reversed(words[-3:]):
        if word in NUMBERS[1:]:
            return NUMBERS.index(word)
        if word.isdigit():
            return int(word)
        if word in ("a", "an", "single") or (word == "the" and not form[-1].endswith("s")):
            return 1
    return None


@functools.cache
def reader(table: str = "stamps") -> NounReader:
    return NounReader(load_nouns(table))
