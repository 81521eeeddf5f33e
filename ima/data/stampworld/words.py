"""How StampWorld says things: sentence patterns for one object and for scenes, training and test apart.

Patterns state only what the ground truth knows. At most two are shared between training and test, so that a model
that has learnt the wording is told from one that has learnt the pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

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


# Scenes. Each object is said as a phrase and a place; training and test share the first two patterns.
PLACE_PHRASES = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "middle": "in the middle",
}
GROUND_WORDS = {
    "plain": "plain",
    "gradient": "shaded",
    "horizon": "two-coloured",
    "striped": "striped",
    "checked": "checked",
    "cloudy": "cloudy",
}


def listed(parts: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def scene_references(objects: Sequence[tuple[Noun, int, str]], ground: str, side: str) -> tuple[str, ...]:
    """True sentences about (noun, number, place) of a scene; the first is the one to learn."""
    said = [noun.counted(num) for noun, num, _ in objects]
    places = [PLACE_PHRASES[place] for _, _, place in objects]
    verbs = ["is" if num == 1 and not noun.one.startswith("some ") else "are" for noun, num, _ in objects]
    placed = [f"{what} {where}" for what, where in zip(said, places, strict=True)]
    shared = (listed(placed), listed(said))
    if side == "train":
        return (
            *shared,
            f"{listed(placed)}, before a {GROUND_WORDS[ground]} background",
            listed([f"{what} placed {where}" for what, where in zip(said, places, strict=True)]),
            listed([f"{what} that {verb} {where}" for what, verb, where in zip(said, verbs, places, strict=True)]),
        )
    return (
        *shared,
        listed([f"there {verb} {phrase}" for verb, phrase in zip(verbs, placed, strict=True)]),
        f"in this picture we see {listed(placed[::-1])}",
        "; ".join(f"{place}: {what}" for what, (_, _, place) in zip(said, objects, strict=True)),
    )


# Questions. A category is called like a noun ("the animal", "a piece of clothing").
KIND_NAMES = {"clothing": "piece of clothing", "food": "piece of food"}


def with_kind(kind: str) -> Noun:
    """A category as something that can be asked about."""
    return Noun(KIND_NAMES.get(kind, kind), kind)


def is_are(noun: Noun, num: int = 1) -> str:
    """'is' for the cow, the bread, the moon; 'are' for the scissors and for two cows."""
    return "are" if num > 1 or (noun.one.startswith("some ") and noun.name.endswith("s")) else "is"


def the(noun: Noun, num: int = 1) -> str:
    """'the cow', 'the cows', 'the scissors', 'the moon', 'Santa Claus'."""
    if num > 1:
        return f"the {noun.plural}"
    proper = noun.one and not noun.one.startswith(("a ", "an ", "some "))
    return noun.one if proper else f"the {noun.name}"


def exists(noun: Noun) -> str:
    """'Is there a cow in the picture?', 'Are there some scissors in the picture?', 'Is the moon in the picture?'."""
    verb = is_are(noun).capitalize()
    there = "" if the(noun) == noun.one else "there "
    return f"{verb} {there}{noun.single} in the picture?"
