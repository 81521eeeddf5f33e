"""What is particular to one type of multimodal model: an entry of a few words, over one general rule (`layout`).

A type that has no entry is tried by the rule alone and must pass `ima.models.hf_multimodal.check`. To add a type: give
it a tiny model in tests/tiny_lmms.py, run the tests of tests/pipeline/test_lmm_types.py, and write down here only what
they show to be otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

PLAIN = "USER: {media}\n{prompt} ASSISTANT:"  # LLaVA-1.5's, for processors without a template of their own
CAPTION = "{media}{prompt}"
IMAGE, VIDEO, SOUND = ("image",), ("image", "video"), ("audio",)
KEYS = {"image": "images", "video": "videos", "audio": "audio"}  # of a processor's call
# Where configs keep the ids of placeholders.
ID_NAMES = ("image_token_id", "video_token_id", "audio_token_id", "image_patch_id")

Vectors = Callable[[Any], list[Tensor]]


def newline(whole: Any) -> list[Tensor]:
    """The vector at the end of each row of tiles."""
    return [whole.model.image_newline]


def projected_separators(whole: Any) -> list[Tensor]:
    """Phi-4 sends its two separators through the same maps as pictures."""
    embed = whole.model.embed_tokens_extend.image_embed
    both = (embed.sub_img_feature_extensor, embed.global_img_feature_extensor)
    return [embed.img_projection_down(F.gelu(embed.img_projection_up(each.flatten()))) for each in both]


@dataclasses.dataclass(frozen=True)
class Kind:
    """model_type: as config.json has it; processor: name of the class, where several share a type.

    modalities: media that it is shown. plain: how a turn is laid out by a processor without a template. bare: the text
    without media, where the processor takes none. appended: what the processor writes behind every text. answer_type:
    the token type of answers (0 as a rule). flat: the processor takes pictures of one text as a list, not as a list of
    lists. learned: vectors of the model's own that stand under placeholder ids, which are then no percepts. counted:
    inputs of media that count patches from the batch's first row on, by the input that holds the patches. alone: what
    the model makes of a medium depends on the batch, so that each is encoded by itself. by_hand: the processor does not
    lay out text with media (Voxtral's).
    """

    model_type: str
    modalities: tuple[str, ...] = IMAGE
    processor: str = ""
    plain: str = PLAIN
    bare: str = ""
    appended: str = ""
    answer_type: int = 0
    flat: bool = False
    learned: Vectors | None = None
    counted: Mapping[str, str] = dataclasses.field(default_factory=dict)
    alone: bool = False
    by_hand: bool = False
    listed: bool = True


KINDS = (
    Kind("llava", processor="LlavaProcessor"),
    Kind("llava", processor="PixtralProcessor"),
    Kind("mistral3"),
    Kind("llava_next", learned=newline),
    Kind("llava_onevision", VIDEO, learned=newline),
    Kind("qwen2_vl", VIDEO),
    Kind("qwen2_5_vl", VIDEO),
    Kind("qwen3_vl", VIDEO),
    Kind("gemma3"),
    # The whole prompt sees itself both ways, and so would an answer of type 0.
    Kind("paligemma", plain=CAPTION, bare="{bos}{prompt}\n", appended="\n", answer_type=1),
    Kind("idefics3"),
    Kind("smolvlm"),
    Kind("internvl", VIDEO),
    Kind("molmo2", counted={"image_token_pooling": "pixel_values"}),
    Kind("phi4_multimodal", flat=True, learned=projected_separators, alone=True),
    Kind("qwen2_audio", SOUND, plain="<|audio_bos|>{media}<|audio_eos|>{prompt}"),
    Kind("voxtral", SOUND, plain="<s>[INST]{media}{prompt}[/INST]", by_hand=True),
)

# Types of which it is known why they cannot be measured rightly.
REFUSED: dict[str, str] = {
    "aya_vision": "its blocks run attention and FFN side by side and its head scales the logits",
    "florence2": "it is an encoder and a decoder, not one sequence of media and text",
    "gemma3n": "its blocks carry several streams and share keys and values",
    "gemma4": "its last blocks share the keys and values of earlier ones and see the last position only",
    "granite_speech": "its blocks multiply what they add to the stream",
    "instructblip": "a second tokenizer reads the question for it",
    "lfm2_vl": "its convolutions mix neighbouring positions, so that percepts and text cannot be kept apart",
    "qwen3_vl_moe": "its experts are no nn.Linear, which FLOPs, masks and skips need",
}


def kind_of(model_type: str, processor: str = "") -> Kind:
    """The entry of a type, of several its processor's or the first; for others one that says nothing but the rule."""
    found = [kind for kind in KINDS if kind.model_type == model_type]
    if found:
        return next((kind for kind in found if kind.processor in ("", processor)), found[0])
    return Kind(model_type, modalities=("image", "video", "audio"), listed=False)


def types() -> list[str]:
    return sorted({kind.model_type for kind in KINDS})
