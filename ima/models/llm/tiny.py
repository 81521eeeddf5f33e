"""Tiny random models of every supported family, for tests and for `llm=tiny`: real classes, nothing to download.

The tokenizer is a byte-level BPE without merges (one token a byte plus the specials), built in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ima.models.llm.families import TINY

FAMILY_NAMES = tuple(TINY)


def tiny_tokenizer(special: Sequence[str] = ()) -> Any:
    """`special`: further special tokens, such as those of a chat format."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


def tiny_model(
    family: str = "llama", width: int = 32, num_blocks: int = 3, seed: int = 0, vocab_size: int = 259
) -> Any:
    """A random causal LM in fp32 and eval mode, vocabulary of `tiny_tokenizer`, as deterministic as its seed."""
    import transformers

    record = TINY[family]
    assert record.tiny is not None
    config = getattr(transformers, record.tiny.config)(
        vocab_size=vocab_size, hidden_size=width, num_hidden_layers=num_blocks, num_attention_heads=4,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, **record.tiny.settings(width),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        # Default initialisation is so small that blocks barely act; tests need them to.
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.5 / parameter.shape[-1] ** 0.5 * (2 if "embed" not in name else 1))
    return model.eval().requires_grad_(False)
