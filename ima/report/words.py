"""What the metrics mean, in one sentence each, and how numbers are written. The page's vocabulary."""

from __future__ import annotations

import math
from typing import Any

HEADLINES = (
    ("T0/noun_accuracy", "T0 noun accuracy",
     "Pictures of objects seen in training, in new scenes: share of captions that name the right object and no wrong"
     " one."),
    ("T1/noun_accuracy", "T1 noun accuracy",
     "New pictures of known kinds of object: the same share. This is what the adapter generalises."),
    ("blind/noun_accuracy", "blind noun accuracy",
     "The same questions without a picture: what the LLM gets by guessing. Accuracy below this means nothing."),
    ("ima/mean", "IMA score",
     "Mean cosine of pictures' and texts' mean tokens over all blocks of the frozen LLM. Compare within one LLM only."),
    ("T0/cider_d", "T0 CIDEr-D",
     "Agreement of the captions' words with the references (0 to 10); with few references a wrong noun costs little."),
    ("val/loss", "validation loss", "Cross-entropy on held-out answer tokens, in nats per token; lower is better."),
    ("train/loss", "training loss", "Cross-entropy on the answer tokens at the end of training, in nats per token."),
)  # fmt: skip
MAX_HEADLINES = 6


def value_text(value: Any) -> str:
    """A number for reading: three significant digits, whole numbers whole, a dash where there is none."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f") if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return "–"
        if value == int(value) and abs(value) >= 100:
            return value_text(int(value))
        return "0" if value == 0 else f"{value:.3f}" if 0.0095 <= abs(value) < 100 else f"{value:.3g}"
    return str(value)


def seconds_text(value: Any) -> str:
    """Seconds as a person says them."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return "–"
    if value < 90:
        return f"{value:.1f} s"
    if value < 5400:
        return f"{int(value // 60)} min {round(value % 60):02d} s"
    return f"{int(value // 3600)} h {round(value % 3600 / 60):02d} min"


def track_name(track: str) -> str:
    names = {"T0": "T0 · seen objects, new scenes", "T1": "T1 · new pictures of known kinds",
             "T2": "T2 · unknown kinds", "blind": "blind · no picture", "val": "validation"}  # fmt: skip
    return names.get(track, track)
