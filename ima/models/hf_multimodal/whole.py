"""A whole multimodal model of Hugging Face, frozen: its own code makes what enters the language model.

Nothing of a forward pass is copied. What the model hands to its language model (positions and masks included) is kept
and handed again, under taps and interventions; decoding is the model's own, with the roles of its passes told. Hidden
here: where the language model begins, and vectors that the model learnt to stand between percepts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ima.core.errors import UserError
from ima.core.media import Medium
from ima.core.trust import STOCK, reason_of
from ima.core.types import Role
from ima.models.hf_multimodal.batch import LmmBatch, batch_of
from ima.models.hf_multimodal.check import check_percepts
from ima.models.hf_multimodal.kinds import REFUSED, Kind, kind_of, types
from ima.models.hf_multimodal.layout import WHOLE_PROCESSOR, Layout
from ima.models.llm.decoding import own_settings
from ima.models.llm.decoding_roles import told_roles
from ima.models.llm.families import declared_type
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.load import DtypeName, pick_dtype
from ima.models.llm.pass_context import Generation, PassContext

SAME = 0.02  # relative: a learned vector in half precision, whatever it was computed beside


class Decoder(nn.Module):
    """The language model inside, as a causal LM."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.model, self.lm_head = whole.get_decoder(), whole.get_output_embeddings() or whole.lm_head
        self.config, self.generation_config = self.model.config, whole.generation_config

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


class StopForward(Exception):
    """Ends a pass of the whole model where its language model begins."""


