"""Where the common sites live in each LLM family: one table, checked against the running model at load.

A family is described by the names of its modules only; no forward pass is ever copied. `SiteTable` tells for every
block and site which module to hook and whether the site is its input or its output. `check_sites` runs the model once
on a few random embeddings and makes sure that the sites add up to the block's own output, so that a new transformers
version which moves things is refused instead of measured wrongly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ima.core.errors import UserError
from ima.core.types import Site

Side = Literal["input", "output"]
Places = Mapping[Site, tuple[str, Side]]


@dataclasses.dataclass(frozen=True)
class Family:
    """Module names of one block, relative to it ("" is the block). `parallel`: attention and FFN read the same input
    and both are added to the residual, so that there is no resid_mid. `stream_norms`: the norms that the stream itself
    goes through after attention and after the FFN has been added; empty where nothing but sums changes it."""

    places: Places
    parallel: bool = False
    stream_norms: tuple[str, ...] = ()


def family(sa: str, resid_mid: str | None, ln1: str | None, ln2: str | None, fc1: str, fc2: str) -> Places:
    places: dict[Site, tuple[str, Side]] = {Site.RESID_PRE: ("", "input")}
    if ln1:
        places[Site.LN1] = (ln1, "output")
    places[Site.SA] = (sa, "output")
    if resid_mid:
        places[Site.RESID_MID] = (resid_mid, "input")
    if ln2:
        places[Site.LN2] = (ln2, "output")
    places |= {Site.FC1: (fc1, "input"), Site.FC2: (fc2, "output"), Site.RESID_POST: ("", "output")}
    return places


PRE_NORM = Family(
    family(
        "self_attn", "post_attention_layernorm", "input_layernorm", "post_attention_layernorm", "mlp.down_proj", "mlp"
    ),
)
# Sandwich norms: what is added to the residual is the norm's output, so that is `sa` and `fc2`.
SANDWICH = Family(
    family(
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "input_layernorm",
        "pre_feedforward_layernorm",
        "mlp.down_proj",
        "post_feedforward_layernorm",
    ),
)
POST_NORM = Family(
    family("post_attention_layernorm", "mlp", None, None, "mlp.down_proj", "post_feedforward_layernorm"),
)
OPT = Family(
    family("self_attn", "final_layer_norm", "self_attn_layer_norm", "final_layer_norm", "fc2", "fc2"),
)
# opt-350m norms each sum: resid_mid = norm(resid_pre + sa), resid_post = norm(resid_mid + fc2). What enters attention
# and FFN is the stream itself, so there is no ln1 and no ln2.
OPT_NORMED_STREAM = Family(
    {
        Site.RESID_PRE: ("", "input"),
        Site.SA: ("self_attn", "output"),
        Site.RESID_MID: ("self_attn_layer_norm", "output"),
        Site.FC1: ("fc2", "input"),
        Site.FC2: ("fc2", "output"),
        Site.RESID_POST: ("", "output"),
    },
    stream_norms=("self_attn_layer_norm", "final_layer_norm"),
)
NEOX_PARALLEL = Family(
    family("attention", None, "input_layernorm", "post_attention_layernorm", "mlp.dense_4h_to_h", "mlp"),
    parallel=True,
)
NEOX_SERIAL = Family(
    family(
        "attention",
        "post_attention_layernorm",
        "input_layernorm",
        "post_attention_layernorm",
        "mlp.dense_4h_to_h",
        "mlp",
    ),
)

FAMILIES: dict[str, Family] = {
    "llama": PRE_NORM,
    "mistral": PRE_NORM,
    "qwen2": PRE_NORM,
    "qwen2_vl_text": PRE_NORM,
    "qwen2_5_vl_text": PRE_NORM,
    "qwen3": PRE_NORM,
    "phi3": PRE_NORM,
    "smollm3": PRE_NORM,
    "gemma3_text": SANDWICH,
    "olmo2": POST_NORM,
    "opt": OPT,
    "gpt_neox": NEOX_PARALLEL,
}


@dataclasses.dataclass(frozen=True)
class Place:
    module: nn.Module
    side: Side


class SiteTable:
    """The sites of one model. `blocks[b]` is the b-th block; `place(b, site)` the module and side that show a site."""

    def __init__(self, model: Any) -> None:
        kind = model.config.model_type
        if kind not in FAMILIES:
            raise UserError(f"llm: no site table for model type {kind!r}; known: {', '.join(sorted(FAMILIES))}")
        chosen = FAMILIES[kind]
        if kind == "gpt_neox" and not model.config.use_parallel_residual:
            chosen = NEOX_SERIAL
        if kind == "opt" and not model.config.do_layer_norm_before:
            chosen = OPT_NORMED_STREAM
        self.family = chosen
        self.model_type = kind
        self.written_to = False  # whether some module writes to a site's tensor after the site was computed
        self.blocks = block_list(model)

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(self.family.places)

    def place(self, block: int, site: Site) -> Place:
        """Raises UserError for a site that the family lacks."""
        if site not in self.family.places:
            have = ", ".join(self.sites)
            raise UserError(f"alignment.sites: {self.model_type} blocks have no site {site.value!r}; they have: {have}")
        name, side = self.family.places[site]
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
            if not error <= 0.02:
                raise UserError(
                    f"llm: the site table of {table.model_type} does not fit this transformers version: block {block}, "
                    f"{site.value} is off by {error:.1%}"
                )
