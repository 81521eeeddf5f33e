"""Whole multimodal models that were trained elsewhere, measured as they are: `evaluate.py lmm=hf lmm.path=FOLDER`.

Any Hugging Face LLaVA, LLaVA-NeXT, Qwen2-VL or Qwen2.5-VL checkpoint. Its own processor lays out pictures and text, its
own model makes what enters the language model (positions included), and that is where the tap looks: nothing of a
forward pass is copied. Hidden here: which positions are of the picture, the question, the answer and the template.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ima.core.errors import UserError
from ima.core.trust import STOCK, reason_of
from ima.core.types import Sample
from ima.models.llm.decoding import own_settings
from ima.models.llm.families import declared_type
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.load import DtypeName, pick_dtype
from ima.models.llm.pass_context import Generation, PassContext

TYPES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl")
PLAIN = "USER: {media}\n{prompt} ASSISTANT:"  # LLaVA-1.5's, for processors without a template of their own


class Decoder(nn.Module):
    """The language model inside, as a causal LM."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.config = whole.config.get_text_config(decoder=True)
        self.generation_config = whole.generation_config
        self.model, self.lm_head = whole.model.language_model, whole.lm_head

    @property
    def base_model(self) -> Any:
        return self.model

    @property
    def dtype(self) -> torch.dtype:
        return self.lm_head.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    def get_input_embeddings(self) -> Any:
        return self.model.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self.lm_head


class Handed(Exception):
    """Ends a pass of the whole model where its language model begins."""


class Lmm(nn.Module):
    """`whole`: the model, frozen; `processor`: its own. What an `Evaluator` asks of a module, over an `LmmBatch`."""

    def __init__(self, whole: Any, processor: Any, name: str) -> None:
        super().__init__()
        kind = whole.config.model_type
        if kind not in TYPES:
            raise UserError(unsupported(name, kind))
        if not getattr(processor.tokenizer, "is_fast", False):
            raise UserError(f"path: the tokenizer of {name} tells no offsets; save it as a fast one (tokenizer.json)")
        self.whole, self.processor = whole.eval().requires_grad_(False), processor
        self.llm = Inner(Decoder(whole), processor.tokenizer, name=name)
        found = getattr(whole.config, "image_token_id", None)
        self.image_id = int(whole.config.image_token_index if found is None else found)
        self.image_token = str(processor.tokenizer.convert_ids_to_tokens(self.image_id))

    @property
    def device(self) -> torch.device:
        return self.llm.device

    @torch.no_grad()
    def splice(self, batch: LmmBatch) -> tuple[Tensor, Tensor, Tensor]:
        """x_BSD that enters the language model, roles_BS, labels_BS."""
        handed: dict[str, Any] = {}

        def stop(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
            handed.update(kwargs)
            raise Handed

        handle = self.llm.model.model.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self.whole.model(**batch.inputs, use_cache=False)
        except Handed:
            pass
        finally:
            handle.remove()
        self.llm.handed = handed
        return handed["inputs_embeds"], batch.roles_BS, batch.labels_BS

    @torch.no_grad()
    def generate(self, batch: LmmBatch, settings: Generation) -> list[str]:
        """Text per sample of a prompt-only batch, padded on the left."""
        llm = self.llm
        with own_settings(self.whole, settings, llm.stop_ids, llm.pad_id, llm.bos_id) as config:
            ids_BT = self.whole.generate(**batch.inputs, generation_config=config)
        length = batch.inputs["input_ids"].shape[1]
        return [llm.decode(llm.until_end(ids)) for ids in ids_BT[:, length:].tolist()]


def unsupported(name: str, kind: str) -> str:
    return f"path: {name}: type {kind!r} is not supported; supported are {', '.join(TYPES)}"


class Inner(FrozenLLM):
    """The language model, run on what the whole model handed to it last."""

    handed: dict[str, Any]

    def forward(self, x_BSD: Tensor, roles_BS: Tensor, sample_ids: Sequence[str] | None = None) -> Tensor:
        assert x_BSD is self.handed["inputs_embeds"], "not what was spliced last"
        with self._running(PassContext(roles_BS, None if sample_ids is None else tuple(sample_ids))):
            output = self.model.base_model(**self.handed)
        hidden: Tensor = output.last_hidden_state
        return hidden


@dataclasses.dataclass
class LmmBatch:
    """inputs: of the whole model (input_ids, attention_mask, what the processor makes of pictures)."""

    samples: list[Sample]
    inputs: dict[str, Tensor]
    roles_BS: Tensor
    labels_BS: Tensor

    def to(self, device: Any) -> LmmBatch:
        inputs = {name: value.to(device) for name, value in self.inputs.items()}
        return LmmBatch(self.samples, inputs, self.roles_BS.to(device), self.labels_BS.to(device))

    def __len__(self) -> int:
        return len(self.samples)


def hf(path: str, dtype: DtypeName = "auto", revision: str | None = None) -> Lmm:
    """A checkpoint of Hugging Face: a local folder or a hub name. Raises UserError where it cannot be loaded."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    kind = declared_type(path, revision)
    if kind is not None and kind not in TYPES:
        raise UserError(unsupported(path, kind))
    try:
        processor = AutoProcessor.from_pretrained(path, revision=revision, **STOCK)
        whole = AutoModelForImageTextToText.from_pretrained(path, revision=revision, dtype=pick_dtype(dtype), **STOCK)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"path: {path} cannot be loaded ({reason_of(error)})") from error
    if not hasattr(processor, "tokenizer"):
        raise UserError(f"path: {path} has no processor of pictures and text (preprocessor_config.json)")
    return Lmm(whole, processor, Path(path).name)
