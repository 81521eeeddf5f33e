"""Video encoders of Hugging Face: TimeSformer, VideoMAE and X-CLIP, each with its own frames, size and normalisation.

The number of frames and their size come from the model's config, mean and deviation from its processor's settings.
Frames are the middles of equal segments of the clip, resized whole (nothing cropped), as pictures are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ima.core.errors import UserError
from ima.core.media import Clip, spaced
from ima.models.encoders.base import Encoder, fingerprint_of
from ima.models.encoders.hf import (
    FINAL,
    check_complete,
    keep_layers,
    load_model,
    read_config,
    read_layer,
    read_processor,
)
from ima.models.encoders.image import ImagePreprocess


@dataclasses.dataclass(frozen=True)
class Family:
    """How one kind of model is run. `model`: class of transformers; `blocks`: where its list of blocks lies.

    `run` (model, x_BTCHW) -> output tokens; `shape` (config, layer) -> (N, E); `drop`: parts that read text.
    """

    model: str
    blocks: str
    run: Callable[[Any, Tensor], Tensor]
    shape: Callable[[Any, int], tuple[int, int]]
    drop: tuple[str, ...] = ()


def patches(config: Any) -> int:
    return int(config.image_size // config.patch_size) ** 2


def run_plain(model: Any, x_BTCHW: Tensor) -> Tensor:
    tokens_BNE: Tensor = model(pixel_values=x_BTCHW).last_hidden_state
    return tokens_BNE


def run_xclip(model: Any, x_BTCHW: Tensor) -> Tensor:
    """One token a frame, after the transformer that lets the frames speak to each other."""
    size, length = x_BTCHW.shape[:2]
    frames = model.vision_model(pixel_values=x_BTCHW.flatten(0, 1)).pooler_output
    tokens_BTE: Tensor = model.mit(model.visual_projection(frames).view(size, length, -1)).last_hidden_state
    return tokens_BTE


def shape_xclip(config: Any, layer: int) -> tuple[int, int]:
    vision = config.vision_config
    if layer == FINAL:
        return vision.num_frames, config.projection_dim
    return vision.num_frames * (1 + patches(vision)), vision.hidden_size


FAMILIES = {
    "timesformer": Family(
        "TimesformerModel", "encoder.layer", run_plain,
        lambda config, layer: (1 + config.num_frames * patches(config), config.hidden_size),
    ),
    "videomae": Family(
        "VideoMAEModel", "encoder.layer", run_plain,
        lambda config, layer: (config.num_frames // config.tubelet_size * patches(config), config.hidden_size),
    ),
    "xclip": Family(
        "XCLIPModel", "vision_model.encoder.layers", run_xclip, shape_xclip,
        ("text_model", "text_projection", "prompts_generator", "prompts_visual_layernorm", "prompts_visual_projection"),
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ClipPreprocess:
    """A clip -> x_TCHW float32: `num_frames` frames spread over it, each prepared as a picture."""

    num_frames: int
    frame: ImagePreprocess

    def __call__(self, medium: Any) -> Tensor:
        if not isinstance(medium, Clip):
            raise UserError(f"encoder: a video encoder reads clips (ima.core.media.Clip), not {type(medium).__name__}")
        if medium.num_frames < 1:
            raise UserError("encoder: a clip of 0 frames cannot be seen")
        return torch.stack([self.frame(image) for image in medium.frames(spaced(medium.num_frames, self.num_frames))])


class VideoTransformer(Encoder):
    """TimeSformer, VideoMAE or X-CLIP from a local folder or the hub; the kind is read from its config.json.

    layer: -1 is the network's own output (X-CLIP: one token a frame), 0 what enters the first block, l what leaves
    block l (X-CLIP: all tokens of all frames of the vision tower). Blocks after `layer` are dropped.
    pretrained=False gives random weights of the same config, drawn from `seed`.
    """

    RANGES = {"layer": (-1, None)}
    modality = "video"
    preprocess: ClipPreprocess

    def __init__(
        self, path: str, pretrained: bool = True, layer: int = FINAL, revision: str | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self.path, self.layer = path, layer
        config = read_config(path, revision, FAMILIES)
        self.family = FAMILIES[config.model_type]
        vision = getattr(config, "vision_config", config)
        facts = read_processor(path, revision, "video_processor")
        try:
            mean, std = tuple(facts["image_mean"]), tuple(facts["image_std"])
        except (KeyError, TypeError) as error:
            raise UserError(
                f"encoder.path={path}: the settings of its processor name no image_mean and image_std"
            ) from error
        frame = ImagePreprocess(vision.image_size, vision.image_size, mean, std)
        self.preprocess = ClipPreprocess(vision.num_frames, frame)
        self.model = load_model(self.family.model, path, config, pretrained, revision, seed)
        for name in self.family.drop:
            delattr(self.model, name)
        check_complete(self.model, self.model, path)
        keep_layers(self.blocks, layer)
        self.num_tokens, self.dim = self.family.shape(config, layer)
        self.freeze()
        self.fingerprint = fingerprint_of(
            self.model, kind=config.model_type, layer=layer, **dataclasses.asdict(self.preprocess)
        )

    @property
    def blocks(self) -> nn.ModuleList:
        blocks = self.model.get_submodule(self.family.blocks)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def encode(self, x_B: Tensor) -> Tensor:
        tokens = read_layer(self.blocks, self.layer, lambda: self.family.run(self.model, x_B))
        return tokens.reshape(len(x_B), -1, tokens.shape[-1])
