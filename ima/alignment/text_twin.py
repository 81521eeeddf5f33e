"""The positive control: what a score reads where the percepts ARE the text.

In the percepts' place stand the LLM's own embeddings of a reference text of the sample: its first K tokens, repeated
where it has fewer. Everything else of the pass is the same. No upper bound by theory, but what aligned looks like in
this LLM: a score is read between its null and this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ima.alignment.headline import headline_rows
from ima.alignment.kept_means import Means, TextBank
from ima.alignment.rows import Base
from ima.core.types import Role, Row
from ima.models.llm.frozen import FrozenLLM

VARIANT = "text_twin"


def with_texts(llm: FrozenLLM, x_BSD: Tensor, roles_BS: Tensor, ids: Sequence[Sequence[int]]) -> Tensor:
    """x_BSD with the embeddings of each row's text in the place of its percepts; rows without a text stay as they
    are."""
    out_BSD = x_BSD.clone()
    for row, text in enumerate(ids):
        place_K = (roles_BS[row] == Role.PERCEPT).nonzero()[:, 0]
        if len(text) and len(place_K):
            index_K = torch.arange(len(place_K)) % min(len(text), len(place_K))
            tokens_1K = torch.tensor([text], device=x_BSD.device)[:, index_K]
            out_BSD[row, place_K] = llm.embed(tokens_1K)[0].to(x_BSD.dtype)
    return out_BSD


def twin_rows(bank: TextBank, media: Means, base: Base) -> Iterator[Row]:
    """The headline's rows, in a variant of their own."""
    for row in headline_rows(bank, media, base):
        if row.score != "retrieval_chance":
            yield dataclasses.replace(row, variant=VARIANT)
