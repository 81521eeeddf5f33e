"""The LLM that ships inside a Python package: SmolLM2-135M-Instruct, without a hub and without the network.

The package holds a quantised GGUF file. It is converted once, into a folder of the user's cache that stock
transformers can open too, and from then on memory-mapped (writing into the weights copies the page and never
touches the file). Hides the key names, the q/k row order and the tokenizer rules of the GGUF world.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ima.core.assets.registry import converted_folder, get_asset, locate
from ima.core.cache import build_folder
from ima.core.errors import UserError
from ima.core.files import read_object, write_json
from ima.models.formats.gguf import Gguf, read_gguf

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTROL_TOKEN = 3  # the token_type of special tokens in GGUF metadata

OUTER_KEYS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK_KEYS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def load_smollm2(dtype: torch.dtype = torch.float32) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """SmolLM2-135M-Instruct in eval mode, frozen, on the CPU, with its tokenizer; converts it on first use.

    dtype: float32 (the file's own values) or a rounding of it, e.g. bfloat16. Raises UserError where the package is
    missing (`make setup`) or the cache is damaged.
    """
    return load_llama(convert_smollm2(), dtype)


def convert_smollm2() -> Path:
    """The folder with the converted model and tokenizer, made now if it is not there."""
    target = converted_folder(get_asset("smollm2"))
    if target.is_dir():
        return target
    path = locate("smollm2")
    return build_folder(target, lambda folder: convert_llama(read_gguf(path), folder))


def convert_llama(gguf: Gguf, folder: Path) -> None:
    """Write config.json, model.safetensors (float32), tokenizer.json and tokenizer_config.json into `folder`."""
    config = llama_config(gguf.metadata)
    heads = {"attn_q": config.num_attention_heads, "attn_k": int(gguf.metadata["llama.attention.head_count_kv"])}
    weights = {}
    for name, tensor in gguf.tensors.items():
        weight = torch.from_numpy(tensor.read())
        part = name.split(".")[-2]
        weights[llama_key(name)] = unpermute(weight, heads[part]) if part in heads else weight
    config.architectures = ["LlamaForCausalLM"]
    save_folder(folder, config, weights, make_tokenizer(gguf.metadata, config.max_position_embeddings))
    write_origin(folder, gguf)


def save_folder(folder: Path, config: Any, weights: dict[str, torch.Tensor], tokenizer: Any) -> None:
    """A model folder as stock transformers reads it."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:  # its own kind even for a full disk
        raise OSError(str(error)) from error
    (folder / "model.safetensors").chmod(0o644)  # it is made private by default; a cache may be shared
    config.tie_word_embeddings = "lm_head.weight" not in weights
    config.dtype = torch.float32
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


ORIGIN = "origin.json"


def write_origin(folder: Path, gguf: Gguf) -> None:
    """How many tensors of which type the file had, those of most weights first."""
    sizes: Counter[str] = Counter()
    for tensor in gguf.tensors.values():
        sizes[tensor.format.name] += math.prod(tensor.shape)
    write_json(folder / ORIGIN, {"types": [name for name, _ in sizes.most_common()]})


def origin_of(folder: Path) -> str:
    """What the weights of a converted folder are, in words. Folders of before do not know their types."""
    types = read_object(folder / ORIGIN).get("types") if (folder / ORIGIN).is_file() else None
    return f"quantised file ({', '.join(types)}), dequantised" if types else "quantised file, dequantised"


def llama_key(name: str) -> str:
    """'blk.3.attn_q.weight' -> 'model.layers.3.self_attn.q_proj.weight'."""
    *path, part, kind = name.split(".")
    if not path:
        return f"{OUTER_KEYS[part]}.{kind}"
    return f"model.layers.{path[1]}.{BLOCK_KEYS[part]}.{kind}"


def unpermute(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """GGUF stores the rows of q and k with rotary pairs side by side; transformers wants two halves per head."""
    rows, columns = weight.shape
    return weight.reshape(num_heads, rows // num_heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def shape_of(meta: dict[str, Any]) -> dict[str, Any]:
    """What configs of transformers call the numbers of a GGUF header, its keys without the architecture's name."""
    return {
        "hidden_size": meta["embedding_length"],
        "intermediate_size": meta["feed_forward_length"],
        "num_hidden_layers": meta["block_count"],
        "num_attention_heads": meta["attention.head_count"],
        "num_key_value_heads": meta["attention.head_count_kv"],
        "max_position_embeddings": meta["context_length"],
        # The file holds a float32; its shortest decimal is the published value (1e-05).
        "rms_norm_eps": float(f"{meta['attention.layer_norm_rms_epsilon']:.6g}"),
    }


def llama_config(metadata: dict[str, Any]) -> LlamaConfig:
    from transformers import LlamaConfig

    meta = {key.removeprefix("llama."): value for key, value in metadata.items() if key.startswith("llama.")}
    return LlamaConfig(
        vocab_size=meta["vocab_size"],
        **shape_of(meta),
        rope_parameters={"rope_type": "default", "rope_theta": float(meta["rope.freq_base"])},
        bos_token_id=metadata["tokenizer.ggml.bos_token_id"],
        eos_token_id=metadata["tokenizer.ggml.eos_token_id"],
        pad_token_id=metadata["tokenizer.ggml.padding_token_id"],
    )


def make_tokenizer(metadata: dict[str, Any], max_length: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE that takes each digit alone, as the model was trained; never adds bos or eos by itself."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[metadata["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[metadata["tokenizer.ggml.eos_token_id"]],
        pad_token=tokens[metadata["tokenizer.ggml.padding_token_id"]],
        unk_token=tokens[metadata["tokenizer.ggml.unknown_token_id"]],
        chat_template=metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )


def load_llama(folder: Path, dtype: torch.dtype) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    from transformers import LlamaConfig, LlamaForCausalLM

    return open_folder(folder, dtype, LlamaConfig, LlamaForCausalLM)


def open_folder(folder: Path, dtype: torch.dtype, config_class: Any, model_class: Any) -> tuple[Any, Any]:
    """Model and tokenizer of a folder that `save_folder` made; sets nothing global, never asks the network."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import PreTrainedTokenizerFast

    try:
        config = config_class.from_dict(json.loads((folder / "config.json").read_text()))
        weights = load_file(folder / "model.safetensors")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{folder}: damaged ({str(error).splitlines()[0]}); delete the folder, it is made anew"
        ) from error
    config._attn_implementation = "sdpa"
    config.dtype = dtype
    with torch.device("meta"):
        model = model_class(config)
    weights = {key: weight.to(dtype) for key, weight in weights.items()}
    missing, unexpected = model.load_state_dict(weights, assign=True, strict=False)
    tied = ["lm_head.weight"] if config.tie_word_embeddings else []
    if unexpected or sorted(missing) != tied:
        raise UserError(f"{folder}: not this model's weights ({(missing + unexpected)[:3]} ...); delete the folder")
    model.tie_weights()
    model.weights_from = origin_of(folder)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its buffers are computed, not stored
    return model.eval().requires_grad_(False), tokenizer
