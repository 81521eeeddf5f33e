"""The roles of every pass of decoding: the prompt's first, GENERATED from then on. Hides beams and padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

from ima.core.types import Role
from ima.models.llm.pass_context import PassContext


class Runs(Protocol):
    """What a `FrozenLLM` offers for this. running: the pass that runs now."""

    model: Any
    running: PassContext | None


@contextmanager
def told_roles(
    llm: Runs,
    roles_BS: Tensor,
    sample_ids: tuple[str, ...] | None,
    module: nn.Module | None = None,
    look: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Iterator[None]:
    """The first pass inside sees the prompt, repeated for beams; every later one sees GENERATED tokens. Passes are
    counted, since lengths do not tell a prompt of one token from a decoding step. module: whose passes they are,
    where it is not the whole model; look: the prompt's roles once its embeddings are known."""
    num_past = 0
    num_real_B = (roles_BS != Role.PAD).sum(1)
    history: dict[Any, Any] = {}

    def before_pass(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal num_past
        x = kwargs.get("inputs_embeds")
        num_rows, length = (kwargs["input_ids"] if x is None else x).shape[:2]  # always named by `generate`
        times = num_rows // roles_BS.shape[0]
        if num_past == 0:
            assert length == roles_BS.shape[1], "the first pass of decoding is over the whole prompt"
            roles = roles_BS.repeat_interleave(times, dim=0)
            roles = look(x, roles) if look is not None and x is not None else roles
        else:
            roles = roles_BS.new_full((num_rows, length), int(Role.GENERATED))
        ids = None if sample_ids is None else tuple(name for name in sample_ids for _ in range(times))
        seen_B = num_real_B.repeat_interleave(times) + num_past - roles_BS.shape[1] if num_past else None
        llm.running = PassContext(roles, ids, num_past, seen_B, history=history)
        num_past += length

    before, llm.running = llm.running, PassContext(roles_BS, sample_ids)
    handle = (module or llm.model).register_forward_pre_hook(before_pass, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
        llm.running = before
