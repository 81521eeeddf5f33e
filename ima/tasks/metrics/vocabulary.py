"""The nouns that captions are about: one table per kind of data, English number and article, nothing more.

`nouns.tsv` lists the 393 object nouns of StampWorld with their category, broader terms and synonyms; `shapes.tsv`
does so for the procedural fall-back, `sounds.tsv` for what makes a sound. Data sources write captions with it and
metrics read captions with it, so that both mean the same thing by a noun.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from pathlib import Path

from ima.core.errors import UserError, nearest

TABLES = {"stamps": "nouns.tsv", "shapes": "shapes.tsv", "sounds": "sounds.tsv"}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
AN_EXCEPTIONS = ("univers", "unicorn", "uniform", "unit", "euro", "one", "ukulele")


@dataclass(frozen=True)
class Noun:
    """`broader`: what it also is (nouns or general terms). `one`: how a single one is said; "" means "a <name>"."""

    name: str
    category: str
    broader: tuple[str, ...] = ()
    synonyms: tuple[str, ...] = ()
    many: str = ""
    one: str = ""

    @property
    def single(self) -> str:
        """'a cow', 'an owl', 'the moon', 'some scissors'."""
        return self.one or with_article(self.name)

    @property
    def plural(self) -> str:
        return self.many or (self.name if self.one else pluralise(self.name))

    def counted(self, num: int) -> str:
        """'a cow', 'three cows'; `num` from 1 to 10."""
        if num == 1:
            return self.single
        return f"{NUMBERS[num]} {self.plural}"


def with_article(text: str) -> str:
    vowel = text[:1].lower() in "aeiou" and not text.lower().startswith(AN_EXCEPTIONS)
    return f"{'an' if vowel else 'a'} {text}"


def pluralise(text: str) -> str:
    """The regular English plural of the last word."""
    if text.endswith(("s", "x", "z", "ch", "sh")):
        return text + "es"
    if text.endswith("y") and text[-2:-1] not in tuple("aeiou"):
        return text[:-1] + "ies"
    return text + "s"


@functools.cache
def load_nouns(table: str = "stamps") -> dict[str, Noun]:
    """All nouns of a table by name. Raises UserError for a table that does not exist."""
    if table not in TABLES:
        raise UserError(f"vocabulary '{table}' does not exist; {nearest(table, TABLES)}")
    with open(Path(__file__).parent / TABLES[table], encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return {
        row["noun"]: Noun(
            name=row["noun"],
            category=row["category"],
            broader=tuple(filter(None, row["broader"].split(","))),
            synonyms=tuple(filter(None, row["synonyms"].split(","))),
            many=row["plural"],
            one=row["phrase"],
        )
        for row in rows
    }
