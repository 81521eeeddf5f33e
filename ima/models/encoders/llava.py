"""The vision tower of a Hugging Face LLaVA checkpoint, with the layer and the tokens that it reads."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ima.core.errors import UserError
from ima.core.trust import STOCK
from ima.models.encoders.base import Encoder, fingerprint_of
from ima.models.encoders.hf import cannot, read_config, read_processor
from ima.models.encoders.image import ImagePreprocess


class LlavaTower(Encoder):
    """path: a folder or a name on the hub of a LlavaForConditionalGeneration. Pictures are resized whole to the
    tower's square; LLaVA itself cuts or pads them."""

    modality = "image"

    def __init__(self, path: str, revision: str | None = None) -> None:
        from transformers import LlavaForConditionalGeneration

        super().__init__()
        config: Any = read_config(path, revision, {"llava": None})
        try:
            kind: Any = LlavaForConditionalGeneration
            whole = kind.from_pretrained(path, revision=revision, dtype=torch.float32, **STOCK)
        except Exception as error:
            raise cannot(path, "its weights", error) from error
        layer, self.select = config.vision_feature_layer, config.vision_feature_select_strategy
        if not isinstance(layer, int):
            raise UserError(f"encoder.path={path}: reads several layers {layer}; only one is supported")
        self.layer = layer
        self.model = whole.model.vision_tower
        facts = read_processor(path, revision, "image_processor")
        mean, std = (tuple(facts.get(key) or (0.5, 0.5, 0.5)) for key in ("image_mean", "image_std"))
        side = side_of(facts) or config.vision_config.image_size
        self.preprocess: ImagePreprocess = ImagePreprocess(side, side, mean, std)
        self.freeze()
        features = self(torch.zeros(1, 3, side, side))
        self.num_tokens, self.dim = features.shape[1], features.shape[2]
        self.fingerprint = fingerprint_of(
            self.model, kind="llava", layer=layer, select=self.select, **dataclasses.asdict(self.preprocess)
        )

    def encode(self, x_B: Tensor) -> Tensor:
        h_BNE: Tensor = self.model(pixel_values=x_B, output_hidden_states=True).hidden_states[self.layer]
        return h_BNE[:, 1:] if self.select == "default" else h_BNE


def side_of(facts: dict[str, Any]) -> int | None:
    """The height of the pictures that a processor makes; older files give it as a number."""
    for size in (facts.get("size"), facts.get("crop_size")):
        height = size.get("height") if isinstance(size, dict) else size
        if height:
            return int(height)
    return None
