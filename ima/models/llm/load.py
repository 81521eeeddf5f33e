"""Ways to get a frozen LLM: the embedded SmolLM2, Gemma-3-270M, any Hugging Face checkpoint, a tiny random one.

Hides the choice of dtype: `auto` takes 16 bits on a GPU, on a CPU bf16 where it multiplies matrices faster in it, by
measurement, and fp32 where all weights are trained (bf16 is too coarse for small steps). `going_to` says which it is.
What all of them take: `train` (none, lora or all), `lora_rank`, `lora_alpha`, and `chat`, the layout of conversations
(null: plain text; tokenizer: its own template; a format's name; a template file). How they are computed: `fast` (on a
CPU), `compile` (auto: in training on a GPU; true, false) and `activation_budget`, the share of the activations that
compiled blocks keep for the backward pass.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

import torch

from ima.core.errors import UserError, prefix_errors
from ima.core.network import hint
from ima.core.trust import STOCK, reason_of
from ima.models.llm.chat import TOKENS
from ima.models.llm.compile_keys import Compile
from ima.models.llm.embedded import load_smollm2
from ima.models.llm.families import check_type, declared_type
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.gemma import load_gemma3_270m
from ima.models.llm.tiny import FAMILY_NAMES, tiny_model, tiny_tokenizer
from ima.models.llm.tuning import Train

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
Bos = Literal["auto", "always", "never"]
MIN_BF16_GAIN = 1.2


# The kind of device that an LLM is loaded for; None: a GPU where there is one.
GOING_TO: ContextVar[str | None] = ContextVar("going_to", default=None)


@contextmanager
def going_to(kind: str) -> Iterator[None]:
    """What is loaded inside will run on a device of this kind (cpu, cuda, mps), whatever else the machine has."""
    token = GOING_TO.set(kind)
    try:
        yield
    finally:
        GOING_TO.reset(token)


def pick_dtype(name: str, train: Train = "none") -> torch.dtype:
    if name == "auto" and train == "all":
        return torch.float32
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    if (GOING_TO.get() or ("cuda" if torch.cuda.is_available() else "cpu")) == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if bf16_gain() > MIN_BF16_GAIN else torch.float32


def bf16_gain(size: int = 512, repeats: int = 5) -> float:
    """Best time of an fp32 matrix product on the CPU over that in bf16 (some ten milliseconds)."""
    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.ones(size, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            times.append(time.perf_counter() - start)
        best[dtype] = min(times)
    return best[torch.float32] / best[torch.bfloat16]


def reinitialise(model: Any, seed: int) -> None:
    """The control `llm=random_smollm2`: the same architecture with random weights."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = AutoModelForCausalLM.from_config(model.config, **STOCK)
    model.load_state_dict(fresh.state_dict())
    model.weights_from = f"random, seed {seed}"


def smollm2(
    dtype: DtypeName = "auto",
    bos: Bos = "auto",
    pretrained: bool = True,
    seed: int = 0,
    train: Train = "none",
    lora_rank: int = 16,
    lora_alpha: float = 32.0,
    chat: str | None = None,
    fast: bool = True,
    compile: Compile = "auto",
    activation_budget: float = 1.0,
) -> FrozenLLM:
    """SmolLM2-135M-Instruct from its package (Apache-2.0). `pretrained=false`: random weights of `seed`."""

    model, tokenizer = load_smollm2(pick_dtype(dtype, train))
    if not pretrained:
        reinitialise(model, seed)
    name = "smollm2" if pretrained else f"smollm2-random{seed}"
    learns = train, lora_rank, lora_alpha
    return FrozenLLM(model, tokenizer, bos, name, *learns, chat, seed, fast, compile, activation_budget)


def gemma3_270m(
    dtype: DtypeName = "auto",
    bos: Bos = "always",
    pretrained: bool = True,
    seed: int = 0,
    train: Train = "none",
    lora_rank: int = 16,
    lora_alpha: float = 32.0,
    chat: str | None = None,
    fast: bool = True,
    compile: Compile = "auto",
    activation_budget: float = 1.0,
) -> FrozenLLM:
    """Gemma-3-270M from a package that is installed by those who accept its terms. `pretrained=false`: random weights
    of `seed`."""

    model, tokenizer = load_gemma3_270m(pick_dtype(dtype, train))
    if not pretrained:
        reinitialise(model, seed)
    name = "gemma3-270m" if pretrained else f"gemma3-270m-random{seed}"
    learns = train, lora_rank, lora_alpha
    return FrozenLLM(model, tokenizer, bos, name, *learns, chat, seed, fast, compile, activation_budget)


