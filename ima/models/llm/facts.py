"""What is known of an LLM before it is loaded: enough to refuse an intervention that does not fit it.

From the config node alone: the embedded models by their names, tiny ones by their settings, checkpoints by the
config.json that lies in their folder or in the local hub cache (nothing is downloaded).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ima.core.trust import STOCK
from ima.models.llm.families import TINY, Family, family_of


@dataclasses.dataclass(frozen=True)
class LlmFacts:
    """stream_norms: the stream is normed after each sum (opt-350m). parallel: attention and FFN read one input.
    pre_norms: attention and the FFN each have a norm before them. kinds: of attention, by block, where a family has
    several."""

    name: str
    model_type: str
    num_blocks: int
    num_heads: int
    stream_norms: bool = False
    parallel: bool = False
    pre_norms: bool = True
    kinds: tuple[str, ...] = ()


def of_config(name: str, config: Any) -> LlmFacts:
    """Of a Hugging Face text config. Raises UserError where its type has no record."""
    return of_family(
        name,
        family_of(config),
        config.num_hidden_layers,
        config.num_attention_heads,
        tuple(getattr(config, "layer_types", None) or ()),
    )


def of_family(name: str, family: Family, num_blocks: int, num_heads: int, kinds: tuple[str, ...] = ()) -> LlmFacts:
    return LlmFacts(
        name,
        family.model_type,
        num_blocks,
        num_heads,
        stream_norms=bool(family.stream_norms),
        parallel=family.parallel,
        pre_norms=family.has_pre_norms,
        kinds=kinds,
    )


def llm_facts(node: Mapping[str, Any]) -> LlmFacts | None:
    """Of the `llm` node of a config; None where nothing is known (loading it will say why)."""
    target = str(node.get("_target_", "")).rpartition(".")[2]
    match target:
        case "smollm2":
            return LlmFacts("smollm2", "llama", 30, 9)
        case "gemma3_270m":
            return LlmFacts("gemma3-270m", "gemma3_text", 18, 4)
        case "qwen_coder_0_5b":
            return LlmFacts(target, "qwen2", 24, 14)
        case "qwen_coder_1_5b":
            return LlmFacts(target, "qwen2", 28, 12)
        case "tiny" if (family := str(node.get("family", "llama"))) in TINY:
            return of_family(f"tiny-{family}", TINY[family], int(node.get("num_blocks", 3)), 4)
        case "hf" if node.get("path"):
            return of_checkpoint(str(node["path"]), node.get("revision"))
    return None


def of_checkpoint(path: str, revision: str | None) -> LlmFacts | None:
    from pathlib import Path

    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, revision=revision, local_files_only=True, **STOCK)
        return of_config(Path(path).name, config.get_text_config(decoder=True))
    except Exception:  # not there, not to be read, of no known kind: loading says which
        return None
