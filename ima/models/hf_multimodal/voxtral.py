"""Voxtral's processor takes sounds only through a tokenizer of mistral_common; here their ids are laid out by hand.

A sound is cut into stretches of the feature extractor's length, the last one filled up with silence, and each stretch
is the same number of placeholders: four frames of the encoder, which halves the spectrogram, are one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

BEGIN = "[BEGIN_AUDIO]"
FRAMES_OF_ONE = 8  # of the spectrogram: the encoder halves them, four make one placeholder


def lay_out_by_hand(
    processor: Any, text: str, waves: Sequence[np.ndarray], placeholder: str, asked: dict[str, Any]
) -> dict[str, Any]:
    """What a processor's call would give, from a text with one placeholder for each sound. asked: of the tokenizer."""
    ears = processor.feature_extractor
    pieces, spans = text.split(placeholder), []
    written = pieces[0]
    for wave, piece in zip(waves, pieces[1:], strict=True):
        num_stretches = -(-len(wave) // ears.n_samples)
        stretch = BEGIN + placeholder * (num_stretches * ears.nb_max_frames // FRAMES_OF_ONE)
        at = len(written)
        written += stretch + piece
        spans.append({"type": "audio", "new_span": (at, at + len(stretch))})
    features = processor._retrieve_input_features(
        list(waves), max_source_positions=ears.nb_max_frames, sampling_rate=ears.sampling_rate, padding=True,
        truncation=False, pad_to_multiple_of=ears.n_samples, return_tensors="pt",
    )  # fmt: skip
    made = dict(processor.tokenizer(written, **asked))
    return made | {"text_replacement_offsets": [spans], "input_features": features}
