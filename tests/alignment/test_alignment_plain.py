"""The fast streaming statistics agree with their plain definition, whatever they are shown and however it is split."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from alignment_states import NUM_LAYERS, examples, feed
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ima.alignment.reference_pass import Scales
from ima.alignment.rows import alignment_rows
from ima.alignment.streaming.plain import PlainStats
from ima.alignment.streaming.site_stats import SiteStats
from ima.alignment.streaming.statistics import AlignmentStats
from ima.alignment.views import SCALED_VARIANTS, VARIANTS, Plan
from ima.core.types import Role, Site

ORDER = (Site.RESID_PRE, Site.LN1, Site.SA, Site.RESID_MID, Site.LN2, Site.FC1, Site.FC2, Site.RESID_POST)
PARTIAL = (Site.SA, Site.LN2, Site.FC1, Site.FC2)  # a skip may leave some tokens out there; the stream is of all
WIDTH = 6
Sink = AlignmentStats | PlainStats | Scales


@dataclasses.dataclass
class World:
    """Everything that is drawn. An example is its roles_S and its state and seen_S at each layer and site."""

    seed: int
    num_examples: int
    num_layers: int
    layers: list[int]
    sites: list[Site]
    roles: list[Role]
    variants: tuple[str, ...]
    dtype: torch.dtype
    consecutive: bool
    padding: str
    share_inputs: float  # how often what enters a block is the very tensor that the block before put out
    partial: float  # how often a site is of some tokens only

    def __post_init__(self) -> None:
        rng, generator = random.Random(self.seed), torch.Generator().manual_seed(self.seed)
        self.names = [f"{self.seed}/{index}" for index in range(self.num_examples)]
        self.roles_S = [torch.tensor(rng.choices(self.roles, k=rng.randint(1, 7))) for _ in self.names]
        self.keys = [(layer, site) for layer in self.layers for site in self.sites]
        self.keys = [(layer, site) for layer, site in self.keys if layer > 0 or site is Site.RESID_POST]
        self.is_partial = {key: key[1] in PARTIAL and rng.random() < self.partial for key in self.keys}
        self.is_shared = {
            (layer, site): site is Site.RESID_PRE
            and (layer - 1, Site.RESID_POST) in self.keys
            and rng.random() < self.share_inputs
            for layer, site in self.keys
        }
        self.states: dict[tuple[int, Site], list[Tensor]] = {}
        self.seen: dict[tuple[int, Site], list[Tensor]] = {}
        for layer, site in self.keys:
            width = WIDTH * (2 if site is Site.FC1 else 1)
            shift_D = torch.randn(width, generator=generator)
            made = []
            for roles_S in self.roles_S:
                x_SD = torch.randn(len(roles_S), width, generator=generator) + shift_D
                x_SD *= torch.tensor(rng.choices([1.0, 0.0, 60.0], weights=[8, 1, 1], k=len(x_SD)))[:, None]
                made.append(x_SD.to(self.dtype))
            self.states[layer, site] = made
            self.seen[layer, site] = [torch.rand(len(x_SD), generator=generator) < 0.6 for x_SD in made]

    def batches(self, size: int) -> list[list[int]]:
        order = list(range(self.num_examples))
        random.Random(self.seed + size).shuffle(order)
        return [order[start : start + size] for start in range(0, len(order), size)]

    def show(self, sink: Sink, chosen: list[int]) -> None:
        """One pass over these examples, padded; what stands at pads and at tokens that were left out is no state."""
        rng = random.Random(self.seed + sum(chosen))
        length = max(len(self.roles_S[index]) for index in chosen) + rng.randint(0, 2)
        spans = []
        for index in chosen:
            free = length - len(self.roles_S[index])
            start = {"left": free, "right": 0, "both": rng.randint(0, free)}[self.padding]
            spans.append(slice(start, length - free + start))
        roles_BS = torch.full((len(chosen), length), int(Role.PAD))
        for row, (index, span) in enumerate(zip(chosen, spans, strict=True)):
            roles_BS[row, span] = self.roles_S[index]
        sink.begin(roles_BS, [self.names[index] for index in chosen])
        last_output = None
        for layer, site in self.keys:
            x_BSD = torch.full((len(chosen), length, self.states[layer, site][0].shape[-1]), 900.0, dtype=self.dtype)
            seen_BS = torch.zeros(len(chosen), length, dtype=torch.bool)
            for row, (index, span) in enumerate(zip(chosen, spans, strict=True)):
                x_BSD[row, span], seen_BS[row, span] = self.states[layer, site][index], self.seen[layer, site][index]
            if self.is_shared[layer, site]:
                x_BSD = last_output
            if site is Site.RESID_POST:
                last_output = x_BSD
            sink.see(layer, site, x_BSD, *([seen_BS] if self.is_partial[layer, site] else []))
        sink.end()

    def scales(self) -> Scales | None:
        if not any(variant in SCALED_VARIANTS for variant in self.variants):
            return None
        subset = list(range(0, self.num_examples, 2))
        scales = Scales([self.names[index] for index in subset])
        self.show(scales, subset)
        return scales


def some(items: tuple, least: int = 0, most: int = 99) -> st.SearchStrategy[list]:
    found = st.lists(st.sampled_from(items), min_size=least, max_size=most, unique=True)
    return found.map(lambda chosen: sorted(chosen, key=items.index))


@st.composite
def worlds(draw: st.DrawFn) -> World:
    num_layers = draw(st.sampled_from([1, 3, 10]))
    return World(
        seed=draw(st.integers(0, 10**6)),
        num_examples=draw(st.integers(1, 6)),
        num_layers=num_layers,
        layers=draw(st.one_of(st.just(list(range(num_layers))), some(tuple(range(num_layers)), least=1))),
        sites=draw(st.one_of(st.just([Site.RESID_PRE, Site.RESID_POST]), some(ORDER, least=1, most=3))),
        roles=draw(st.one_of(st.just(list(Role)), some(tuple(Role), least=1))),
        variants=tuple(draw(st.one_of(st.just(list(VARIANTS)), some(VARIANTS)))),
        dtype=draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])),
        consecutive=draw(st.booleans()),
        padding=draw(st.sampled_from(["left", "right", "both"])),
        share_inputs=draw(st.sampled_from([0.0, 0.7, 1.0])),
        partial=draw(st.sampled_from([0.0, 0.5, 1.0])),
    )


def assert_same(found: SiteStats, plain: SiteStats) -> None:
    expected = plain.tensors()
    assert found.tensors().keys() == expected.keys()
    for name, value in found.tensors().items():
        if name == "norm_hist_LRH":  # a norm on the border of two bins may fall into either, once per view it is in
            assert torch.equal(value.sum(-1), expected[name].sum(-1))
            assert int((value - expected[name]).cumsum(-1).abs().sum()) <= 2 + int(value.sum()) // 200
        else:
            torch.testing.assert_close(value.double(), expected[name], atol=1e-5, rtol=1e-5, msg=name)


@settings(
    max_examples=30,  # no shrinking: it takes minutes, and the drawn world says enough
    phases=(Phase.generate,),
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(world=worlds(), fast_size=st.integers(1, 6), plain_size=st.integers(1, 6), num_threads=st.sampled_from([1, 2]))
def test_fast_statistics_are_the_plain_ones(world: World, fast_size: int, plain_size: int, num_threads: int) -> None:
    plan, scales, threads = Plan(world.variants), world.scales(), torch.get_num_threads()
    kind = world.num_layers, world.consecutive, plan, scales
    # The batches of two ranks, of which one may have none.
    ranks, plain = (AlignmentStats(*kind), AlignmentStats(*kind)), PlainStats(*kind)
    torch.set_num_threads(num_threads)
    try:
        for index, chosen in enumerate(world.batches(fast_size)):
            world.show(ranks[index % 2], chosen)
    finally:
        torch.set_num_threads(threads)
    for chosen in world.batches(plain_size):
        world.show(plain, chosen)
    found = ranks[0].sites
    for site, stats in ranks[1].sites.items():
        found[site].add_(stats)
    assert found.keys() == plain.sites.keys()
    for site, stats in plain.sites.items():
        assert_same(found[site], stats)


def test_scores_read_either_and_say_the_same() -> None:
    made, sites = examples(12), (Site.RESID_POST, Site.SA)
    scales = Scales([name for name, _, _ in made[:9]])
    feed(scales, made[:9], 4, sites=sites)
    rows = []
    for kind in (AlignmentStats, PlainStats):
        stats = kind(NUM_LAYERS, plan=Plan(VARIANTS), scales=scales)
        feed(stats, made, 7, sites=sites)
        rows.append(list(alignment_rows(stats, {"run": "r"})))
    assert len(rows[0]) == len(rows[1]) > 300
    for one, two in zip(*rows, strict=True):
        loose = pytest.approx
        assert one.value == loose(two.value, abs=1e-5, rel=1e-5, nan_ok=True), one
        assert one.se == (two.se if two.se is None else loose(two.se, abs=1e-5, rel=1e-4, nan_ok=True)), one
        assert dataclasses.replace(one, value=0.0, se=None) == dataclasses.replace(two, value=0.0, se=None)
