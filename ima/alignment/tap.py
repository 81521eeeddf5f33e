"""The tap: shows the sinks every hidden state at the chosen layers and sites of each pass, exactly once.

Layer 0 is what enters block 0, layer l the output of block l - 1 (`resid_post`); for the other sites layer l is the
site inside block l - 1. The tap only looks. It must be entered last, after interventions: hooks run in the order in
which they were installed, so that it sees the intervened value.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Protocol

from torch import Tensor

from ima.core.errors import UserError
from ima.core.types import Site
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.sites import Place, observe


class Sink(Protocol):
    """Receives the states of one pass: begin, see (layers in order), end. States are detached views, which stay as
    they are until `end`: do not keep them longer, do not write to them."""

    def begin(self, roles_BS: Tensor, sample_ids: Sequence[str]) -> None: ...

    def see(self, layer: int, site: Site, x_BSD: Tensor) -> None: ...

    def end(self) -> None: ...


class Tap:
    """Context manager over a `FrozenLLM`. Only passes inside `with tap.batch(roles, ids)` are shown to the sinks."""

    def __init__(
        self,
        llm: FrozenLLM,
        sinks: Sequence[Sink],
        sites: Sequence[Site] = (Site.RESID_POST,),
        layers: Sequence[int] | None = None,
    ) -> None:
        self.llm = llm
        self.sinks = list(sinks)
        self.sites = tuple(Site(site) for site in sites)
        last = llm.num_blocks
        self.layers = tuple(range(last + 1)) if layers is None else tuple(sorted(set(layers)))
        if self.layers and not 0 <= self.layers[0] <= self.layers[-1] <= last:
            raise UserError(f"alignment.layers: {list(self.layers)} must lie in 0..{last} ({llm.name})")
        for site in self.sites:
            llm.table.place(0, site)
        self._stack: ExitStack | None = None
        self._open = False
        self._shape: tuple[int, ...] = ()

    def __enter__(self) -> Tap:
        assert self._stack is None, "a tap is entered once"
        table = self.llm.table
        with ExitStack() as stack:
            if 0 in self.layers:
                self._hook(stack, 0, Site.RESID_POST, Place(table.blocks[0], "input"))
            for layer in self.layers:
                for site in self.sites:
                    if layer > 0:
                        self._hook(stack, layer, site, table.place(layer - 1, site))
            self._stack = stack.pop_all()
        return self

    def _hook(self, stack: ExitStack, layer: int, site: Site, place: Place) -> None:
        stack.enter_context(observe(place, lambda x: self._see(layer, site, x)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stack is not None
        self._stack.close()
        self._stack = None

    def _see(self, layer: int, site: Site, x: Tensor) -> None:
        if self._open:
            x_BSD = x.detach().clone() if self.llm.table.written_to else x.detach()
            if x_BSD.dim() == 2:  # OPT flattens its FFN
                x_BSD = x_BSD.view(*self._shape, -1)
            for sink in self.sinks:
                sink.see(layer, site, x_BSD)

    def batch(self, roles_BS: Tensor, sample_ids: Sequence[str]) -> TapBatch:
        return TapBatch(self, roles_BS, sample_ids)


class TapBatch:
    """One pass over whole sequences; an exception inside closes it without `end`, so that nothing is half counted."""

    def __init__(self, tap: Tap, roles_BS: Tensor, sample_ids: Sequence[str]) -> None:
        self.tap = tap
        self.roles_BS = roles_BS
        self.sample_ids = sample_ids

    def __enter__(self) -> None:
        self.tap._open = True
        self.tap._shape = tuple(self.roles_BS.shape)
        for sink in self.tap.sinks:
            sink.begin(self.roles_BS, self.sample_ids)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.tap._open = False
        if kind is None:
            for sink in self.tap.sinks:
                sink.end()
