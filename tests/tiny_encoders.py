"""Folders of tiny models as the hub would have them: config.json, preprocessor_config.json and, if asked, weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
VIDEO, AUDIO = ("timesformer", "videomae", "xclip"), ("ast", "clap", "whisper")
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 8,
}


def tiny_config(kind: str) -> tuple[str, Any, dict[str, Any]]:
    """(class of the whole model, its config, its preprocessor_config.json)."""
    import transformers as t

    picture = {"image_mean": MEAN, "image_std": STD, "size": {"shortest_edge": 16}}
    match kind:
        case "timesformer":
            return "TimesformerForVideoClassification", t.TimesformerConfig(**SMALL, num_frames=4), picture
        case "videomae":
            return "VideoMAEForPreTraining", t.VideoMAEConfig(
                **SMALL, num_frames=6, tubelet_size=2, decoder_hidden_size=16, decoder_num_hidden_layers=1,
                decoder_num_attention_heads=2, decoder_intermediate_size=16,
            ), picture  # fmt: skip
        case "xclip":
            text = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
            vision = SMALL | {
                "num_frames": 3, "mit_hidden_size": 12, "mit_intermediate_size": 8, "mit_num_attention_heads": 2
            }  # fmt: skip
            config = t.XCLIPConfig(
                text_config=text, vision_config=vision, projection_dim=12, prompt_num_attention_heads=2
            )
            return "XCLIPModel", config, picture
        case "ast":
            config = t.ASTConfig(
                hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24, max_length=64,
                num_mel_bins=32, frequency_stride=10, time_stride=10,
            )  # fmt: skip
            facts = {"feature_extractor_type": "ASTFeatureExtractor", "max_length": 64, "num_mel_bins": 32}
            return "ASTForAudioClassification", config, facts | {"mean": -3.0, "std": 2.0}
        case "clap":
            audio = {
                "spec_size": 64, "num_mel_bins": 16, "patch_embeds_hidden_size": 8, "depths": [1, 1],
                "num_attention_heads": [1, 1], "window_size": 4, "hidden_size": 16, "projection_dim": 8,
            }  # fmt: skip
            text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
            config = t.ClapConfig(text_config=text, audio_config=audio, projection_dim=8)
            facts = {"feature_extractor_type": "ClapFeatureExtractor", "feature_size": 16, "sampling_rate": 8000}
            return "ClapModel", config, facts | {"max_length_s": 1, "hop_length": 80, "frequency_max": 4000,
                                                 "fft_window_size": 256, "truncation": "rand_trunc"}  # fmt: skip
        case "whisper":
            config = t.WhisperConfig(
                d_model=16, encoder_layers=3, encoder_attention_heads=2, encoder_ffn_dim=24, num_mel_bins=8,
                max_source_positions=50, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=8,
                vocab_size=60, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
            )  # fmt: skip
            facts = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 8, "chunk_length": 1}
            return "WhisperForConditionalGeneration", config, facts
    raise AssertionError(kind)


def tiny_folder(kind: str, folder: Path, weights: bool = False, seed: int = 0) -> Path:
    """With `weights`, those of the class that such checkpoints are published as (with its head, its text side)."""
    import transformers

    name, config, facts = tiny_config(kind)
    folder.mkdir(parents=True, exist_ok=True)
    if weights:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            getattr(transformers, name)(config).save_pretrained(folder)
    else:
        config.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))
    return folder


def audiomae_folder(folder: Path, weights: bool = False, channels: int = 1) -> Path:
    """As timm reads it: 64 frames of 32 bins, 8 patches and a CLS token of width 16."""
    import timm

    arguments = {"img_size": [64, 32], "in_chans": channels, "embed_dim": 16, "depth": 3, "num_heads": 2}
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"architecture": "vit_tiny_patch16_224", "num_classes": 0, "model_args": arguments}
    (folder / "config.json").write_text(json.dumps(facts | {"pretrained_cfg": {"input_size": [channels, 64, 32]}}))
    if weights:
        from safetensors.torch import save_file

        save_file(timm.create_model("vit_tiny_patch16_224", num_classes=0, **arguments).state_dict(),
                  folder / "model.safetensors")  # fmt: skip
    return folder
