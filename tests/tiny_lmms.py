"""Tiny random multimodal models with real processors, as folders that transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ima.models.llm.tiny import tiny_tokenizer

KINDS = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl")
TEXT = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|im_start|>", "<|im_end|>")
QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA_TEMPLATE = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n{% endif %}"
    "{% endfor %}{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %} "
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def write_lmm(folder: Path, kind: str, template: bool = True) -> Path:
    torch.manual_seed(0)
    model, processor = (qwen if kind.startswith("qwen") else llava)(kind, template)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def llava(kind: str, template: bool) -> tuple[Any, Any]:
    import transformers as t

    tokenizer = tiny_tokenizer(("<image>",))
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    text = t.LlamaConfig(vocab_size=len(tokenizer), **TEXT)
    vision = t.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=14
    )
    size: dict[str, Any] = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    common: dict[str, Any] = {"vision_feature_select_strategy": "default"}
    patches: dict[str, Any] = common | {"patch_size": 14, "image_token": "<image>", "num_additional_image_tokens": 1}
    patches["chat_template"] = LLAVA_TEMPLATE if template else None
    shared: dict[str, Any] = common | {"vision_config": vision, "text_config": text, "image_token_id": image_id}
    shared["vision_feature_layer"] = -1
    if kind == "llava":
        model: Any = t.LlavaForConditionalGeneration(t.LlavaConfig(**shared))
        return model, t.LlavaProcessor(t.CLIPImageProcessor(**size), tokenizer, **patches)
    tiles = [[28, 56], [56, 28], [56, 56]]
    model = t.LlavaNextForConditionalGeneration(t.LlavaNextConfig(**shared, image_grid_pinpoints=tiles))
    return model, t.LlavaNextProcessor(
        t.LlavaNextImageProcessor(**size, image_grid_pinpoints=tiles), tokenizer, **patches
    )


def qwen(kind: str, template: bool) -> tuple[Any, Any]:
    import transformers as t

    tokenizer = tiny_tokenizer(QWEN_TOKENS)
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
             "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}  # fmt: skip
    ids: dict[str, Any] = {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    text = TEXT | {"vocab_size": len(tokenizer), "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    patches = {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_heads": 4, "depth": 2}
    if kind == "qwen2_vl":
        vision = patches | {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
        model: Any = t.Qwen2VLForConditionalGeneration(t.Qwen2VLConfig(text_config=text, vision_config=vision, **ids))
        made: Any = t.Qwen2VLProcessor
    else:
        vision = patches | {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "window_size": 56,
                            "fullatt_block_indexes": [1]}  # fmt: skip
        model = t.Qwen2_5_VLForConditionalGeneration(t.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))
        made = t.Qwen2_5_VLProcessor
    pictures = t.Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=28 * 28 * 16)
    processor = made(pictures, tokenizer, t.Qwen2VLVideoProcessor(), chat_template=QWEN_TEMPLATE)
    return model, processor
