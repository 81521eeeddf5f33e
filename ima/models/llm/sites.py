"""The sites of one model, checked against the running model when it is loaded.

`SiteTable` tells for every block and site which module to hook and whether the site is its input or its output, from
the record of the model's family. `check_sites` runs the model once on a few random embeddings and makes sure that the
sites add up to the block's own output, so that a new transformers version which moves things is refused instead of
measured wrongly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ima.core.errors import UserError
from ima.core.types import Site
from ima.models.llm.families import Side, family_of


@dataclasses.dataclass(frozen=True)
class Place:
    module: nn.Module
    side: Side


class SiteTable:
    """The sites of one model. `blocks[b]` is the b-th block; `place(b, site)` the module and side that show a site."""

    def __init__(self, model: Any) -> None:
        self.family = family_of(model.config)
        self.model_type: str = model.config.model_type
        self.written_to = False  # whether some module writes to a site's tensor after the site was computed
        self.blocks = block_list(model)

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(self.family.sites)

    def place(self, block: int, site: Site) -> Place:
        """Raises UserError for a site that the family lacks."""
        if site not in self.family.sites:
            have = ", ".join(self.sites)
            raise UserError(f"alignment.sites: {self.model_type} blocks have no site {site.value!r}; they have: {have}")
        name, side = self.family.sites[site]
        return Place(self.blocks[block].get_submodule(name), side)


def block_list(model: Any) -> nn.ModuleList:
    """The decoder blocks: the longest ModuleList with one entry per hidden layer."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    fitting = [blocks for blocks in lists if len(blocks) == model.config.num_hidden_layers]
    if not fitting:
        raise UserError(f"llm: found no list of {model.config.num_hidden_layers} blocks in {type(model).__name__}")
    return fitting[0]


Observer = Callable[[Tensor], None]


def first_tensor(value: object) -> Tensor:
    """Modules return a tensor or a tuple that starts with it (attention: output and weights)."""
    found = value[0] if isinstance(value, tuple) else value
    assert isinstance(found, Tensor)
    return found


def version_of(x: Tensor) -> int:
    """Counts what was written to the tensor; inference tensors do not tell."""
    return 0 if x.is_inference() else x._version


class Look:
    """A hook that shows one side of a module to `see` and changes nothing: what computes the module's values in its
    stead (`ima.models.llm.acceleration.blocks`) may call `see` itself."""

    def __init__(self, side: Side, see: Observer) -> None:
        self.side, self.see = side, see

    def __call__(self, _module: nn.Module, args: tuple[object, ...], last: Any) -> None:
        """`last`: keyword arguments of an input, value of an output."""
        if self.side == "output":
            self.see(first_tensor(last))
        else:
            self.see(first_tensor(args[0] if args else last["hidden_states"]))


@contextmanager
def observe(place: Place, see: Observer, first: bool = False) -> Iterator[None]:
    """Call `see(tensor)` each time the site is computed; the tensor is not changed. Removed on leaving. first: an input
    as it comes, before what others make of it for this module."""
    look = Look(place.side, see)
    if place.side == "input":
        handle = place.module.register_forward_pre_hook(look, with_kwargs=True, prepend=first)
    else:
        handle = place.module.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def check_sites(model: Any, table: SiteTable) -> None:
    """Run 2x5 random embeddings and recompose every block: resid_pre + sa = resid_mid, resid_mid + fc2 = resid_post
    (each sum normed where the family norms the stream). Notices in `table.written_to` whether tensors stay as they are.

    Raises UserError naming block and site where they do not add up (tolerance 2 % of the norm: bf16 rounding passes,
    a wrong module does not).
    """
    weight = model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, weight.shape[0], (2, 5), generator=generator).to(weight.device)
    seen: dict[tuple[int, Site], Tensor] = {}
    versions: list[tuple[Tensor, int]] = []

    def keep(block: int, site: Site) -> Observer:
        def see(x: Tensor) -> None:
            versions.append((x, version_of(x)))
            if site in wanted:
                seen[block, site] = x.to(torch.float32, copy=True).reshape(10, -1)

        return see

    wanted = [Site.RESID_PRE, Site.SA, Site.FC2, Site.RESID_POST]
    if not table.family.parallel:
        wanted.append(Site.RESID_MID)
    with ExitStack() as stack:
        for block in range(len(table.blocks)):
            for site in table.sites:
                stack.enter_context(observe(table.place(block, site), keep(block, site)))
        embeds = model.get_input_embeddings()(ids)
        model.base_model(inputs_embeds=embeds, attention_mask=torch.ones_like(ids), use_cache=False)
    table.written_to = any(version_of(x) != version for x, version in versions)
    for block in range(len(table.blocks)):
        pre, sa, fc2, post = (seen[block, site] for site in wanted[:4])
        sums = [(pre + sa + fc2, post, Site.RESID_POST)]
        if not table.family.parallel:
            mid = seen[block, Site.RESID_MID]
            sums = [(pre + sa, mid, Site.RESID_MID), (mid + fc2, post, Site.RESID_POST)]
        for index, name in enumerate(table.family.stream_norms):
            norm = table.blocks[block].get_submodule(name)
            whole, *rest = sums[index]
            sums[index] = (norm(whole.to(model.dtype)).float(), *rest)
        for whole, part, site in sums:
            error = (whole - part).norm() / part.norm().clamp_min(1e-12)
            if model.dtype == torch.float16 and not bool(part.isfinite().all()):
                raise UserError(
                    f"llm.dtype: float16 ends at 65504, and values of block {block} ({site.value}) are beyond it; use "
                    "bfloat16 or float32"
                )
            if not error <= 0.02:
                raise UserError(
                    f"llm: the site table of {table.model_type} does not fit this transformers version: block {block}, "
                    f"{site.value} is off by {error:.1%}"
                )


def final_norm(model: Any) -> nn.Module:
    """The norm between the last block of a causal LM and its head."""
    base = model.base_model
    for holder in (base, getattr(base, "decoder", None), getattr(base, "language_model", None)):
        for name in ("norm", "final_layer_norm", "ln_f"):
            found = getattr(holder, name, None)
            if isinstance(found, nn.Module):
                return found
    raise UserError(f"llm: {type(model).__name__} has no norm before its head that is known, which a logit lens needs")
