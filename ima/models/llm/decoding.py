"""What decoding takes from a checkpoint: which tokens end a text, and nothing else; and the cache that it writes to.

A checkpoint's generation_config may penalise repetitions, suppress tokens or sample; greedy and beams here mean greedy
and beams, so that scores of different LLMs can be compared. Hides how `generate` fills in what it is not told.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ima.core.errors import UserError
from ima.models.llm.pass_context import Generation
from ima.models.llm.watchers import OurForward


def ids_in(value: Any) -> list[int]:
    """Token ids of a config value: a number, a list of them, or nothing."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [int(each) for each in values if each is not None]


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """The end-of-sequence token first, then all others that the checkpoint lists as ends (of a turn, of a message).
    Raises UserError where there is none."""
    settings, config = getattr(model, "generation_config", None), model.config
    listed = ids_in(config.eos_token_id) if isinstance(config.eos_token_id, list) else []
    if settings is not None and not getattr(settings, "_from_model_config", False):  # a generation_config.json
        listed += ids_in(settings.eos_token_id)
    found = ids_in(tokenizer.eos_token_id) or ids_in(config.eos_token_id) or listed
    if not found:
        raise UserError("llm: the tokenizer names no end-of-sequence token (eos_token), so that no answer would end")
    return list(dict.fromkeys([found[0], *listed]))


def check_tokens(model: Any, tokenizer: Any) -> None:
    """Raises UserError where the tokenizer makes ids that the model has no embedding for. Specials of pictures and the
    like may lie beyond, as in text-only checkpoints of Gemma 3: no text makes them."""
    num = model.get_input_embeddings().num_embeddings
    if len(tokenizer) <= num:
        return
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    beyond = sorted(id for id in tokenizer.get_vocab().values() if id >= num and id not in special)
    used = {
        "eos_token": tokenizer.eos_token_id,
        "bos_token": tokenizer.bos_token_id,
        "pad_token": tokenizer.pad_token_id,
    }
    beyond += [id for id in used.values() if id is not None and id >= num]
    if beyond:
        raise UserError(
            f"llm: the tokenizer has {len(tokenizer)} tokens and the model {num} embeddings: "
            f"{tokenizer.convert_ids_to_tokens(beyond[0])!r} has none; give the tokenizer of this model"
        )


def warn_of_rope(model: Any, name: str) -> None:
    """Some rotary positions are scaled by the longest example of the batch."""
    values = [getattr(model.config, key, None) or {} for key in ("rope_parameters", "rope_scaling")]
    values += [inner for value in values for inner in value.values() if isinstance(inner, dict)]  # by kind of layer
    kinds = {str(value.get("rope_type")) for value in values}
    if found := sorted(kinds & {"dynamic", "longrope"}):
        warnings.warn(
            f"llm: {name} scales its positions by the longest text of a batch (rope_type {found[0]}): beyond its first "
            "context length an example's numbers depend on the others in its batch; use eval_batch_size=1 there",
            stacklevel=2,
        )


@contextmanager
def own_settings(model: Any, settings: Generation, end: list[int], pad: int, bos: int | None) -> Iterator[Any]:
    """The GenerationConfig to decode with. While open it is also the model's, whose own would fill in what is unset.
    `never_written` of a model: control tokens that one of our loaders found, no text has them."""
    from transformers import GenerationConfig

    make: Any = GenerationConfig
    config = make(
        max_new_tokens=settings.max_new_tokens,
        num_beams=settings.num_beams,
        do_sample=False,
        pad_token_id=pad,
        eos_token_id=end,
        bos_token_id=bos,
        suppress_tokens=getattr(model, "never_written", None),
        use_cache=True,
    )
    before, model.generation_config = model.generation_config, config
    try:
        yield config
    finally:
        model.generation_config = before


@contextmanager
def contiguous_head(model: Any) -> Iterator[None]:
    """`generate` hands the LM head a slice of the last position: strided, which torch multiplies as a batched product
    that copies the whole vocabulary matrix for each example. A contiguous input is one plain product."""

    def before(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0].contiguous(), *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


class FixedCache:
    """A KV cache of fixed size that decoding goes on with from batch to batch. On a GPU `generate` compiles its steps
    where it is given one. Kept for one number of rows; smaller batches (as a rule the last) go without."""

    def __init__(self, usable: bool = True) -> None:
        self.usable = usable
        self._cache: Any = None
        self.size = 0, 0  # rows, positions

    def of(self, model: Any, rows: int, length: int) -> Any:
        """An empty one for `rows` sequences of `length` positions, prompt and answer; None for fewer rows than before.
        Grows in steps of 128 positions, because every size is compiled anew."""
        from transformers import StaticCache

        if not self.usable or rows < self.size[0]:
            return None
        if self._cache is not None and rows == self.size[0] and length <= self.size[1]:
            self._cache.reset()
        else:
            self.size = rows, -(-length // 128) * 128
            made: Any = StaticCache(config=model.config, max_cache_len=self.size[1])
            self._cache = made
        return self._cache

    def forget(self) -> None:
        """Gives the memory back; any number of rows may come."""
        self._cache, self.size = None, (0, 0)


@contextmanager
def stock_blocks(blocks: nn.ModuleList) -> Iterator[None]:
    """Blocks without our own forwards, which stand in the way of a compiler of the whole model."""
    kept = [
        (block, vars(block).pop("forward")) for block in blocks if isinstance(vars(block).get("forward"), OurForward)
    ]
    try:
        yield
    finally:
        for block, forward in kept:
            block.forward = forward
