"""Audio encoders at full size: AST, CLAP and Whisper of Hugging Face, AudioMAE by way of timm.

Each hears at its own sample rate, through the feature extractor that comes with the model. A sound longer than the
model's window is heard from its start to the end of the window (CLAP's own extractor would draw a random part).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ima.core.errors import UserError
from ima.core.media import Sound
from ima.core.trust import STOCK
from ima.models.encoders.audio import resampled
from ima.models.encoders.base import Encoder, fingerprint_of, seeded
from ima.models.encoders.hf import FINAL, cannot, check_complete, keep_layers, load_model, read_config, read_layer

MIN_SECONDS = 0.1  # shorter sounds are padded with silence: a spectrogram needs one whole window


def wave_at(medium: Any, rate: int, num_samples: int) -> Tensor:
    """The first `num_samples` samples (or fewer) of a sound at `rate`, float32."""
    if not isinstance(medium, Sound):
        raise UserError(f"encoder: an audio encoder reads sounds (ima.core.media.Sound), not {type(medium).__name__}")
    if len(medium.wave) < 1:
        raise UserError("encoder: a sound of 0 samples cannot be heard")
    ahead = (num_samples // rate + 2) * medium.rate  # what lies beyond cannot be heard: resampling it would be waste
    wave = torch.from_numpy(medium.wave[:ahead].copy()).float()
    if medium.rate != rate:
        wave = resampled(wave, medium.rate, rate)
    wave = wave[:num_samples]
    short = int(MIN_SECONDS * rate) - len(wave)
    return torch.nn.functional.pad(wave, (0, short)) if short > 0 else wave


@dataclasses.dataclass(frozen=True)
class ExtractorPreprocess:
    """A sound -> what the model's own feature extractor makes of it; `key` names that among its outputs."""

    extractor: Any
    key: str
    num_samples: int

    def __call__(self, medium: Any) -> Tensor:
        rate = self.extractor.sampling_rate
        wave = wave_at(medium, rate, self.num_samples).numpy()
        found = self.extractor(wave, sampling_rate=rate, return_tensors="pt")[self.key]
        return torch.as_tensor(found[0]).float()


@dataclasses.dataclass(frozen=True)
class FbankPreprocess:
    """A sound -> (1, num_frames, num_bins): Kaldi's log-mel energies every 10 ms, padded with silence, normalised."""

    num_frames: int
    num_bins: int
    rate: int = 16000
    mean: float = -4.2677393  # AudioSet's, with which AudioMAE was trained
    std: float = 4.5689974

    def __call__(self, medium: Any) -> Tensor:
        from torchaudio.compliance import kaldi

        wave = wave_at(medium, self.rate, (self.num_frames + 2) * self.rate // 100)
        energies = kaldi.fbank(
            (wave - wave.mean())[None], htk_compat=True, sample_frequency=self.rate, use_energy=False,
            window_type="hanning", num_mel_bins=self.num_bins, dither=0.0, frame_shift=10,
        )[: self.num_frames]  # fmt: skip
        energies = torch.nn.functional.pad(energies, (0, 0, 0, self.num_frames - len(energies)))
        normed: Tensor = (energies - self.mean) / (2 * self.std)
        return normed[None]


@dataclasses.dataclass(frozen=True)
class Family:
    """How one kind of model is run. `model`: class of transformers; `tower`: the part of it that hears; `blocks`: its
    list of blocks, None where layers differ in width; `key`: its input; `shape` (config) -> (N, E); `window`
    (extractor) -> samples that it hears at most."""

    model: str
    tower: str
    blocks: str | None
    key: str
    shape: Callable[[Any], tuple[int, int]]
    window: Callable[[Any], int]


def shape_ast(config: Any) -> tuple[int, int]:
    along = [(size - config.patch_size) // stride + 1 for size, stride in (
        (config.num_mel_bins, config.frequency_stride), (config.max_length, config.time_stride),
    )]  # fmt: skip
    return along[0] * along[1] + 2, config.hidden_size