def hf(
    path: str,
    dtype: DtypeName = "auto",
    bos: Bos = "auto",
    revision: str | None = None,
    pretrained: bool = True,
    seed: int = 0,
    train: Train = "none",
    lora_rank: int = 16,
    lora_alpha: float = 32.0,
    chat: str | None = None,
    fast: bool = True,
    compile: Compile = "auto",
    activation_budget: float = 1.0,
) -> FrozenLLM:
    """A causal LM from a local folder or the hub; of one that also sees, its language part. `pretrained=false`: random
    weights of `seed`, only its config and tokenizer are needed. Raises UserError where it cannot be had.

    safetensors are preferred; pickled weights (OPT and Vicuna have no others) are read as tensors and nothing else.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlavaForConditionalGeneration

    with prefix_errors(f"llm.path: {path}"):
        check_declared(path, revision)
    options: dict[str, Any] = {"dtype": pick_dtype(dtype, train), "attn_implementation": "sdpa"}
    try:
        config = read_config(path, revision)
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, **STOCK)
        if pretrained:
            maker: Any = LlavaForConditionalGeneration if config.model_type == "llava" else AutoModelForCausalLM
            model, told = maker.from_pretrained(path, revision=revision, output_loading_info=True, **options, **STOCK)
            if lacking := sorted(told["missing_keys"]):
                raise ValueError(f"its weights lack {lacking[0]}" + f" and {len(lacking) - 1} more" * bool(lacking[1:]))
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = AutoModelForCausalLM.from_config(text_of(config), **options, **STOCK)
    except Exception as error:  # the hub, the network, unpickling and the tokenizers each have their own kinds
        reason = reason_of(error, 200)
        where = "that folder" if Path(path).exists() else "neither a folder here nor in the local hub cache"
        raise UserError(
            f"llm.path: {path!r} cannot be loaded ({where}: {reason}); download it first (hf download {path}) "
            f"or give a local folder with config.json, tokenizer and weights{hint()}"
        ) from error
    name = Path(path).name if pretrained else f"{Path(path).name}-random{seed}"
    learns = train, lora_rank, lora_alpha
    return FrozenLLM(language_part(model), tokenizer, bos, name, *learns, chat, seed, fast, compile, activation_budget)


def read_config(path: str, revision: str | None) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(path, revision=revision, **STOCK)


def text_of(config: Any) -> Any:
    """The config of the language model inside; of a text-only model itself."""
    return config.get_text_config(decoder=True)


def check_declared(path: str, revision: str | None) -> None:
    """Raises UserError where config.json is of a type that is not supported, before tokenizer and weights are read."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    kind = declared_type(path, revision)
    if kind is None:
        return
    if kind not in CONFIG_MAPPING:
        check_type(kind)
    try:
        config = read_config(path, revision)
    except Exception:  # loading says what is wrong with it
        return
    check_type(text_of(config).model_type, kind)
    if kind != "llava" and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"type {kind!r} is not supported as a whole; give the checkpoint of its language model alone")


def language_part(model: Any) -> Any:
    """The causal LM inside a model that also sees (Gemma 3 from 4B on): the same modules, not a copy. Others as they
    are; raises UserError where there is no such part."""
    from transformers import AutoModelForCausalLM

    config = text_of(model.config)
    if config is model.config:
        return model
    inner = getattr(model.base_model, "language_model", None)
    if inner is None or model.get_output_embeddings() is None:
        raise UserError(f"llm: {type(model).__name__} has no language part of its own; give a text-only checkpoint")
    with torch.device("meta"):
        part = AutoModelForCausalLM.from_config(config, **STOCK)
    part.config = inner.config
    part.generation_config = model.generation_config
    setattr(part, part.base_model_prefix, inner)
    part.set_output_embeddings(model.get_output_embeddings())
    if any(tensor.is_meta for tensor in (*part.parameters(), *part.buffers())):
        raise UserError(f"llm: the language part of {type(model).__name__} cannot be taken out; give a text-only one")
    return part


def tiny(
    family: str = "llama",
    width: int = 32,
    num_blocks: int = 3,
    dtype: DtypeName = "float32",
    seed: int = 0,
    train: Train = "none",
    lora_rank: int = 4,
    lora_alpha: float = 8.0,
    chat: str | None = None,
    fast: bool = True,
    compile: Compile = "auto",
    activation_budget: float = 1.0,
) -> FrozenLLM:
    """A random model of a few thousand weights: nothing to learn about, but everything runs in seconds."""

    if family not in FAMILY_NAMES:
        raise UserError(f"llm.family: {family!r} is not one of {', '.join(FAMILY_NAMES)}")
    tokenizer = tiny_tokenizer(TOKENS.get(chat or "", ()))
    model = tiny_model(family, width, num_blocks, seed, len(tokenizer)).to(pick_dtype(dtype))
    learns = train, lora_rank, lora_alpha
    return FrozenLLM(model, tokenizer, "auto", f"tiny-{family}", *learns, chat, seed, fast, compile, activation_budget)