class Lmm(nn.Module):
    """`whole`: the model, frozen; `processor`: its own. What an `Evaluator` asks of a module, over an `LmmBatch`."""

    def __init__(self, whole: Any, processor: Any, name: str, num_frames: int = 8) -> None:
        super().__init__()
        self.kind = kind_of(whole.config.model_type, type(processor).__name__)
        check_type(name, self.kind)
        if not getattr(processor.tokenizer, "is_fast", False):
            raise UserError(f"path: the tokenizer of {name} tells no offsets; save it as a fast one (tokenizer.json)")
        self.whole, self.processor = whole.eval().requires_grad_(False), processor
        self.layout = Layout(processor, whole.config, self.kind, name, num_frames)
        self.llm = InnerLlm(Decoder(whole), processor.tokenizer, name=name)
        whole.never_written = self.layout.never_written
        if not self.kind.listed:
            check_percepts(self, self.one)

    @property
    def device(self) -> torch.device:
        return self.llm.device

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.layout.modalities

    def one(self, prompt: str, media: Sequence[Medium], modality: str) -> LmmBatch:
        """A batch of one prompt on the model's device."""
        row = self.layout.lay(prompt, media, modality)
        return batch_of([], [row], [[-100] * len(row.roles)], self.kind, self.llm.pad_id, False).to(self.device)

    @torch.no_grad()
    def splice(self, batch: LmmBatch) -> tuple[Tensor, Tensor, Tensor]:
        """x_BSD that enters the language model, roles_BS, labels_BS."""
        if self.kind.alone:
            handed = self._one_by_one(batch)
        else:
            handed = self._until(self.llm.model.model, cast(batch.inputs, self.llm.dtype))
        handed.pop("past_key_values", None)
        self.llm.handed = handed | {"use_cache": False}
        x_BSD = handed["inputs_embeds"]
        roles_BS = without_learned(x_BSD, batch.roles_BS, self.learned())
        return x_BSD, roles_BS, batch.labels_BS

    @torch.no_grad()
    def learned(self) -> list[Tensor]:
        """Vectors of the model's own that stand among percepts."""
        return self.kind.learned(self.whole) if self.kind.learned else []

    def _until(self, module: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Any]:
        """What the whole model hands to a module by name; it runs no further. Also its first argument, as
        `inputs_embeds`, where that has no name."""
        handed: dict[str, Any] = {}

        def stop(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            handed.update(kwargs)
            if args:
                handed["inputs_embeds"] = args[0]
            raise StopForward

        handle = module.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
        try:
            self.whole(**inputs, use_cache=False)
        except StopForward:
            pass
        except UserError:
            raise
        except ValueError as error:  # more or fewer features than places for them
            raise UserError(
                f"lmm.path: {self.llm.name} does not take what its processor laid out ({reason_of(error)}); "
                f"{WHOLE_PROCESSOR}"
            ) from error
        finally:
            handle.remove()
        return handed

    def _one_by_one(self, batch: LmmBatch) -> dict[str, Any]:
        """Every row by itself up to the first block, so that nothing of it depends on the others."""
        real_BS = batch.inputs["attention_mask"].bool()
        rows = []
        for index, part in enumerate(batch.parts):
            own = {name: value[index : index + 1, real_BS[index]] for name, value in batch.inputs.items()}
            handed = self._until(self.llm.table.blocks[0], own | cast(part, self.llm.dtype))
            rows.append(handed["inputs_embeds"][0])
        x_BSD = rows[0].new_zeros((*real_BS.shape, rows[0].shape[-1]))
        x_BSD[real_BS] = torch.cat(rows)
        positions_BS = (real_BS.long().cumsum(1) - 1).clamp_min(0)
        return {"inputs_embeds": x_BSD, "attention_mask": batch.inputs["attention_mask"], "position_ids": positions_BS}

    @torch.no_grad()
    def generate(self, batch: LmmBatch, settings: Generation) -> list[str]:
        """Text per sample of a prompt-only batch, padded on the left."""
        llm = self.llm
        inputs, length = cast(batch.inputs, llm.dtype), batch.inputs["input_ids"].shape[1]
        if self.kind.alone:
            handed = self._one_by_one(batch)
            inputs, length = {name: handed[name] for name in ("inputs_embeds", "attention_mask")}, 0
        ids = tuple(sample.id for sample in batch.samples) or None
        config_of = own_settings(self.whole, settings, llm.stop_ids, llm.pad_id, llm.bos_id)
        with config_of as config, llm.decoding(batch.roles_BS, ids, self.learned()):
            ids_BT = self.whole.generate(**inputs, generation_config=config)
        return [llm.decode(llm.until_end(row)) for row in ids_BT[:, length:].tolist()]


def declared_kind(path: str, revision: str | None = None) -> Kind | None:
    """Of a checkpoint that is not loaded yet; None where its type is not in the table or not known."""
    model_type = declared_type(path, revision)
    kind = kind_of(model_type) if model_type else None
    return kind if kind and kind.listed else None


def check_type(name: str, kind: Kind) -> None:
    if kind.model_type in REFUSED:
        raise UserError(f"path: {name}: type {kind.model_type!r} is refused: {REFUSED[kind.model_type]}")


def cast(inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}


def without_learned(x_BSD: Tensor, roles_BS: Tensor, learned: Sequence[Tensor]) -> Tensor:
    """Roles in which percepts that hold one of these vectors are SPECIAL."""
    percept_BS = roles_BS == Role.PERCEPT
    for vector_D in learned:
        error_BS = (x_BSD.float() - vector_D.to(x_BSD.device).float()).norm(dim=-1)
        same_BS = error_BS <= SAME * vector_D.float().norm()
        roles_BS = torch.where(percept_BS & same_BS, int(Role.SPECIAL), roles_BS)
    return roles_BS


class InnerLlm(FrozenLLM):
    """The language model, run on what the whole model handed to it last."""

    handed: dict[str, Any]

    def forward(self, x_BSD: Tensor, roles_BS: Tensor, sample_ids: Sequence[str] | None = None) -> Tensor:
        assert x_BSD is self.handed["inputs_embeds"], "not what was spliced last"
        with self._running(PassContext(roles_BS, None if sample_ids is None else tuple(sample_ids))):
            output = self.model.base_model(**self.handed)
        hidden: Tensor = output.last_hidden_state
        return hidden

    @contextmanager
    def decoding(
        self, roles_BS: Tensor, sample_ids: tuple[str, ...] | None, learned: Sequence[Tensor]
    ) -> Iterator[None]:
        """While the whole model decodes: roles are told of every pass of the language model inside it."""

        def look(x_BSD: Tensor, roles: Tensor) -> Tensor:
            return without_learned(x_BSD, roles, learned)

        with told_roles(self, roles_BS, sample_ids, self.model.model, look):
            yield


def hf(path: str, dtype: DtypeName = "auto", revision: str | None = None, num_frames: int = 8) -> Lmm:
    """A checkpoint of Hugging Face: a local folder or a hub name. num_frames: frames of a clip that are shown. Raises
    UserError where it cannot be loaded."""
    from transformers import AutoModelForMultimodalLM, AutoProcessor
    from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES as KNOWN

    kind = declared_type(path, revision)
    if kind is not None:
        check_type(path, kind_of(kind))
        if kind not in KNOWN:
            raise UserError(f"path: {path}: type {kind!r} is not supported; supported are {', '.join(types())}")
    try:
        processor = AutoProcessor.from_pretrained(path, revision=revision, **STOCK)
        whole = AutoModelForMultimodalLM.from_pretrained(path, revision=revision, dtype=pick_dtype(dtype), **STOCK)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"path: {path} cannot be loaded ({reason_of(error)})") from error
    if not hasattr(processor, "tokenizer"):
        raise UserError(f"path: {path} has no processor of media and text (preprocessor_config.json)")
    return Lmm(whole, processor, Path(path).name, num_frames)
