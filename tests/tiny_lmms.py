"""Tiny random multimodal models with real processors, built offline: `tiny(kind)` in memory, `write_lmm` as folders.

A kind is a model type with its processor class. Towers have two blocks and language models three, all 32 wide.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as t

from ima.models.llm.tiny import tiny_tokenizer

TEXT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 2048, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TOWER: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
PATCHES: dict[str, Any] = TOWER | {"image_size": 28, "patch_size": 14}
SQUARE: dict[str, Any] = {"size": {"height": 28, "width": 28}}
SHORTEST: dict[str, Any] = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
LONGEST: dict[str, Any] = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 28}}
PIXELS: dict[str, Any] = {"size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16}}
TILES = [[28, 56], [56, 28], [56, 56]]
DEFAULT: dict[str, Any] = {"vision_feature_select_strategy": "default"}


@dataclasses.dataclass
class Tiny:
    """shown: what a template writes for a medium, by modality; none where the model knows no template."""

    model: Any
    processor: Any
    shown: dict[str, str]


def chat(shown: dict[str, str]) -> str:
    """A template that shows media where they stand in a turn and marks what the assistant says."""
    media = "".join(f"{{% elif c['type'] == '{kind}' %}}{token}" for kind, token in shown.items())
    return (
        "{% for m in messages %}{{ m['role'].upper() }}: {% for c in m['content'] %}{% if c['type'] == 'text' %}"
        "{% if m['role'] == 'assistant' %}{% generation %}{{ c['text'] }}{% endgeneration %}{% else %}"
        "{{ c['text'] }}{% endif %}" + media + "{% endif %}{% endfor %} {% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )


def named_tokenizer(names: dict[str, str]) -> Any:
    """names: attribute -> token, as processors read them off the tokenizer."""
    plain = tiny_tokenizer(tuple(names.values()))
    return t.PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        clean_up_tokenization_spaces=False, extra_special_tokens=names,
    )  # fmt: skip


def ids_of(tokenizer: Any, *tokens: str) -> list[int]:
    return [int(tokenizer.convert_tokens_to_ids(token)) for token in tokens]


def clip_tower() -> Any:
    return t.CLIPVisionConfig(**PATCHES)


def siglip_tower(**more: Any) -> Any:
    return t.SiglipVisionConfig(**(PATCHES | {"vision_use_head": False} | more))


# -- LLaVA and its like ----------------------------------------------------------------------------------------------


def llava() -> Tiny:
    tokenizer = tiny_tokenizer(("<image>",))
    config = t.LlavaConfig(
        vision_config=clip_tower(), text_config=t.LlamaConfig(vocab_size=len(tokenizer), **TEXT),
        image_token_index=ids_of(tokenizer, "<image>")[0], vision_feature_layer=-1, **DEFAULT,
    )  # fmt: skip
    processor = t.LlavaProcessor(
        t.CLIPImageProcessor(**SHORTEST), tokenizer, patch_size=14, num_additional_image_tokens=1, **DEFAULT
    )
    return Tiny(t.LlavaForConditionalGeneration(config), processor, {"image": "<image>\n"})


def llava_next() -> Tiny:
    tokenizer = tiny_tokenizer(("<image>",))
    config = t.LlavaNextConfig(
        vision_config=clip_tower(), text_config=t.LlamaConfig(vocab_size=len(tokenizer), **TEXT), **DEFAULT,
        image_token_index=ids_of(tokenizer, "<image>")[0], vision_feature_layer=-1, image_grid_pinpoints=TILES,
    )  # fmt: skip
    pictures = t.LlavaNextImageProcessor(**SHORTEST, image_grid_pinpoints=TILES)
    processor = t.LlavaNextProcessor(pictures, tokenizer, patch_size=14, num_additional_image_tokens=1, **DEFAULT)
    return Tiny(t.LlavaNextForConditionalGeneration(config), processor, {"image": "<image>\n"})


def llava_onevision() -> Tiny:
    tokenizer, pins = tiny_tokenizer(("<image>", "<video>")), [[28, 28], *TILES]
    image, video = ids_of(tokenizer, "<image>", "<video>")
    config = t.LlavaOnevisionConfig(
        vision_config=siglip_tower(), text_config=t.Qwen2Config(vocab_size=len(tokenizer), **TEXT),
        image_token_index=image, video_token_index=video, image_grid_pinpoints=pins,
        vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip
    processor = t.LlavaOnevisionProcessor(
        image_processor=t.LlavaOnevisionImageProcessor(**SQUARE, image_grid_pinpoints=pins), tokenizer=tokenizer,
        video_processor=t.LlavaOnevisionVideoProcessor(**SQUARE), num_image_tokens=4,
        vision_feature_select_strategy="full",
    )  # fmt: skip
    return Tiny(
        t.LlavaOnevisionForConditionalGeneration(config), processor, {"image": "<image>\n", "video": "<video>\n"}
    )


def pixtral_parts(kind: str) -> tuple[Any, dict[str, Any]]:
    tokenizer = tiny_tokenizer(("[IMG]", "[IMG_BREAK]", "[IMG_END]"))
    tower = t.PixtralVisionConfig(**TOWER | {"num_attention_heads": 2}, image_size=112, patch_size=14)
    text = t.MistralConfig(vocab_size=len(tokenizer), sliding_window=None, head_dim=8, **TEXT)
    shared = {"vision_config": tower, "text_config": text, "image_token_index": ids_of(tokenizer, "[IMG]")[0]}
    edge = 56 if kind == "pixtral" else 112
    pictures = t.PixtralImageProcessor(size={"longest_edge": edge}, patch_size={"height": 14, "width": 14})
    merge = {} if kind == "pixtral" else {"spatial_merge_size": 2}
    return t.PixtralProcessor(pictures, tokenizer, patch_size=14, **merge), shared | merge | {
        "vision_feature_layer": -1
    }


def pixtral() -> Tiny:
    processor, shared = pixtral_parts("pixtral")
    config = t.LlavaConfig(vision_feature_select_strategy="full", **shared)
    return Tiny(t.LlavaForConditionalGeneration(config), processor, {"image": "[IMG]"})


def mistral3() -> Tiny:
    processor, shared = pixtral_parts("mistral3")
    return Tiny(t.Mistral3ForConditionalGeneration(t.Mistral3Config(**shared)), processor, {"image": "[IMG]"})


# -- Qwen ------------------------------------------------------------------------------------------------------------

QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|im_start|>", "<|im_end|>")
QWEN_SHOWN = {kind: f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("image", "video")}
QWEN_PATCHES: dict[str, Any] = {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_heads": 4}
NARROW: dict[str, Any] = {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64}


def qwen_ids(tokenizer: Any) -> dict[str, Any]:
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return dict(zip(names, ids_of(tokenizer, *QWEN_TOKENS[:4]), strict=True))


def qwen_text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    return TEXT | {
        "vocab_size": len(tokenizer),
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0} | more,
    }


def qwen2_vl(five: bool = False) -> Tiny:
    tokenizer = tiny_tokenizer(QWEN_TOKENS)
    tower = QWEN_PATCHES | {"depth": 2}
    if five:
        tower |= NARROW | {"window_size": 56, "fullatt_block_indexes": [1]}
        made, model, whole = t.Qwen2_5_VLProcessor, t.Qwen2_5_VLForConditionalGeneration, t.Qwen2_5_VLConfig
    else:
        tower |= {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
        made, model, whole = t.Qwen2VLProcessor, t.Qwen2VLForConditionalGeneration, t.Qwen2VLConfig
    config = whole(text_config=qwen_text(tokenizer), vision_config=tower, **qwen_ids(tokenizer))
    videos = t.Qwen2VLVideoProcessor(**PIXELS)
    return Tiny(model(config), made(t.Qwen2VLImageProcessor(**PIXELS), tokenizer, videos), QWEN_SHOWN)


def qwen3_vl(experts: bool = False) -> Tiny:
    tokenizer = tiny_tokenizer(QWEN_TOKENS)
    tower = QWEN_PATCHES | NARROW | {"depth": 3, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    text = qwen_text(tokenizer, mrope_interleaved=True) | {"head_dim": 8}
    if experts:
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
    whole = t.Qwen3VLMoeConfig if experts else t.Qwen3VLConfig
    model = t.Qwen3VLMoeForConditionalGeneration if experts else t.Qwen3VLForConditionalGeneration
    config = whole(text_config=text, vision_config=tower, **qwen_ids(tokenizer))
    pictures, videos = (
        t.Qwen2VLImageProcessor(**PIXELS, patch_size=14),
        t.Qwen3VLVideoProcessor(**PIXELS, patch_size=14),
    )
    shown = QWEN_SHOWN | {"video": "<|video_pad|>"}  # the processor frames each pair of frames
    return Tiny(model(config), t.Qwen3VLProcessor(pictures, tokenizer, videos), shown)


# -- Gemma -----------------------------------------------------------------------------------------------------------


def gemma3() -> Tiny:
    names = {"boi_token": "<start_of_image>", "image_token": "<image_soft_token>", "eoi_token": "<end_of_image>"}
    tokenizer = named_tokenizer(names)
    begin, image, end = ids_of(tokenizer, *names.values())
    text = t.Gemma3TextConfig(
        vocab_size=len(tokenizer), head_dim=8, query_pre_attn_scalar=8, sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "full_attention"], **TEXT,
    )  # fmt: skip
    config = t.Gemma3Config(
        text_config=text, vision_config=siglip_tower(), mm_tokens_per_image=4,
        image_token_index=image, boi_token_index=begin, eoi_token_index=end,
    )  # fmt: skip
    processor = t.Gemma3Processor(t.Gemma3ImageProcessor(**SQUARE), tokenizer, image_seq_length=4)
    return Tiny(t.Gemma3ForConditionalGeneration(config), processor, {"image": "<start_of_image>"})


def paligemma(two: bool = False) -> Tiny:
    tokenizer = tiny_tokenizer(("<image>",))
    pictures = t.SiglipImageProcessor(**SQUARE)
    pictures.image_seq_length = 4
    processor = t.PaliGemmaProcessor(pictures, tokenizer)  # adds tokens of its own
    shape = TEXT | {"vocab_size": len(tokenizer), "head_dim": 8}
    if two:
        kinds = ["sliding_attention", "full_attention", "full_attention"]
        text: Any = t.Gemma2Config(query_pre_attn_scalar=8, sliding_window=8, layer_types=kinds, **shape)
    else:
        text = t.GemmaConfig(**shape)
    config = t.PaliGemmaConfig(
        vision_config=siglip_tower(), text_config=text, image_token_index=processor.image_token_id, projection_dim=32,
        hidden_size=32, vocab_size=len(tokenizer),
    )  # fmt: skip
    return Tiny(t.PaliGemmaForConditionalGeneration(config), processor, {})


# -- tiles with marks around them ------------------------------------------------------------------------------------


def idefics_parts(config: Any) -> tuple[Any, Any]:
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    marks = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", "<video>", *tiles)
    tokenizer = tiny_tokenizer(marks)
    return tokenizer, config(
        text_config=t.LlamaConfig(vocab_size=len(tokenizer), **TEXT),
        vision_config=TOWER | {"image_size": 28, "patch_size": 7},
        image_token_id=ids_of(tokenizer, "<image>")[0], scale_factor=2, pad_token_id=0,
    )  # fmt: skip


def idefics3() -> Tiny:
    tokenizer, config = idefics_parts(t.Idefics3Config)
    processor = t.Idefics3Processor(t.Idefics3ImageProcessor(**LONGEST), tokenizer, image_seq_len=4)
    return Tiny(t.Idefics3ForConditionalGeneration(config), processor, {"image": "<image>"})


def smolvlm() -> Tiny:
    tokenizer, config = idefics_parts(t.SmolVLMConfig)
    videos = t.SmolVLMVideoProcessor(**LONGEST, num_frames=4, fps=1)
    processor = t.SmolVLMProcessor(t.SmolVLMImageProcessor(**LONGEST), tokenizer, videos, image_seq_len=4)
    return Tiny(t.SmolVLMForConditionalGeneration(config), processor, {"image": "<image>"})


def internvl() -> Tiny:
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
             "video_token": "<video>"}  # fmt: skip
    tokenizer = named_tokenizer(names)
    config = t.InternVLConfig(
        vision_config=TOWER | {"image_size": [28, 28], "patch_size": [7, 7]},
        text_config=t.Qwen2Config(vocab_size=len(tokenizer), **TEXT),
        image_token_id=ids_of(tokenizer, "<IMG_CONTEXT>")[0], image_seq_length=4, downsample_ratio=0.5,
    )  # fmt: skip
    pictures = t.GotOcr2ImageProcessor(**SQUARE, min_patches=1, max_patches=4)
    processor = t.InternVLProcessor(pictures, tokenizer, t.InternVLVideoProcessor(**SQUARE), image_seq_length=4)
    shown = {"image": "<IMG_CONTEXT>\n", "video": "<video>\n"}
    return Tiny(t.InternVLForConditionalGeneration(config), processor, shown)


def molmo2() -> Tiny:
    marks = ("<im_patch>", "<im_start>", "<low_res_im_start>", "<im_end>", "<frame_start>", "<frame_end>", "<im_col>",
             "<im_low>", "<|image|>", "<|video|>")  # fmt: skip
    tokenizer = tiny_tokenizer(marks)
    names = ("image_patch_id", "image_start_token_id", "low_res_image_start_token_id", "image_end_token_id",
             "frame_start_token_id", "frame_end_token_id")  # fmt: skip
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
    tower = TOWER | heads | {"image_size": [56, 56], "patch_size": 14}
    between = {"vision_feature_layer": [1, 0], "hidden_size": 32, "intermediate_size": 64, "text_hidden_size": 32}
    config = t.Molmo2Config(
        text_config=TEXT | {"vocab_size": len(tokenizer), "additional_vocab_size": 0, "head_dim": 8},
        vision_config=tower, adapter_config=heads | between,
        **dict(zip(names, ids_of(tokenizer, *marks), strict=False)),
    )  # fmt: skip
    size: dict[str, Any] = {"size": {"height": 56, "width": 56}, "patch_size": 14}
    videos = t.Molmo2VideoProcessor(**size, do_resize=True, do_rescale=True, do_normalize=True)
    pictures = t.Molmo2ImageProcessor(**size, max_crops=2, overlap_margins=[1, 1])
    processor = t.Molmo2Processor(pictures, videos, tokenizer)
    return Tiny(t.Molmo2ForConditionalGeneration(config), processor, {"image": "<|image|>"})


def phi4_multimodal() -> Tiny:
    tokenizer = named_tokenizer({"image_token": "<|image|>", "audio_token": "<|audio|>"})
    image, audio = ids_of(tokenizer, "<|image|>", "<|audio|>")
    tower = TOWER | {"image_size": 448, "crop_size": 448, "patch_size": 14, "image_token_id": image}
    ear = {"hidden_size": 32, "intermediate_size": 32, "num_blocks": 2, "num_attention_heads": 4, "input_size": 80,
           "ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32, "nemo_conv_channels": 32,
           "audio_token_id": audio, "bias_max_distance": 100}  # fmt: skip
    config = t.Phi4MultimodalConfig(
        vocab_size=len(tokenizer), **TEXT, original_max_position_embeddings=2048, vision_config=tower, audio_config=ear
    )
    processor = t.Phi4MultimodalProcessor(
        t.Phi4MultimodalImageProcessor(dynamic_hd=1), t.Phi4MultimodalFeatureExtractor(), tokenizer
    )
    return Tiny(t.Phi4MultimodalForCausalLM(config), processor, {"image": "<|image|>", "audio": "<|audio|>"})


# -- sound -----------------------------------------------------------------------------------------------------------


def qwen2_audio() -> Tiny:
    tokenizer = tiny_tokenizer(("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|im_start|>", "<|im_end|>"))
    ear = {"model_type": "qwen2_audio_encoder", "num_mel_bins": 8, "encoder_layers": 2, "encoder_attention_heads": 4,
           "encoder_ffn_dim": 64, "d_model": 32, "max_source_positions": 100}  # fmt: skip
    config = t.Qwen2AudioConfig(
        audio_config=ear, text_config=t.Qwen2Config(vocab_size=len(tokenizer), **TEXT),
        audio_token_index=ids_of(tokenizer, "<|AUDIO|>")[0],
    )  # fmt: skip
    sounds = t.WhisperFeatureExtractor(feature_size=8, chunk_length=2)
    shown = {"audio": "<|audio_bos|><|AUDIO|><|audio_eos|>"}
    return Tiny(t.Qwen2AudioForConditionalGeneration(config), t.Qwen2AudioProcessor(sounds, tokenizer), shown)


def voxtral() -> Tiny:
    tokenizer = tiny_tokenizer(("[AUDIO]", "[BEGIN_AUDIO]", "[INST]", "[/INST]"))
    audio = ids_of(tokenizer, "[AUDIO]")[0]
    ear = TOWER | {"intermediate_size": 128, "num_mel_bins": 8, "max_source_positions": 100}
    config = t.VoxtralConfig(
        audio_config=ear, text_config=t.LlamaConfig(vocab_size=len(tokenizer), head_dim=8, **TEXT),
        audio_token_id=audio,
    )  # fmt: skip
    processor = t.VoxtralProcessor(t.WhisperFeatureExtractor(feature_size=8, chunk_length=2), tokenizer)
    return Tiny(t.VoxtralForConditionalGeneration(config), processor, {})


BUILDERS: dict[str, Callable[[], Tiny]] = {
    "llava": llava, "pixtral": pixtral, "mistral3": mistral3, "llava_next": llava_next,
    "llava_onevision": llava_onevision, "qwen2_vl": qwen2_vl, "qwen2_5_vl": lambda: qwen2_vl(five=True),
    "qwen3_vl": qwen3_vl, "qwen3_vl_moe": lambda: qwen3_vl(experts=True), "gemma3": gemma3, "paligemma": paligemma,
    "paligemma2": lambda: paligemma(two=True), "idefics3": idefics3, "smolvlm": smolvlm, "internvl": internvl,
    "molmo2": molmo2, "phi4_multimodal": phi4_multimodal, "qwen2_audio": qwen2_audio, "voxtral": voxtral,
}  # fmt: skip
KINDS = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl")


@functools.cache
def tiny(kind: str) -> Tiny:
    """One model a kind and process. Weights are redrawn: with the default ones blocks barely act."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = BUILDERS[kind]()
        with torch.no_grad():
            for name, parameter in made.model.named_parameters():
                if parameter.dim() > 1 or "newline" in name:
                    width = parameter.shape[-1] if parameter.dim() <= 2 else parameter[0].numel()
                    parameter.normal_(0, max(1, width) ** -0.5)
                elif "bias" in name:
                    parameter.normal_(0, 0.1)
    made.model.eval().requires_grad_(False)
    if made.shown:
        made.processor.chat_template = chat(made.shown)
    return made


def write_lmm(folder: Path, kind: str, template: bool = True) -> Path:
    made = tiny(kind)
    before, made.processor.chat_template = made.processor.chat_template, None
    if template and made.shown:
        made.processor.chat_template = chat(made.shown)
    made.model.save_pretrained(folder)
    made.processor.save_pretrained(folder)
    made.processor.chat_template = before
    return folder
