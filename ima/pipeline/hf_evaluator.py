"""Measuring a whole model that was trained elsewhere: its own processor lays out pictures and text.

Hidden here: which positions are of the picture, the question, the answer and the template.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ima.alignment.pairing import TextKey
from ima.core.errors import UserError
from ima.core.types import Role, Sample
from ima.data.collate import NoPercepts, Percepts
from ima.data.source import Source
from ima.models.hf_multimodal import PLAIN, Lmm, LmmBatch
from ima.models.llm.pieces import Before
from ima.pipeline.evaluator import Evaluator
from ima.tasks.base import Task


class LmmCollate:
    """Callable for a DataLoader. `answers`: with the target, padded on the right (teacher-forced), or the prompt alone,
    padded on the left (generation). `blind`: without pictures."""

    def __init__(self, task: Task, source: Source, lmm: Lmm, answers: bool = True, blind: bool = False) -> None:
        self.task, self.source, self.answers, self.blind = task, source, answers, blind
        self.processor, self.tokenizer = lmm.processor, lmm.processor.tokenizer
        self.pieces = lmm.llm.pieces
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
        prompt, shown = self.task.prompt_for(sample), () if self.blind else sample.media_samples
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
            answer = self.pieces.encode(said if text[-1].isspace() else f" {said}", Before.TEXT)
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

    def _asked_blind(self, sample: Sample) -> tuple[int, ...]:
        texts, _, _, _ = self._collate(NoPercepts(), answers=False).row(sample, 0)
        return tuple(texts["input_ids"])

    def _shown_text(self, sample: Sample) -> TextKey:
        texts, roles, _, _ = self._collate(NoPercepts()).row(sample, 0)
        return tuple(texts["input_ids"]), tuple(roles)

    def _collate(self, percepts: Percepts, answers: bool = True, task: Task | None = None) -> Any:
        return LmmCollate(task or self.task, self.source, self.lmm, answers, isinstance(percepts, NoPercepts))
