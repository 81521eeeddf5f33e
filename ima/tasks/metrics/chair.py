"""CHAIR (arXiv 1809.02156): how much of what a caption names is not in the picture.

Two readers of objects in captions: COCO's 80 classes with their synonyms (`coco.tsv`), and for the embedded sources
the noun reader of their own vocabulary, where a broader term is right if something there falls under it. An empty
caption hallucinates nothing: recall and length belong beside it.
"""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ima.tasks.metrics.nouns import reader
from ima.tasks.metrics.ptb import tokenize

COCO = "coco"
IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "knives": "knife", "geese": "goose",
    "mice": "mouse", "calves": "calf", "thieves": "thief", "buses": "bus", "busses": "bus",
}  # fmt: skip
YOUNG = ("baby", "adult")
ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")
# Two words that are one thing, and the word that this is; what is no class keeps its parts from counting.
DOUBLE = {"home plate": "", "train track": "", "toilet seat": "toilet", "passenger jet": "jet",
          "passenger train": "train"}  # fmt: skip
DOUBLE |= {f"{age} {animal}": animal for age in YOUNG for animal in ANIMALS}


@dataclass(frozen=True)
class Chair:
    """Of one caption: objects named (each mention counts), those not there, true objects named, true objects, words."""

    num_said: int
    num_absent: int
    num_found: int
    num_true: int
    length: int


def chair(facts: Mapping[str, Any], text: str) -> Chair | None:
    """None where the facts do not say what is there. facts: "nouns" and "vocabulary" (coco: names of classes)."""
    if "nouns" not in facts:
        return None
    present = frozenset(facts["nouns"])
    if facts.get("vocabulary", "stamps") == COCO:
        said = coco_objects(text)
        absent, found = [name for name in said if name not in present], present & set(said)
    else:
        mentions = reader(facts.get("vocabulary", "stamps")).mentions(text)
        said = [mention.text for mention in mentions]
        absent = [mention.text for mention in mentions if not mention.true_of(present)]
        found = frozenset(noun for mention in mentions for noun in mention.nouns & present)
    return Chair(len(said), len(absent), len(found), len(present), len(tokenize(text)))


@functools.cache
def coco_names() -> dict[str, str]:
    """Every word or pair of words that stands for one of COCO's 80 classes -> the class."""
    with open(Path(__file__).parent / "coco.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    names = {row["class"]: row["class"] for row in rows}
    return names | {word: row["class"] for row in rows for word in filter(None, (row["synonyms"] or "").split(","))}


def coco_objects(text: str) -> list[str]:
    """The classes that a caption names, once a mention, in order: 'two men and a baby bird' -> [person, bird]."""
    names = coco_names()
    words = [singular(word, names) for word in re.findall(r"[^\W\d_]+", text.lower())]
    out: list[str] = []
    start = 0
    while start < len(words):
        pair = " ".join(words[start : start + 2])
        double = pair in DOUBLE or (pair in names and " " in pair)
        out.append(DOUBLE.get(pair, pair) if double else words[start])
        start += 1 + double
    if "toilet" in out:  # the seat of a toilet is no chair
        out = [word for word in out if word != "seat"]
    return [names[word] for word in out if word in names]


def coco_classes(texts: Iterable[str]) -> frozenset[str]:
    """What the captions of people say is there: CHAIR counts it as true, as it does what is annotated."""
    return frozenset(name for text in texts for name in coco_objects(text))


def singular(word: str, names: Mapping[str, str]) -> str:
    """'benches' -> 'bench', 'ties' -> 'tie'; what is not known is cut by the regular rules."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word.endswith("men") and f"{word[:-3]}man" in names:
        return f"{word[:-3]}man"
    if word not in names and len(word) == 3 and word.endswith("s") and word[:-1] in names:  # tvs
        return word[:-1]
    if word in names or len(word) < 4 or not word.endswith("s") or word.endswith("ss"):
        return word
    for known in (word[:-1], word[:-2], f"{word[:-3]}y"):
        if known in names:
            return known
    return word[:-2] if word.endswith(("ches", "shes", "xes", "sses")) else word[:-1]
