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
from ima.core.types import Role, Sample
from ima.data.collate import NoPercepts, Percepts
from ima.data.source import Source
from ima.models.llm.frozen import FrozenLLM, Generation, Running
from ima.models.llm.load import DtypeName, pick_dtype
from ima.pipeline.evaluator import Evaluator
from ima.tasks.base import Task

TYPES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl")
PLAIN = "USER: {media}\n{prompt} ASSISTANT:"  # LLaVA-1.5's, for processors without a template of their own


class Decoder(nn.Module):
    """The language model inside, as a causal LM."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.config = whole.config.get_text_config(decoder=True)
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
            raise UserError(f"path: {name} is of type {kind!r}; measured are {', '.join(TYPES)}")
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
        ids_BT = self.whole.generate(
            **batch.inputs,
            max_new_tokens=settings.max_new_tokens,
            num_beams=settings.num_beams,
            do_sample=False,
            pad_token_id=self.llm.pad_id,
        )
        length = batch.inputs["input_ids"].shape[1]
        return [self.llm.decode(ids) for ids in ids_BT[:, length:].tolist()]


class Inner(FrozenLLM):
    """The language model, run on what the whole model handed to it last."""

    handed: dict[str, Any]

    def forward(self, x_BSD: Tensor, roles_BS: Tensor, sample_ids: Sequence[str] | None = None) -> Tensor:
        assert x_BSD is self.handed["inputs_embeds"], "not what was spliced last"
        with self._running(Running(roles_BS, None if sample_ids is None else tuple(sample_ids))):
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


class LmmCollate:
    """Callable for a DataLoader. `answers`: with the target, padded on the right (teacher-forced), or the prompt alone,
    padded on the left (generation). `blind`: without pictures."""

    def __init__(self, task: Task, source: Source, lmm: Lmm, answers: bool = True, blind: bool = False) -> None:
        self.task, self.source, self.answers, self.blind = task, source, answers, blind
        self.processor, self.tokenizer = lmm.processor, lmm.processor.tokenizer
        self.image_id, self.image_token = lmm.image_id, lmm.image_token
        self.eos_id, self.pad_id, self.dtype, self.name = lmm.llm.eos_id, lmm.llm.pad_id, lmm.llm.dtype, lmm.llm.name

    def __call__(self, items: Sequence[tuple[Sample, int]]) -> LmmBatch:
        rows = [self.row(sample, draw) for sample, draw in items]
        length = max(len(roles) for _, roles, _, _ in rows)

        def padded(values: list[int], fill: int) -> list[int]:
            rest = [fill] * (length - len(values))
            return values + rest if self.answers else rest + values

        roles_BS = torch.tensor([padded(roles, int(Role.PAD)) for _, roles, _, _ in rows])
        labels_BS = torch.tensor([padded(labels, -100) for _, _, labels, _ in rows])
        inputs = {"attention_mask": (roles_BS != Role.PAD).long()}
        for name in rows[0][0]:  # of the text: ids and whatever is told of each of them
            fill = self.pad_id if name == "input_ids" else 0
            inputs[name] = torch.tensor([padded(texts[name], fill) for texts, _, _, _ in rows])
        for name in {name for _, _, _, media in rows for name in media}:
            inputs[name] = joined([media[name] for _, _, _, media in rows if name in media])
        return LmmBatch([sample for sample, _ in items], inputs, roles_BS, labels_BS)

    def row(self, sample: Sample, draw: int) -> tuple[dict[str, list[int]], list[int], list[int], dict[str, Tensor]]:
        """Of one sample: what is told of its tokens, their roles and labels, its pictures."""
        prompt, shown = self.task.prompt_for(sample), () if self.blind else sample.shown
        text = self.laid_out(prompt, len(shown))
        pictures = [self.source.medium(medium) for medium in shown]
        made = self.processor(text=[text], images=pictures or None, return_tensors="pt")
        ids = made["input_ids"][0].tolist()
        roles = self.roles_of(text, prompt, ids)
        labels = [-100] * len(ids)
        texts = {
            name: value[0].tolist()
            for name, value in made.items()
            if name != "attention_mask" and value.shape == made["input_ids"].shape
        }
        media = {name: value for name, value in made.items() if name not in texts and name != "attention_mask"}
        if self.answers:
            said = self.task.target_for(sample, draw).strip()
            answer = self.tokenizer(said if text[-1].isspace() else f" {said}", add_special_tokens=False).input_ids
            if not said or not answer:
                raise UserError(f"sample {sample.id}: its target text is empty; fix or remove it")
            roles += [int(Role.ANSWER)] * len(answer) + [int(Role.SPECIAL)]
            labels += [*answer, self.eos_id]
            for name, values in texts.items():
                values += [*answer, self.eos_id] if name == "input_ids" else [0] * (len(answer) + 1)
        return texts, roles, labels, media

    def laid_out(self, prompt: str, num_media: int) -> str:
        """The prompt in the model's own template, ready for the answer. Templates take a turn in parts, or as one text
        (those of language models)."""
        if not getattr(self.processor, "chat_template", None):
            return PLAIN.format(media=self.image_token * num_media, prompt=prompt)
        parts = [*({"type": "image"} for _ in range(num_media)), {"type": "text", "text": prompt}]
        for content in (parts, f"{self.image_token}\n" * num_media + prompt):
            try:
                text: str = self.processor.apply_chat_template(
                    [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
                )
            except Exception:  # a template raises what it likes
                continue
            if text.count(self.image_token) == num_media and prompt in text:
                return text
        raise UserError(f"lmm.path: the chat template of {self.name} shows no picture and question; mend or remove it")

    def roles_of(self, text: str, prompt: str, ids: list[int]) -> list[int]:
        """Of each token of the laid out text, in which the processor has repeated the image tokens."""
        start = text.rfind(prompt)
        encoded = self.tokenizer(text, return_offsets_mapping=True)
        roles: list[int] = []
        names, spans = list(encoded.input_ids), list(encoded.offset_mapping)
        for index, (name, (low, high)) in enumerate(zip(names, spans, strict=True)):
            if name == self.image_id:
                if index + 1 < len(names) and names[index + 1] == self.image_id:
                    continue  # pictures side by side are one stretch
                stop = len(roles)
                while stop < len(ids) and ids[stop] == self.image_id:
                    stop += 1
                roles += [int(Role.PERCEPT)] * (stop - len(roles))
                continue
            inside = start >= 0 and low < start + len(prompt) and high > start and high > low
            if len(roles) >= len(ids) or ids[len(roles)] != name:
                break
            roles.append(int(Role.PROMPT if inside else Role.SPECIAL))
        if len(roles) != len(ids) or start < 0:
            raise UserError(f"lmm.path: the processor of {self.name} changes the text; where things stand is not known")
        return roles


def joined(values: list[Tensor]) -> Tensor:
    """Along the first dimension; what is smaller in others (pictures in fewer tiles) is filled with zeros."""
    shape = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
    filled = []
    for value in values:
        room = value.new_zeros((len(value), *shape))
        room[tuple(slice(size) for size in value.shape)] = value
        filled.append(room)
    return torch.cat(filled)


class OwnPercepts:
    """What the whole model makes of pictures itself: nothing is handed to it."""

    def __call__(self, samples: Sequence[Sample], epoch: int | None) -> dict[str, Tensor]:
        return {}


class LmmEvaluator(Evaluator):
    """An `Evaluator` of a whole model."""

    def __init__(self, lmm: Lmm, task: Task, source: Source, batch_size: int, num_workers: int = 0) -> None:
        super().__init__(lmm, task, source, OwnPercepts(), batch_size, num_workers)
        self.lmm = lmm

    def _collate(self, percepts: Percepts, answers: bool = True, task: Task | None = None) -> Any:
        return LmmCollate(task or self.task, self.source, self.lmm, answers, isinstance(percepts, NoPercepts))


def hf(path: str, dtype: DtypeName = "auto", revision: str | None = None) -> Lmm:
    """A checkpoint of Hugging Face: a local folder or a hub name. Raises UserError where it cannot be loaded."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(path, revision=revision)
        whole = AutoModelForImageTextToText.from_pretrained(path, revision=revision, dtype=pick_dtype(dtype))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"path: {path} cannot be loaded ({' '.join(str(error).split())[:160]})") from error
    if not hasattr(processor, "tokenizer"):
        raise UserError(f"path: {path} has no processor of pictures and text (preprocessor_config.json)")
    return Lmm(whole, processor, Path(path).name)
