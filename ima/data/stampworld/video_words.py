"""How StampWorld says clips: what moves how, in captions and in questions with their answers.

Captions of training and test share the short pattern, the one to learn; the others differ in verbs and frame. Nothing
is said that the ground truth does not know.
"""

from __future__ import annotations

from collections.abc import Sequence

from ima.data.stampworld.words import GROUND_WORDS, listed
from ima.tasks.metrics.motions import DIRECTIONS, SAID, STILL, phrase, plural_verb
from ima.tasks.metrics.vocabulary import Noun

Done = tuple[Noun, str]  # a thing and its motion
FRAMES = {
    "train": ("{short}", "{other}", "{short}, before a {ground} background", "a clip in which {short}"),
    "test": ("{short}", "{other}", "here we see how {short}", "{ground} background: {short}"),
}
COUNTS = ("none", "one", "two", "three", "four")


def is_many(noun: Noun) -> bool:
    """'some scissors' move, 'some bread' and 'a cow' move(s) as one."""
    return noun.one.startswith("some ") and noun.name.endswith("s")


def sentence(done: Sequence[Done], variant: int = 0) -> str:
    """'a cow moves left and a car grows while a hat stays still'; `variant`: which way of saying each motion."""
    acting = [item for item in done if item[1] != STILL]
    still = [noun for noun, motion in done if motion == STILL]
    parts = [f"{noun.single} {phrase(motion, variant, is_many(noun))}" for noun, motion in acting]
    rest = ""
    if still:
        many = len(still) > 1 or is_many(still[0])
        rest = f"{listed([noun.single for noun in still])} {still_phrase(variant, many)}"
    return " while ".join(filter(None, (listed(parts) if parts else "", rest)))


def still_phrase(variant: int, many: bool) -> str:
    said = phrase(STILL, variant, many)
    return said.replace("does not", "do not") if many else said


def clip_references(done: Sequence[Done], ground: str, side: str) -> tuple[str, ...]:
    """True sentences about a clip, the one to learn first. `side`: train or test."""
    other = sentence(done, 1 if side == "train" else 2)
    facts = {"short": sentence(done), "other": other, "ground": GROUND_WORDS[ground]}
    return tuple(pattern.format(**facts) for pattern in FRAMES[side])


def the(noun: Noun) -> str:
    """'the cow', 'the moon', 'the scissors', 'Santa Claus'."""
    if not noun.one:
        return f"the {noun.name}"
    first, _, rest = noun.one.partition(" ")
    return f"the {rest}" if first in ("some", "a", "an", "the") else noun.one


def ask_direction(noun: Noun) -> str:
    return f"Which way {'do' if is_many(noun) else 'does'} {the(noun)} move?"


def ask_whether(noun: Noun, motion: str) -> str:
    """'Does the cow move left?'"""
    verb, _, rest = SAID[motion][0].partition(" ")
    does = "Do" if is_many(noun) else "Does"
    return f"{does} {the(noun)} {f'{plural_verb(verb)} {rest}'.strip()}?"


def ask_what(motion: str) -> str:
    """'What moves?', 'What grows?'"""
    return "What moves?" if motion in DIRECTIONS else f"What {phrase(motion)}?"
