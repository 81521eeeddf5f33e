"""What is known of an LLM before it is loaded: enough to refuse an intervention that does not fit it.

From the config node alone: the embedded models by their names, tiny ones by their settings, checkpoints by the
config.json that lies in their folder or in the local hub cache (nothing is downloaded).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ima.core.trust import STOCK


@dataclasses.dataclass(frozen=True)
class Known:
    """stream_norms: the stream is normed after each sum (opt-350m). parallel: attention and FFN read one input.
    kinds: of attention, by block, where a family has several."""

    name: str
    model_type: str
    num_blocks: int
    num_heads: int
    stream_norms: bool = False
    parallel: bool = False
    kinds: tuple[str, ...] = ()


def of_config(name: str, config: Any) -> Known:
    """Of a Hugging Face text config."""
    return Known(
        name,
        config.model_type,
        config.num_hidden_layers,
        config.num_attention_heads,
        stream_norms=config.model_type == "opt" and not config.do_layer_norm_before,
        parallel=config.model_type == "gpt_neox" and config.use_parallel_residual,
        kinds=tuple(getattr(config, "layer_types", None) or ()),
    )


def known(node: Mapping[str, Any]) -> Known | None:
    """Of the `llm` node of a config; None where nothing is known (loading it will say why)."""
    target = str(node.get("_target_", "")).rpartition(".")[2]
    match target:
        case "smollm2":
            return Known("smollm2", "llama", 30, 9)
        case "gemma3_270m":
            return Known("gemma3-270m", "gemma3_text", 18, 4)
        case "tiny":
            return of_tiny(str(node.get("family", "llama")), int(node.get("num_blocks", 3)))
        case "hf" if node.get("path"):
            return of_checkpoint(str(node["path"]), node.get("revision"))
    return None


def of_tiny(family: str, num_blocks: int) -> Known:
    model_type = {"gemma3": "gemma3_text", "opt_350m": "opt"}.get(family, family)
    return Known(
        f"tiny-{family}", model_type, num_blocks, 4, stream_norms=family == "opt_350m", parallel=family == "gpt_neox"
    )


def of_checkpoint(path: str, revision: str | None) -> Known | None:
    from pathlib import Path

    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, revision=revision, local_files_only=True, **STOCK)
        return of_config(Path(path).name, config.get_text_config(decoder=True))
    except Exception:  # not there, not to be read, of no known kind: loading says which
        return None
