"""What the metrics mean, in one sentence each, and how numbers are written. The page's vocabulary."""

from __future__ import annotations

import math
from typing import Any

from ima.core.metric_names import GROWTH, GROWTH_NULL, RETRIEVAL, RETRIEVAL_CHANCE

HEADLINES = (
    ("T0/noun_accuracy", "T0 noun accuracy",
     "Objects seen in training, in new scenes: share of captions that name the right object and no wrong one."),
    ("T1/noun_accuracy", "T1 noun accuracy",
     "New instances of known kinds of object: the same share. This is what the adapter generalises."),
    ("T0/accuracy", "T0 accuracy", "Share of right answers about objects seen in training, in new scenes."),
    ("T1/accuracy", "T1 accuracy",
     "Share of right answers about new instances of known kinds. This is what the adapter generalises."),
    ("test/accuracy", "test accuracy", "Share of right answers on the test split (VQA: as annotators agree)."),
    ("val/accuracy", "validation accuracy", "Share of right answers on the validation split."),
    ("test/cider_d", "test CIDEr-D", "Agreement of the captions' words with the references (0 to 10)."),
    ("single_frame/noun_accuracy", "single frame", "The same clips with one frame only: what needs no motion."),
    ("single_frame/accuracy", "single frame", "The same clips with one frame only: what needs no motion."),
    ("blind/noun_accuracy", "blind noun accuracy",
     "The same prompt without the medium: what the LLM gets by guessing. Accuracy below this means nothing."),
    ("blind/accuracy", "blind accuracy",
     "The same questions without the medium: what the LLM gets by guessing. Accuracy below this means nothing."),
    ("prior/accuracy", "prior accuracy",
     "The most frequent training answer to the same question: what answering by heart would get."),
    ("ima/mean", "raw IMA",
     "Mean cosine of media's and texts' mean tokens over all blocks: how close the two lie, within one LLM. It cannot"
     " say whether they mean the same: noise reaches the same values."),
    ("retrieval/mean", "text retrieval",
     "Share of media whose nearest text, read by the LLM alone, is their own; mean over the blocks. At chance: no"
     " alignment. Above: what the LLM's states hold of the media is what the words mean."),
    ("retrieval/growth", "growth of retrieval",
     "Best block minus what enters the first: what the LLM adds to what the adapter already translates. A best block is"
     " above zero by chance, so read it against that."),
    ("T0/macro_accuracy", "T0 macro accuracy", "Mean of the accuracies of the question types, each counting the same."),
    ("T0/f1_adversarial", "T0 F1, adversarial",
     "F1 of yes where the absent things are those that usually come with what is there: habit does not help."),
    ("test/f1_adversarial", "test F1, adversarial",
     "F1 of yes where the absent things are those that usually come with what is there: habit does not help."),
    ("T0/f1", "T0 F1", "F1 of yes; always saying yes gets 0.667, so the yes-ratio belongs beside it."),
    ("test/f1", "test F1", "F1 of yes; always saying yes gets 0.667, so the yes-ratio belongs beside it."),
    ("T0/cider_d", "T0 CIDEr-D",
     "Agreement of the captions' words with the references (0 to 10); with few references a wrong noun costs little."),
    ("val/cider_d", "validation CIDEr-D", "Agreement of the captions' words with the references (0 to 10)."),
    ("blind/cider_d", "blind CIDEr-D",
     "The same prompt without the medium: what the LLM gets by guessing. CIDEr-D below this means nothing."),
    ("val/loss", "validation loss", "Cross-entropy on held-out answer tokens, in nats per token; lower is better."),
    ("train/loss", "training loss", "Cross-entropy on the answer tokens at the end of training, in nats per token."),
)  # fmt: skip
MAX_HEADLINES = 9
# Metrics that are read against another one, and what that is called.
AGAINST = {RETRIEVAL: (RETRIEVAL_CHANCE, "chance"), GROWTH: (GROWTH_NULL, "by chance")}


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


# What a picture page calls otherwise than a page of clips or sounds, in order.
OF_MEDIA = {
    "audio": (
        ("Objects seen in training, in new scenes", "Sounds heard in training, in new mixtures"),
        ("objects seen in training, in new scenes", "sounds heard in training, in new mixtures"),
        ("seen objects, new scenes", "heard sounds, new mixtures"),
        ("New instances of known kinds of object", "New recordings of known kinds of sound"),
        ("new instances of known kinds", "new recordings of known kinds"),
        ("the right object", "the right sound"),
    ),
    "video": (("new scenes", "new clips"),),
}  # fmt: skip


def in_words_of(modality: Any, text: str) -> str:
    """A text of this page as it is said of pictures, clips or sounds."""
    for found, instead in OF_MEDIA.get(str(modality), ()):
        text = text.replace(found, instead)
    return text


def track_name(track: str, modality: Any = None) -> str:
    """As a person reads it, after the name of its entry where a mixture has several."""
    names = {"T0": "T0 · seen objects, new scenes", "T1": "T1 · new instances of known kinds",
             "T2": "T2 · unknown kinds", "test": "test", "val": "validation",
             "single_frame": "single frame · no motion", "shuffled_frames": "shuffled frames · no order",
             "shuffled": "shuffled · no order in time",
             "blind": "blind · no medium", "prior": "prior · best guess from the training answers"}  # fmt: skip
    entry, _, name = track.rpartition("/")
    return in_words_of(modality, (f"{entry}: " if entry else "") + names.get(name, name))
