"""How StampWorld says what is heard: one sound, two at the same time, one after the other; training and test apart.

The first reference is the one to learn. At the same time there is no order, so the first reference names the two in
alphabetical order, which can be learnt; both orders are true. At most two patterns are shared between the sides.
"""

from __future__ import annotations

from collections.abc import Sequence

SHARED = {
    "single": ("{p}", "the sound of {a}"),
    "together": ("{p} while {q}", "the sounds of {a} and {b} at the same time"),
    "sequence": ("first {p}, then {q}", "{a} and after it {b}"),
}
OWN = {
    "train": {
        "single": ("{a} can be heard", "{p} in this recording"),
        "together": ("{q} while {p}", "{p} and at the same time {q}", "{b} can be heard with {a}"),
        "sequence": ("{p} before {q}", "{a} is heard, followed by {b}", "{p}, later {q}"),
    },
    "test": {
        "single": ("we hear {a}", "{p} here"),
        "together": ("{q} as {p}", "{b} and {a} are heard at once", "we hear {a} together with {b}"),
        "sequence": ("{p}; after that {q}", "{a} comes first and {b} second", "we hear {a} and then {b}"),
    },
}


def sound_references(kind: str, said: Sequence[tuple[str, str]], side: str) -> tuple[str, ...]:
    """True sentences. said: (a cow, a cow moos) of each sound, in the order heard; `side`: train or test."""
    told = sorted(said) if kind == "together" else said
    words = dict(zip("ab", (what for what, _ in told), strict=False))
    words |= dict(zip("pq", (phrase for _, phrase in told), strict=False))
    return tuple(pattern.format(**words) for pattern in (*SHARED[kind], *OWN[side][kind]))
