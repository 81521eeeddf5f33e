"""Rows of a whole multimodal model put together: padded text, and media one behind the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ima.core.types import Role, Sample
from ima.models.hf_multimodal.kinds import Kind
from ima.models.hf_multimodal.layout import TokenizedSample, joined


@dataclasses.dataclass
class LmmBatch:
    """inputs: of the whole model (input_ids, attention_mask, what the processor makes of media). parts: the inputs of
    the media of each row, where the model must see them one by one; they are not in `inputs` then."""

    samples: list[Sample]
    inputs: dict[str, Tensor]
    roles_BS: Tensor
    labels_BS: Tensor
    parts: list[dict[str, Tensor]] = dataclasses.field(default_factory=list)

    def to(self, device: Any) -> LmmBatch:
        inputs, *parts = (
            {name: value.to(device) for name, value in each.items()} for each in (self.inputs, *self.parts)
        )
        return LmmBatch(self.samples, inputs, self.roles_BS.to(device), self.labels_BS.to(device), parts)

    def __len__(self) -> int:
        return len(self.samples)


def batch_of(
    samples: list[Sample],
    rows: Sequence[TokenizedSample],
    labels: Sequence[list[int]],
    kind: Kind,
    pad: int,
    left: bool,
) -> LmmBatch:
    """left: padding stands before the text, as generation wants it."""
    length = max(len(row.roles) for row in rows)

    def padded(values: list[int], fill: int) -> list[int]:
        rest = [fill] * (length - len(values))
        return rest + values if left else values + rest

    roles_BS = torch.tensor([padded(row.roles, int(Role.PAD)) for row in rows])
    labels_BS = torch.tensor([padded(each, -100) for each in labels])
    inputs = {"attention_mask": (roles_BS != Role.PAD).long()}
    for name in sorted({name for row in rows for name in row.tokens}):
        fill = pad if name == "input_ids" else 0
        values = [row.tokens.get(name, [0] * len(row.roles)) for row in rows]
        inputs[name] = torch.tensor([padded(each, fill) for each in values])
    if kind.alone:
        return LmmBatch(samples, inputs, roles_BS, labels_BS, [row.media for row in rows])
    media = [row.media for row in rows]
    for name in sorted({name for each in media for name in each}):
        inputs[name] = joined(shifted(media, name, kind))
    return LmmBatch(samples, inputs, roles_BS, labels_BS)


def shifted(media: Sequence[dict[str, Tensor]], name: str, kind: Kind) -> list[Tensor]:
    """The input of all rows that have it; what counts places within a row goes on counting over the batch."""
    values = [each[name] for each in media if name in each]
    if name not in kind.counted:
        return values
    found, start = [], 0
    for value, other in zip(values, (each for each in media if name in each), strict=True):
        found.append(torch.where(value >= 0, value + start, value))
        start += int(torch.tensor(other[kind.counted[name]].shape[:2]).prod())
    return found
