"""How recordings become one sound of a fixed length: cut, repeated, placed, made louder or softer, over pink noise.

A mix is exactly the sum of its layers (one for each recording, one of noise), so that what is said about it can be
checked against them. Everything comes from the draws that are given; nothing here reads files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ima.core.keyed_random import Draws
from ima.data.stampworld.sounds import LEVEL, RATE

SECONDS = 5.0
LONGEST = {"single": 4.0, "together": 3.0, "sequence": 2.2}  # seconds of one recording
SHORT = 0.6  # seconds; what is shorter may be repeated up to twice
FADE = 0.01
GAIN_DB = 4.0
NOISE_DB = (-40.0, -24.0)  # against LEVEL
PEAK = 0.99


def layers_of(draws: Draws, kind: str, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
    """kind: single, together or sequence (in the order given). One float32 layer of SECONDS for each wave, in order,
    and one of noise; their sum stays within -1 and 1."""
    pieces = [piece(draws, wave, LONGEST[kind]) for wave in waves]
    layers = []
    for wave, start in zip(pieces, starts(draws, kind, [len(wave) for wave in pieces]), strict=True):
        layer = np.zeros(round(SECONDS * RATE), dtype=np.float32)
        layer[start : start + len(wave)] = wave * np.float32(10 ** (draws.between(-GAIN_DB, GAIN_DB) / 20))
        layers.append(layer)
    layers.append(pink(draws, round(SECONDS * RATE)) * np.float32(LEVEL * 10 ** (draws.between(*NOISE_DB) / 20)))
    peak = float(np.abs(sum(layers)).max())
    return [layer * np.float32(PEAK / peak) for layer in layers] if peak > PEAK else layers


def piece(draws: Draws, wave: np.ndarray, longest: float) -> np.ndarray:
    """At most `longest` seconds of a recording, its loudest ones; a short one up to three times."""
    wave = faded(loudest(wave, round(longest * RATE)))
    if len(wave) >= SHORT * RATE:
        return wave
    parts = [wave]
    for _ in range(draws.below(3)):
        parts += [np.zeros(round(draws.between(0.15, 0.4) * RATE), dtype=np.float32), wave]
        if sum(map(len, parts)) > longest * RATE:
            parts = parts[:-2]
            break
    return np.concatenate(parts)


def loudest(wave: np.ndarray, length: int) -> np.ndarray:
    """The window of `length` samples that holds the most energy."""
    if len(wave) <= length:
        return wave
    energy = np.concatenate([[0.0], np.cumsum(wave.astype(np.float64) ** 2)])
    start = int(np.argmax(energy[length:] - energy[:-length]))
    return wave[start : start + length]


def faded(wave: np.ndarray) -> np.ndarray:
    """Without clicks at the cuts."""
    num = min(round(FADE * RATE), len(wave) // 4)
    ramp = np.linspace(0, 1, num, dtype=np.float32)
    out = wave.copy()
    out[:num] *= ramp
    out[len(out) - num :] *= ramp[::-1]
    return out


def starts(draws: Draws, kind: str, lengths: Sequence[int]) -> list[int]:
    """Where each piece begins. Together: at least half of the shorter one sounds with the longer. Sequence: one after
    the other with a pause between."""
    total = round(SECONDS * RATE)
    if kind == "single":
        return [draws.below(total - lengths[0] + 1)]
    if kind == "together":
        long, short = (0, 1) if lengths[0] >= lengths[1] else (1, 0)
        begin = draws.below(total - lengths[long] + 1)
        other = begin + draws.below(lengths[long] - lengths[short] // 2 + 1)
        out = {long: begin, short: min(other, total - lengths[short])}
        return [out[0], out[1]]
    pause = round(draws.between(0.1, 0.4) * RATE)
    begin = draws.below(total - sum(lengths) - pause + 1)
    return [begin, begin + lengths[0] + pause]


def pink(draws: Draws, length: int) -> np.ndarray:
    """Noise with the same power in every octave, root mean square 1."""
    spectrum = np.fft.rfft(draws.field(1, length)[0] - 0.5)
    spectrum[0] = 0
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    wave = np.fft.irfft(spectrum, length)
    return (wave / np.sqrt(np.mean(wave**2))).astype(np.float32)


def shuffled(draws: Draws, wave: np.ndarray, num_blocks: int = 10) -> np.ndarray:
    """The same blocks of half a second in another order: what is heard stays, when does not."""
    blocks = np.array_split(wave, num_blocks)
    return np.concatenate([blocks[index] for index in draws.shuffled(range(num_blocks))])
