"""The tap: shows the sinks every hidden state at the chosen layers and sites of each pass, exactly once.

Layer 0 is what enters block 0, layer l the output of block l - 1 (`resid_post`); for the other sites layer l is the
site inside block l - 1. The tap only looks. It must be entered last, after interventions: hooks run in the order in
which they were installed, so that it sees the intervened value.

Where computation is left out, a site is of the tokens for which it was computed. `resid_pre`, `resid_mid` and
`resid_post` are the residual stream, which goes by whatever is skipped: they are of all tokens (`resid_mid` is the
stream behind attention, also where an intervention gives the FFN something else to read). `ln1` is of all: keys are
made from it. `sa` is of the tokens whose attention runs, `ln2`, `fc1` and `fc2` of those whose FFN runs. A block that
is dropped has no inside: nothing is shown between its input and its output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Protocol

from torch import Tensor

from ima.core.errors import UserError
from ima.core.types import Site
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.pass_context import Taken
from ima.models.llm.sites import Place, observe


class Sink(Protocol):
    """Receives the states of one pass: begin, see (layers in order), end. States are detached views, which stay as
    they are until `end`: do not keep them longer, do not write to them. seen_BS: the positions for which the site was
    computed, where that is not all (at the others x is no state and must not count)."""

    def begin(self, roles_BS: Tensor, sample_ids: Sequence[str]) -> None: ...

    def see(self, layer: int, site: Site, x_BSD: Tensor, seen_BS: Tensor | None = None) -> None: ...

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
        stream = site is Site.RESID_MID  # as it is, not what is taken of it for the FFN
        stack.enter_context(observe(place, lambda x: self._see(layer, site, x), first=stream))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stack is not None
        self._stack.close()
        self._stack = None

    def _see(self, layer: int, site: Site, x: Tensor) -> None:
        running = self.llm.running
        if self._open and not (running is not None and running.silent):
            taken = running.taken.get((layer - 1, site)) if running is not None else None
            x_BSD = self._placed(layer, site, x.detach(), taken)
            if self.llm.table.written_to and x_BSD.data_ptr() == x.data_ptr():
                x_BSD = x_BSD.clone()
            seen = () if taken is None else (taken.wanted_BS,)
            for sink in self.sinks:
                sink.see(layer, site, x_BSD, *seen)

    def _placed(self, layer: int, site: Site, x: Tensor, taken: Taken | None) -> Tensor:
        """x_BSD of what a module is given or gives: OPT flattens its FFN, a skip takes some rows. Raises UserError
        where positions are missing and nobody says which: an index into them would be of other tokens, or of none."""
        batch, length = self._shape
        num = math.prod(x.shape[:-1])
        if num == batch * length:
            return x.reshape(batch, length, -1)
        if taken is not None and num == taken.num_given:
            return taken.put(x)
        raise UserError(
            f"alignment.sites: {site.value} at layer {layer} has {num} positions of {batch * length}; an intervention "
            "takes tokens out there without saying which (FrozenLLM.running.taken): leave the site out"
        )

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
