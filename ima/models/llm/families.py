"""One record per LLM family: the names of its modules, what is known of it before it is loaded, and its tiny twin.

A family is described by names only; no forward pass is ever copied. `family_of` finds the record of a model's config.
To add a family, add a record to `FAMILIES`: the tests over all families run on its tiny twin, and every model is
checked against its record when it is loaded (`ima.models.llm.sites.check_sites`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from ima.core.errors import UserError
from ima.core.types import Site

Side = Literal["input", "output"]
Places = Mapping[Site, tuple[str, Side]]


@dataclasses.dataclass(frozen=True)
class Names:
    """Modules of attention and the way into the FFN, relative to the block. ffn_in: the first module of the FFN's way
    (its norm, where it has one of its own). query, key, value: None where one fused matrix makes all three."""

    attention: str
    out: str
    ffn_in: str
    query: str | None = None
    key: str | None = None
    value: str | None = None


@dataclasses.dataclass(frozen=True)
class TinyTwin:
    """How a small random model of the family is made. config: name of the class in transformers; settings: what this
    class takes in addition to vocabulary, width, blocks, heads and special tokens, from the width."""

    config: str
    settings: Callable[[int], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Family:
    """name: what `llm=tiny llm.family=` and messages call it. model_type: as config.json has it; `when` tells several
    records of one type apart by the config.

    sites: module names of one block, relative to it ("" is the block), and whether the site is the module's input or
    output. parallel: attention and FFN read the same input and both are added to the residual, so that there is no
    resid_mid. stream_norms: the norms that the stream itself goes through after attention and after the FFN has been
    added; empty where nothing but sums changes it.

    plain_block: the block is RMSNorm, split projections and a gated FFN that are called without extras, as the fast
    path of skipping needs it. accelerated: `ima.models.llm.acceleration` has a faster twin of the block. Both are
    checked numerically before use.
    """

    name: str
    model_type: str
    sites: Places
    names: Names
    tiny: TinyTwin | None
    when: Callable[[Any], bool] = lambda config: True
    parallel: bool = False
    stream_norms: tuple[str, ...] = ()
    plain_block: bool = False
    accelerated: bool = False

    @property
    def has_pre_norms(self) -> bool:
        """Whether attention and the FFN each have a norm before them that reads the stream."""
        return Site.LN1 in self.sites and Site.LN2 in self.sites


# -- the kinds of blocks ---------------------------------------------------------------------------------------------


def sites_of(sa: str, resid_mid: str | None, ln1: str | None, ln2: str | None, fc1: str, fc2: str) -> Places:
    """Modules whose output is sa, ln1, ln2 and fc2, and whose input is resid_mid and fc1."""
    places: dict[Site, tuple[str, Side]] = {Site.RESID_PRE: ("", "input")}
    if ln1:
        places[Site.LN1] = (ln1, "output")
    places[Site.SA] = (sa, "output")
    if resid_mid:
        places[Site.RESID_MID] = (resid_mid, "input")
    if ln2:
        places[Site.LN2] = (ln2, "output")
    places |= {Site.FC1: (fc1, "input"), Site.FC2: (fc2, "output"), Site.RESID_POST: ("", "output")}
    return places


def split(attention: str, out: str, ffn_in: str) -> Names:
    """Queries, keys and values have a linear map each."""
    maps = (f"{attention}.{name}_proj" for name in "qkv")
    return Names(attention, f"{attention}.{out}", ffn_in, *maps)


LN1, LN2 = "input_layernorm", "post_attention_layernorm"
PRE_NORM = sites_of("self_attn", LN2, LN1, LN2, "mlp.down_proj", "mlp")
PRE_NORM_NAMES = split("self_attn", "o_proj", LN2)
# Sandwich norms: what is added to the residual is the norm's output, so that is `sa` and `fc2`.
SANDWICH = sites_of(
    LN2, "pre_feedforward_layernorm", LN1, "pre_feedforward_layernorm", "mlp.down_proj", "post_feedforward_layernorm"
)
SANDWICH_NAMES = split("self_attn", "o_proj", "pre_feedforward_layernorm")
POST_NORM = sites_of(LN2, "mlp", None, None, "mlp.down_proj", "post_feedforward_layernorm")
POST_NORM_NAMES = split("self_attn", "o_proj", "mlp")
# One norm before both: ln1 is what the FFN reads too.
ONE_NORM = sites_of("self_attn", None, LN1, None, "mlp.down_proj", "mlp")
ONE_NORM_NAMES = split("self_attn", "o_proj", "mlp")
OPT = sites_of("self_attn", "final_layer_norm", "self_attn_layer_norm", "final_layer_norm", "fc2", "fc2")
OPT_NAMES = split("self_attn", "out_proj", "final_layer_norm")
# opt-350m norms each sum: resid_mid = norm(resid_pre + sa), resid_post = norm(resid_mid + fc2). What enters attention
# and FFN is the stream itself, so there is no ln1 and no ln2.
OPT_NORMED_STREAM: Places = {
    Site.RESID_PRE: ("", "input"),
    Site.SA: ("self_attn", "output"),
    Site.RESID_MID: ("self_attn_layer_norm", "output"),
    Site.FC1: ("fc2", "input"),
    Site.FC2: ("fc2", "output"),
    Site.RESID_POST: ("", "output"),
}
NEOX_PARALLEL = sites_of("attention", None, LN1, LN2, "mlp.dense_4h_to_h", "mlp")
NEOX_SERIAL = sites_of("attention", LN2, LN1, LN2, "mlp.dense_4h_to_h", "mlp")
NEOX_NAMES = Names("attention", "attention.dense", LN2)


def rotary(**more: Any) -> Callable[[int], dict[str, Any]]:
    """Settings of a tiny model with rotary positions."""
    return lambda width: {"intermediate_size": 2 * width, "max_position_embeddings": 2048, **more}


def grouped(**more: Any) -> Callable[[int], dict[str, Any]]:
    """The same with two key heads for four query heads."""
    return rotary(num_key_value_heads=2, **more)


def gemma(width: int) -> dict[str, Any]:
    return grouped(head_dim=width // 4, query_pre_attn_scalar=width // 4, sliding_window=64)(width)


def narrow_heads(width: int) -> dict[str, Any]:
    return grouped(head_dim=width // 4)(width)


def opt(width: int, narrow: bool = False) -> dict[str, Any]:
    """narrow: norms after the sums and embeddings narrower than the blocks, as in opt-350m."""
    return {
        "ffn_dim": 2 * width, "max_position_embeddings": 256, "dropout": 0.0, "do_layer_norm_before": not narrow,
        "word_embed_proj_dim": width // 2 if narrow else width,
    }  # fmt: skip


# -- the list --------------------------------------------------------------------------------------------------------

FAMILIES: tuple[Family, ...] = (
    Family(
        "llama", "llama", PRE_NORM, PRE_NORM_NAMES, TinyTwin("LlamaConfig", grouped(tie_word_embeddings=True)),
        plain_block=True, accelerated=True,
    ),
    Family(
        "mistral", "mistral", PRE_NORM, PRE_NORM_NAMES, TinyTwin("MistralConfig", grouped(sliding_window=None)),
        plain_block=True, accelerated=True,
    ),
    Family(
        "qwen2", "qwen2", PRE_NORM, PRE_NORM_NAMES, TinyTwin("Qwen2Config", grouped()),
        plain_block=True, accelerated=True,
    ),
    # Language models inside multimodal ones; tests/tiny_lmms.py has tiny ones with the rest.
    Family("qwen2_vl_text", "qwen2_vl_text", PRE_NORM, PRE_NORM_NAMES, None),
    Family("qwen2_5_vl_text", "qwen2_5_vl_text", PRE_NORM, PRE_NORM_NAMES, None),
    Family("qwen3_vl_text", "qwen3_vl_text", PRE_NORM, PRE_NORM_NAMES, None),
    Family("gemma", "gemma", PRE_NORM, PRE_NORM_NAMES, None),
    Family("gemma2", "gemma2", SANDWICH, SANDWICH_NAMES, None),
    Family("molmo2_text", "molmo2_text", PRE_NORM, PRE_NORM_NAMES, None, when=lambda config: not config.norm_after),
    Family("phi4_multimodal", "phi4_multimodal", PRE_NORM, Names("self_attn", "self_attn.o_proj", LN2), None),
    Family(
        "qwen3", "qwen3", PRE_NORM, PRE_NORM_NAMES,
        TinyTwin("Qwen3Config", narrow_heads), plain_block=True,
    ),
    Family("gemma3", "gemma3_text", SANDWICH, SANDWICH_NAMES, TinyTwin("Gemma3TextConfig", gemma)),
    Family(
        "phi3", "phi3", PRE_NORM, Names("self_attn", "self_attn.o_proj", LN2), TinyTwin("Phi3Config", grouped()),
    ),
    Family("olmo2", "olmo2", POST_NORM, POST_NORM_NAMES, TinyTwin("Olmo2Config", grouped())),
    Family("olmo3", "olmo3", POST_NORM, POST_NORM_NAMES, TinyTwin("Olmo3Config", grouped(sliding_window=64))),
    Family(
        "stablelm", "stablelm", PRE_NORM, PRE_NORM_NAMES, TinyTwin("StableLmConfig", grouped()),
        when=lambda config: not config.use_parallel_residual,
    ),
    Family(
        "stablelm_parallel", "stablelm", ONE_NORM, ONE_NORM_NAMES,
        TinyTwin("StableLmConfig", grouped(use_parallel_residual=True)),
        when=lambda config: config.use_parallel_residual, parallel=True,
    ),
    Family("opt", "opt", OPT, OPT_NAMES, TinyTwin("OPTConfig", opt), when=lambda config: config.do_layer_norm_before),
    Family(
        "opt_350m", "opt", OPT_NORMED_STREAM, OPT_NAMES, TinyTwin("OPTConfig", lambda width: opt(width, narrow=True)),
        when=lambda config: not config.do_layer_norm_before,
        stream_norms=("self_attn_layer_norm", "final_layer_norm"),
    ),
    Family(
        "gpt_neox", "gpt_neox", NEOX_PARALLEL, NEOX_NAMES, TinyTwin("GPTNeoXConfig", rotary()),
        when=lambda config: config.use_parallel_residual, parallel=True,
    ),
    Family(
        "gpt_neox_serial", "gpt_neox", NEOX_SERIAL, NEOX_NAMES,
        TinyTwin("GPTNeoXConfig", rotary(use_parallel_residual=False)),
        when=lambda config: not config.use_parallel_residual,
    ),
    Family(
        "smollm3", "smollm3", PRE_NORM, PRE_NORM_NAMES, TinyTwin("SmolLM3Config", grouped()), accelerated=True,
    ),
)  # fmt: skip
TINY: dict[str, Family] = {family.name: family for family in FAMILIES if family.tiny is not None}

# Types of which it is known why their blocks have no record.
REFUSED: dict[str, str] = {
    "cohere": "its head scales the logits, which the logit lens and entropy do not",
    "falcon": "its blocks add attention's output into the FFN's output in place",
    "gpt2": "its linear maps are no nn.Linear, which FLOPs, masks and LoRA need",
    "granite": "its blocks multiply what they add to the stream, so that no sum of sites is the block's output",
}


def declared_type(path: str, revision: str | None) -> str | None:
    """model_type of a checkpoint's config.json, read without its weights. None where there is no such file, or where it
    needs code of its own: loading it says why."""
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    try:
        values, _ = PreTrainedConfig.get_config_dict(path, revision=revision)
    except Exception:  # not there, not to be read, not JSON
        return None
    kind = values.get("model_type")
    if not isinstance(kind, str) or (kind not in CONFIG_MAPPING and "auto_map" in values):
        return None
    return kind


def check_type(model_type: str, whole: str = "") -> None:
    """Raises UserError where no family is of this type. whole: the type of the model that it is a part of."""
    known = sorted({family.model_type for family in FAMILIES})
    if model_type not in known:
        why = f" ({REFUSED[model_type]})" if model_type in REFUSED else ""
        named = whole or model_type
        raise UserError(f"type {named!r} is not supported{why}; supported are {', '.join(known)}")


def family_of(config: Any) -> Family:
    """The record of a Hugging Face text config. Raises UserError where there is none."""
    check_type(config.model_type)
    return next(each for each in FAMILIES if each.model_type == config.model_type and each.when(config))
