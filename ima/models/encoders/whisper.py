"""The encoder of Whisper tiny.en, embedded (MIT): a speech network, which hears other sounds too.

Only as many positions are computed as there are seconds to hear; the published use always fills half a minute with
silence, at several times the cost. Earlier layers tell sounds apart better than the last one, which is about words.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ima.core.assets.registry import locate
from ima.core.errors import UserError
from ima.models.encoders.audio import heard
from ima.models.encoders.base import Encoder, fingerprint_of, seeded
from ima.models.encoders.weights import load_weights
from ima.models.formats.ctranslate2 import read_ct2, whisper_encoder_weights

RATE, WINDOW, HOP, BANDS = 16000, 400, 160, 80
FINAL, NUM_LAYERS = -1, 4


@dataclasses.dataclass(frozen=True)
class WhisperPreprocess:
    """Sound -> (80, 100 * seconds): log-mel energies every 10 ms, within 80 dB of the loudest."""

    seconds: float

    def __call__(self, medium: Any) -> Tensor:
        wave = heard(medium, RATE, self.seconds)
        window = torch.hann_window(WINDOW)
        found = torch.stft(wave, WINDOW, HOP, window=window, center=True, pad_mode="reflect", return_complex=True)
        power = torch.view_as_real(found[:, :-1]).square().sum(-1)
        energy = torch.clamp(slaney_bands() @ power, min=1e-10).log10()
        return (torch.maximum(energy, energy.max() - 8) + 4) / 4


def slaney_bands() -> Tensor:
    """(80, 201)"""
    from transformers.audio_utils import mel_filter_bank

    bands = mel_filter_bank(WINDOW // 2 + 1, BANDS, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney")
    return torch.from_numpy(bands.T.copy()).float()


class WhisperTiny(Encoder):
    """layer: 0 is what enters the first block, 4 the output of the last one, -1 the normed output. Positions are 20 ms
    each; `pool` of them are averaged to one token."""

    modality = "audio"
    dim = 384
    RANGES = {"seconds": (0.5, 30.0), "pool": (1, None)}
    preprocess: WhisperPreprocess

    def __init__(
        self, layer: int = 2, seconds: float = 5.0, pool: int = 4, pretrained: bool = True, seed: int = 0
    ) -> None:
        from transformers import WhisperConfig
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        super().__init__()
        if not FINAL <= layer <= NUM_LAYERS:
            raise UserError(f"layer: {layer} does not exist; 0 to {NUM_LAYERS}, or {FINAL} for the output")
        low, high = self.RANGES["seconds"]
        if high is None or low is None or not low <= seconds <= high:
            raise UserError(f"seconds: {seconds} is out of range; allowed {low} to {high}")
        if not 1 <= pool <= int(seconds * 50):
            raise UserError(f"pool: {pool} is out of range; allowed 1 to {int(seconds * 50)}")
        config = WhisperConfig(
            d_model=self.dim, encoder_layers=NUM_LAYERS, encoder_attention_heads=6, encoder_ffn_dim=1536,
            num_mel_bins=BANDS,
        )  # fmt: skip
        self.layer, self.pool = layer, pool
        self.preprocess = WhisperPreprocess(float(seconds))
        self.num_tokens = int(seconds * 50) // pool
        with seeded(seed):
            self.model = WhisperEncoder(config)
        if pretrained:
            weights = whisper_encoder_weights(read_ct2(locate("whisper_tiny")))
            load_weights(self.model, weights, "the weights of Whisper tiny.en")
        if layer != FINAL:
            self.model.layers = self.model.layers[:layer]
            self.model.layer_norm = nn.Identity()  # type: ignore[assignment]
        self.freeze()
        self.fingerprint = fingerprint_of(self.model, kind="whisper_tiny", layer=layer, seconds=seconds, pool=pool)

    def encode(self, x_B: Tensor) -> Tensor:
        h_BSE = F.gelu(self.model.conv2(F.gelu(self.model.conv1(x_B)))).transpose(1, 2)
        h_BSE = h_BSE + self.model.embed_positions.weight[: h_BSE.shape[1]]
        for block in self.model.layers:
            h_BSE = block(h_BSE, None)
        h_BSE = self.model.layer_norm(h_BSE)[:, : self.num_tokens * self.pool]
        return h_BSE.unflatten(1, (self.num_tokens, self.pool)).mean(2)