def shape_clap(config: Any) -> tuple[int, int]:
    """The last map of its Swin transformer: each stage but the first halves both sides and doubles the width."""
    audio = config.audio_config
    halvings = 2 ** (len(audio.depths) - 1)
    strides = audio.patch_stride if isinstance(audio.patch_stride, list | tuple) else (audio.patch_stride,) * 2
    sides = [audio.spec_size // stride // halvings for stride in strides]
    return sides[0] * sides[1], audio.patch_embeds_hidden_size * halvings


FAMILIES = {
    "audio-spectrogram-transformer": Family(
        "ASTModel", "", "layers", "input_values", shape_ast,
        lambda extractor: (extractor.max_length + 2) * extractor.sampling_rate // 100,  # frames of 10 ms
    ),
    "clap": Family(
        "ClapModel", "audio_model.audio_encoder", None, "input_features", shape_clap,
        lambda extractor: int(extractor.nb_max_samples),
    ),
    "whisper": Family(
        "WhisperModel", "encoder", "layers", "input_features",
        lambda config: (config.max_source_positions, config.d_model),
        lambda extractor: int(extractor.n_samples),
    ),
}  # fmt: skip


class AudioTransformer(Encoder):
    """AST, CLAP's audio side or Whisper's encoder from a local folder or the hub; its config.json tells the kind.

    layer: -1 is the network's own output, 0 what enters the first block, l what leaves block l; blocks after `layer`
    are dropped. CLAP has its output only. Whisper always hears 30 s, the rest of a shorter sound being silence.
    pretrained=False gives random weights of the same config, drawn from `seed`.
    """

    RANGES = {"layer": (-1, None)}
    modality = "audio"
    preprocess: ExtractorPreprocess

    def __init__(
        self, path: str, pretrained: bool = True, layer: int = FINAL, revision: str | None = None, seed: int = 0
    ) -> None:
        from transformers import AutoFeatureExtractor

        super().__init__()
        self.path, self.layer = path, layer
        config = read_config(path, revision, FAMILIES)
        self.family = FAMILIES[config.model_type]
        if config.model_type == "clap" and config.audio_config.enable_fusion:
            raise UserError(f"encoder.path={path}: CLAP with fusion draws random parts; take laion/clap-htsat-unfused")
        if self.family.blocks is None and layer != FINAL:
            raise UserError(f"encoder.layer={layer}: {config.model_type} gives its output only, which is layer -1")
        try:
            extractor = AutoFeatureExtractor.from_pretrained(path, revision=revision, **STOCK)
            num_samples = self.family.window(extractor)
        except Exception as error:
            raise cannot(path, "preprocessor_config.json", error) from error
        if config.model_type == "clap":
            extractor.truncation = "rand_trunc"  # one spectrogram, as without fusion; nothing is left to be cut
        self.preprocess = ExtractorPreprocess(extractor, self.family.key, num_samples)
        whole = load_model(self.family.model, path, config, pretrained, revision, seed)
        self.model = whole.get_submodule(self.family.tower)
        check_complete(whole, self.model, path)
        if self.blocks is not None:
            keep_layers(self.blocks, layer)
        self.num_tokens, self.dim = self.family.shape(config)
        self.freeze()
        self.fingerprint = fingerprint_of(self.model, kind=config.model_type, layer=layer, **extractor.to_dict())

    @property
    def blocks(self) -> nn.ModuleList | None:
        found = None if self.family.blocks is None else self.model.get_submodule(self.family.blocks)
        assert found is None or isinstance(found, nn.ModuleList)
        return found

    def encode(self, x_B: Tensor) -> Tensor:
        def run() -> Tensor:
            output: Tensor = self.model(**{self.family.key: x_B}).last_hidden_state
            return output

        if self.blocks is None:
            return run().flatten(2).transpose(1, 2)
        return read_layer(self.blocks, self.layer, run)


class AudioMAE(Encoder):
    """AudioMAE's encoder as timm has it on the hub: log-mel energies as a picture of one channel, CLS token first.

    path: a hub name or a local folder with timm's config.json. Layers as in `AudioTransformer`.
    """

    RANGES = {"layer": (-1, None)}
    modality = "audio"
    preprocess: FbankPreprocess

    def __init__(self, path: str, pretrained: bool = True, layer: int = FINAL, seed: int = 0) -> None:
        super().__init__()
        self.path, self.layer = path, layer
        self.model = open_timm(path, pretrained, seed)
        (num_frames, num_bins), channels = self.model.patch_embed.img_size, self.model.patch_embed.proj.in_channels
        if channels != 1:
            raise UserError(f"encoder.path={path}: reads {channels} channels; log-mel energies have one")
        self.preprocess = FbankPreprocess(num_frames, num_bins)
        keep_layers(self.blocks, layer)
        self.num_tokens = self.model.patch_embed.num_patches + self.model.num_prefix_tokens
        self.dim = self.model.embed_dim
        self.freeze()
        self.fingerprint = fingerprint_of(
            self.model, kind="audiomae", layer=layer, **dataclasses.asdict(self.preprocess)
        )

    @property
    def blocks(self) -> nn.ModuleList:
        """timm keeps its blocks in a Sequential, which is cut and read in the same way."""
        blocks: nn.ModuleList = self.model.blocks
        return blocks

    def encode(self, x_B: Tensor) -> Tensor:
        return read_layer(self.blocks, self.layer, lambda: self.model.forward_features(x_B))


def open_timm(path: str, pretrained: bool, seed: int) -> Any:
    """A vision transformer that timm describes in a folder's or hub name's config.json."""
    import timm

    source = f"{'local-dir' if Path(path).is_dir() else 'hf-hub'}:{path}"
    try:
        with seeded(seed):
            model: Any = timm.create_model(source, pretrained=pretrained, num_classes=0)
    except Exception as error:  # the hub, the network and timm each have their own kinds
        raise cannot(path, "the model of timm", error) from error
    if not hasattr(model, "patch_embed") or not hasattr(model, "blocks"):
        raise UserError(f"encoder.path={path}: {type(model).__name__} is no vision transformer")
    return model
