"""Putting perceptual tokens into the text: x_BSD with its roles and labels, from a batch and what the adapters made.

The common case (one medium in front of every sample) is a concatenation; the general one (several media, anywhere,
of several channels with token counts of their own, or none) gathers rows of one table. Both give the same sequences.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ima.core.types import Batch, MediaGroup, Role
from ima.models.llm.frozen import FrozenLLM

Made = tuple[MediaGroup, Tensor]  # a group and its p_MKD
Spliced = tuple[Tensor, Tensor, Tensor]  # x_BSD, roles_BS, labels_BS


def splice(llm: FrozenLLM, batch: Batch, made: Sequence[Made]) -> Spliced:
    """x_BSD (LLM dtype), roles_BS, labels_BS; padded on the right, to a length that the LLM likes."""
    if not made:
        found = llm.embed(batch.ids_BT), batch.roles_BT, batch.labels_BT
    else:
        group, p_MKD = made[0]
        one_each = len(made) == 1 and is_front(group, len(batch))
        found = in_front(llm, batch, p_MKD) if one_each else anywhere(llm, batch, made)
    length = found[0].shape[1]
    return longer(llm, found, more) if (more := llm.padded_length(length) - length) else found


def is_front(group: MediaGroup, num_samples: int) -> bool:
    """Whether it has one medium for every sample, in front of its text."""
    return group.rows == list(range(num_samples)) and not any(group.places)


def longer(llm: FrozenLLM, found: Spliced, more: int) -> Spliced:
    """With `more` columns of padding on the right."""
    x_BSD, roles_BS, labels_BS = found
    pad_BS = roles_BS.new_full((len(roles_BS), more), llm.pad_id)
    return (
        torch.cat([x_BSD, llm.embed(pad_BS)], dim=1),
        torch.cat([roles_BS, torch.full_like(pad_BS, int(Role.PAD))], dim=1),
        torch.cat([labels_BS, torch.full_like(pad_BS, -100)], dim=1),
    )


def in_front(llm: FrozenLLM, batch: Batch, p_BKD: Tensor) -> Spliced:
    x_BTD = llm.embed(batch.ids_BT)
    shape = p_BKD.shape[:2]
    return (
        torch.cat([p_BKD.to(x_BTD.dtype), x_BTD], dim=1),
        torch.cat([batch.roles_BT.new_full(shape, int(Role.PERCEPT)), batch.roles_BT], dim=1),
        torch.cat([batch.labels_BT.new_full(shape, -100), batch.labels_BT], dim=1),
    )


def anywhere(llm: FrozenLLM, batch: Batch, made: Sequence[Made]) -> Spliced:
    """One table of all text embeddings, all perceptual tokens and a pad; each position of the result is a row of it."""
    num_rows, num_text = batch.ids_BT.shape
    tables = [llm.embed(batch.ids_BT).flatten(0, 1)]
    shown: list[list[tuple[int, range]]] = [[] for _ in range(num_rows)]  # per sample: place, rows of the table
    start = num_rows * num_text
    for group, p_MKD in made:
        num_tokens = p_MKD.shape[1]
        tables.append(p_MKD.flatten(0, 1).to(tables[0].dtype))
        for row, place in zip(group.rows, group.places, strict=True):
            shown[row].append((place, range(start, start + num_tokens)))
            start += num_tokens
    tables.append(llm.embed(torch.full((1, 1), llm.pad_id, device=batch.ids_BT.device))[0])
    lengths = batch.lengths or (batch.roles_BT != Role.PAD).sum(1).tolist()
    picked = []
    for row, media in enumerate(shown):
        first, line, at = row * num_text, list[int](), 0
        for place, tokens in sorted(media, key=lambda item: item[0]):
            line += [*range(first + at, first + place), *tokens]
            at = place
        picked.append(line + list(range(first + at, first + lengths[row])))
    length = max(map(len, picked))
    rows_BS = torch.tensor([line + [start] * (length - len(line)) for line in picked])
    index_BS = rows_BS.to(batch.ids_BT.device, non_blocking=True)
    num_percept = start - num_rows * num_text
    roles = batch.roles_BT.new_full((num_percept + 1,), int(Role.PERCEPT))
    roles[-1] = int(Role.PAD)
    labels = batch.labels_BT.new_full((num_percept + 1,), -100)
    return (
        torch.cat(tables)[index_BS],
        torch.cat([batch.roles_BT.flatten(), roles])[index_BS],
        torch.cat([batch.labels_BT.flatten(), labels])[index_BS],
    )
