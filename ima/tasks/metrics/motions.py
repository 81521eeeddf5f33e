"""The ten motions of StampWorld's clips: how they are said, and how they are read out of free text.

Data sources say motions with this table and metrics read them with it, so that both mean the same thing by a motion.
A motion word belongs to the nouns that are named before it and after the motion before ("a cow moves left and a car
grows"); which nouns those are is read by `nouns`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ima.tasks.metrics.nouns import reader

STILL = "still"
DIRECTIONS = ("left", "right", "up", "down")
# How each is said of one thing: first the word to learn, then one for training and one for test captions.
SAID = {
    "left": ("moves left", "goes to the left", "travels left"),
    "right": ("moves right", "goes to the right", "travels right"),
    "up": ("moves up", "goes upwards", "travels up"),
    "down": ("moves down", "goes downwards", "travels down"),
    "grows": ("grows", "gets bigger", "becomes larger"),
    "shrinks": ("shrinks", "gets smaller", "becomes smaller"),
    "rotates": ("rotates", "turns around", "spins"),
    "appears": ("appears", "shows up", "comes into view"),
    "disappears": ("disappears", "vanishes", "goes out of view"),
    STILL: ("stays still", "does not move", "remains still"),
}
MOTIONS = tuple(SAID)

GOES = r"(?:mov|go|slid|drift|glid|travel|shift|head|float|flies|flying|run|walk|driv|roll|pass)\w*"
READ = {
    "disappears": r"disappear\w*|vanish\w*|go\w* out of view|go\w* away|leaves? (?:the|view)",
    "appears": r"appear\w*|shows? up|showing up|com(?:es?|ing) into view",
    "grows": r"grow\w*|grew|(?:get|becom|turn)\w* (?:bigger|larger)|expand\w*|enlarg\w*|increas\w* in size",
    "shrinks": r"shr[iua]nk\w*|(?:get|becom|turn)\w* smaller|decreas\w* in size",
    "rotates": r"rotat\w*|spin\w*|turn(?:s|ing)?\b(?: a?round)?(?! (?:left|right))",
    STILL: r"(?:stay|remain|stand|sit|keep|is|are|lie)\w* (?:still|motionless|in place|where)|(?:do|does) not move"
    r"|doesn'?t move|don'?t move|not moving|motionless",
    "up": rf"{GOES} (?:\w+ ){{0,3}}?(?:up|upwards?)\b|ris(?:es?|ing)|climb\w*",
    "down": rf"{GOES} (?:\w+ ){{0,3}}?(?:down|downwards?)\b|falls?|falling|sink\w*|descend\w*",
    "left": rf"(?:{GOES}|turn\w*) (?:\w+ ){{0,3}}?left(?:wards?)?\b",
    "right": rf"(?:{GOES}|turn\w*) (?:\w+ ){{0,3}}?right(?:wards?)?\b",
}
PATTERN = re.compile("|".join(rf"(?P<{name}>\b(?:{pattern}))" for name, pattern in READ.items()), re.IGNORECASE)


@dataclass(frozen=True)
class Said:
    """A motion in a text, with the words in front of it that say what moves."""

    motion: str
    subject: str


def phrase(motion: str, variant: int = 0, many: bool = False) -> str:
    """'moves left' (one thing), 'move left' (many)."""
    verb, _, rest = SAID[motion][variant].partition(" ")
    return f"{plural_verb(verb)} {rest}".strip() if many else SAID[motion][variant]


def plural_verb(verb: str) -> str:
    """'moves' -> 'move', 'goes' -> 'go', 'vanishes' -> 'vanish'."""
    return verb[:-2] if verb.endswith(("oes", "shes")) else verb.removesuffix("s")


def read_motions(text: str) -> list[Said]:
    """In the order of the text."""
    out, start = [], 0
    for match in PATTERN.finditer(text):
        assert match.lastgroup is not None
        out.append(Said(match.lastgroup, text[start : match.start()]))
        start = match.end()
    return out


def motion_of(text: str, noun: str, vocabulary: str = "stamps") -> str | None:
    """What the text says that the noun does; where it does not name the noun, the first motion it tells of."""
    said = read_motions(text)
    read = reader(vocabulary)
    for one in said:
        if any(noun in mention.nouns for mention in read.mentions(one.subject)):
            return one.motion
    return said[0].motion if said else None


def judge_motion(facts: Mapping[str, Any], text: str) -> tuple[str | None, bool] | None:
    """(the motion said of the first object, whether it is the true one); None where the facts know no motions."""
    objects = facts.get("objects") or ()
    if not objects or "motion" not in objects[0]:
        return None
    said = motion_of(text, objects[0]["noun"], facts.get("vocabulary", "stamps"))
    return said, said == objects[0]["motion"]
