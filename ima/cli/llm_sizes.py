"""Dimensions of an LLM as its node of the config tells them, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ima.cli.memory import Size, from_config
from ima.core.files import read_object
from ima.core.network import hub_folder

EMBEDDED = {
    "smollm2": Size(30, 576, 1536, 49_152, 1 / 3),
    "gemma3_270m": Size(18, 640, 2048, 262_144, 1 / 4),
    "qwen_coder_0_5b": Size(24, 896, 4864, 151_936, 1 / 7),
    "qwen_coder_1_5b": Size(28, 1536, 8960, 151_936, 1 / 6),
    "tiny": Size(2, 32, 64, 300),
}


# Of the checkpoints that conf/llm names, from their config.json. `inner` of an FFN of two matrices is two thirds of it.
PUBLISHED = {
    "EleutherAI/pythia-6.9b": Size(32, 4096, 10_923, 50_432),
    "HuggingFaceTB/SmolLM3-3B": Size(36, 2048, 11_008, 128_256, 1 / 4),
    "Qwen/Qwen2.5-7B": Size(28, 3584, 18_944, 152_064, 1 / 7),
    "Qwen/Qwen3-8B": Size(36, 4096, 12_288, 151_936, 1 / 4),
    "facebook/opt-350m": Size(24, 1024, 2731, 50_272),
    "facebook/opt-6.7b": Size(32, 4096, 10_923, 50_272),
    "google/gemma-3-4b-pt": Size(34, 2560, 10_240, 262_208, 1 / 5),
    "lmsys/vicuna-7b-v1.5": Size(32, 4096, 11_008, 32_000),
    "meta-llama/Llama-2-7b-hf": Size(32, 4096, 11_008, 32_000),
    "meta-llama/Llama-3.1-8B": Size(32, 4096, 14_336, 128_256, 1 / 4),
    "microsoft/Phi-3-mini-4k-instruct": Size(32, 3072, 8192, 32_064),
    "mistralai/Mistral-7B-v0.3": Size(32, 4096, 14_336, 32_768, 1 / 4),
}


def llm_size(node: Mapping[str, Any]) -> Size | None:
    """None where neither its files nor the table tell."""
    function = str(node.get("_target_")).rpartition(".")[2]
    if function in EMBEDDED:
        return EMBEDDED[function]
    folder = hub_folder(str(node.get("path") or ""))
    if folder is not None and (folder / "config.json").is_file():
        config = read_object(folder / "config.json")
        return from_config(config.get("text_config") or config)
    return PUBLISHED.get(str(node.get("path")))
