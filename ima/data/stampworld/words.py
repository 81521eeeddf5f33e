"""How StampWorld says things: sentence patterns for one object, training and test apart.

Patterns state only what the ground truth knows. At most two are shared between training and test, so that a model
that has learnt the wording is told from one that has learnt the pictures.
"""

from __future__ import annotations

from ima.tasks.metrics.vocabulary import Noun, with_article

SINGLE_SHARED = ("{a}", "a picture of {a}")
SINGLE = {
    "train": (*SINGLE_SHARED, "this is {a}", "{a}, which is {kind}", "here is {a}"),
    "test": (*SINGLE_SHARED, "an image that shows {a}", "we can see {a} here", "{kind}: {a}"),
}
KIND_PHRASES = {
    "clothing": "a piece of clothing",
    "food": "something to eat",
    "household thing": "something from a household",
    "sports or music thing": "something for sports or music",
    "space thing": "something in space",
    "nature thing": "something in nature",
    "street thing": "something in the street",
}


def kind_phrase(noun: Noun) -> str:
    """'an animal', 'a piece of clothing'."""
    return KIND_PHRASES.get(noun.category, with_article(noun.category))


def single_references(noun: Noun, side: str) -> tuple[str, ...]:
    """True sentences about a picture of one thing; the first is the short one ("a cow"). `side`: train or test."""
    return tuple(pattern.format(a=noun.single, kind=kind_phrase(noun)) for pattern in SINGLE[side])
