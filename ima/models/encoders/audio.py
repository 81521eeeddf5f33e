"""Sound encoders that need no network: aisfx (sound effects, CC BY 4.0 by A. B. Ma and A. Lerch) and log-mel patches.

Both hear the first `seconds` of a sound, at 44.1 kHz, through the same front-end: power of windows of 2048 samples
every 1024, in 96 mel bands, log-compressed. Tokens are blocks of eight frames (0.19 s) in order of time, so that what
comes first can be told. Random-weight twins (`pretrained=False`) have the same shapes, a seed and another fingerprint.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ima.core.assets.registry import locate
from ima.core.errors import UserError
from ima.core.media import RATES, Sound
from ima.models.encoders.base import Encoder, fingerprint_of, seeded
from ima.models.encoders.weights import aisfx_weights, load_weights

RATE, WINDOW, HOP, BANDS = 44100, 2048, 1024, 96
BLOCK = 8  # frames of a token
MAX_PRODUCT = 1_000_000  # of the two numbers of a resampling ratio
WIDTHS = (64, 128, 256, 512)


def heard(medium: Any, rate: int, seconds: float) -> Tensor:
    """(round(seconds * rate),) float32: the beginning of a sound at `rate`, silence after its end."""
    if not isinstance(medium, Sound):
        raise UserError(f"encoder: a sound encoder hears sounds (ima.core.media.Sound), not {type(medium).__name__}")
    length = round(seconds * rate)
    wave = torch.from_numpy(np.array(medium.wave[: math.ceil(seconds * medium.rate)], dtype=np.float32))
    if medium.rate != rate and len(wave):
        wave = resampled(wave, medium.rate, rate)
    return F.pad(wave[:length], (0, max(0, length - len(wave))))


def resampled(wave: Tensor, rate: int, to: int) -> Tensor:
    """`wave` at another rate. The filter's size is the product of the two rates without their common factors, which for
    odd rates (44,099 Hz) is gigabytes; there the nearest ratio of smaller numbers is taken (off by at most 0.05 %)."""
    from torchaudio.functional import resample

    if not RATES[0] <= rate <= RATES[1]:
        raise UserError(f"encoder: a sound of {rate} samples a second; allowed: {RATES[0]} to {RATES[1]}")
    ratio = Fraction(rate, to)
    if ratio.numerator * ratio.denominator > MAX_PRODUCT:
        ratio = ratio.limit_denominator(int(math.sqrt(MAX_PRODUCT / ratio)))
    out: Tensor = resample(wave, ratio.numerator, ratio.denominator)
    return out


@functools.cache
def mel_bands(rate: int = RATE, window: int = WINDOW, num: int = BANDS) -> Tensor:
    """(num, window / 2 + 1): triangles that are linear in mel (2595 log10(1 + f / 700)) up to rate / 2, each with
    weights that add up to 1."""
    mels = 2595 * np.log10(1 + np.arange(window // 2 + 1) * rate / window / 700)
    edges = np.linspace(0, 2595 * np.log10(1 + rate / 2 / 700), num + 2)
    up = (mels - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - mels) / (edges[2:] - edges[1:-1])[:, None]
    weights = np.clip(np.minimum(up, down), 0, None)
    return torch.from_numpy(weights / weights.sum(1, keepdims=True)).float()


@dataclasses.dataclass(frozen=True)
class MelPreprocess:
    """Sound -> (num_frames, 96), about 0 to 1. The constants are those that aisfx was trained with."""

    seconds: float

    @property
    def num_frames(self) -> int:
        return 1 + round(self.seconds * RATE) // HOP

    def __call__(self, medium: Any) -> Tensor:
        wave = heard(medium, RATE, self.seconds)
        window = torch.hann_window(WINDOW, periodic=False)
        found = torch.stft(wave, WINDOW, HOP, window=window, center=True, pad_mode="constant", return_complex=True)
        power = torch.view_as_real(found).square().sum(-1)
        return torch.log10(1 + 1e4 * (mel_bands() @ power)).T / 9.457798957824707


class LogMel(Encoder):
    """No network: the front-end itself, eight frames of 96 bands a token. What a trained encoder has to beat."""

    modality = "audio"
    dim = BLOCK * BANDS
    RANGES = {"seconds": (0.5, 60.0)}
    preprocess: MelPreprocess

    def __init__(self, seconds: float = 5.0) -> None:
        super().__init__()
        self.preprocess = mel_preprocess(seconds)
        self.num_tokens = self.preprocess.num_frames // BLOCK
        self.fingerprint = fingerprint_of(None, kind="log_mel", seconds=seconds)
        self.freeze()

    def encode(self, x_B: Tensor) -> Tensor:
        return x_B[:, : self.num_tokens * BLOCK].unflatten(1, (self.num_tokens, BLOCK)).flatten(2)


class AisFx(Encoder):
    """The embedding network of aisfx: its last feature map, averaged over frequency, one token a block of time.

    The published embedding of a block of 100 frames is the maximum over that block's tokens.
    """

    modality = "audio"
    dim = WIDTHS[-1]
    RANGES = {"seconds": (0.5, 60.0)}
    preprocess: MelPreprocess

    def __init__(self, seconds: float = 5.0, pretrained: bool = True, seed: int = 0) -> None:
        super().__init__()
        self.preprocess = mel_preprocess(seconds)
        self.num_tokens = self.preprocess.num_frames // BLOCK
        with seeded(seed):
            self.model = AisFxNet()
        if pretrained:
            load_weights(self.model, aisfx_weights(locate("aisfx")), "the weights of aisfx")
        self.freeze()
        self.fingerprint = fingerprint_of(self.model, kind="aisfx", seconds=seconds)

    def encode(self, x_B: Tensor) -> Tensor:
        # The first maps are large: few at a time stay in a CPU's cache, which is twice as fast.
        return torch.cat([self.model(part) for part in x_B.split(4 if x_B.device.type == "cpu" else len(x_B))])


class AisFxNet(nn.Module):
    """Four pairs of 3x3 convolutions, each with batch norm and ReLU; time and frequency halved after the first three.

    x (B, T, 96) -> (B, T // 8, 512). Names of parameters are those of the checkpoint.
    """

    def __init__(self) -> None:
        super().__init__()
        for index, (num_in, num_out) in enumerate(zip((1, *WIDTHS), WIDTHS, strict=False), 1):
            self.add_module(f"conv_block{index}", ConvPair(num_in, num_out))

    def forward(self, x_BTF: Tensor) -> Tensor:
        map_BETF = x_BTF[:, None]
        for index, block in enumerate(self.children()):
            map_BETF = block(map_BETF)
            if index < 3:
                map_BETF = F.max_pool2d(map_BETF, 2)
        return map_BETF.mean(3).transpose(1, 2)


class ConvPair(nn.Module):
    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_out)
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_uniform_(conv.weight, nonlinearity="relu")

    def forward(self, map_BETF: Tensor) -> Tensor:
        out: Tensor = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(map_BETF))))))
        return out


def mel_preprocess(seconds: float) -> MelPreprocess:
    low, high = LogMel.RANGES["seconds"]
    if not low <= seconds <= high:
        raise UserError(f"seconds: {seconds} is out of range; allowed {low} to {high}")
    return MelPreprocess(float(seconds))
