"""What alignment says of sites inside blocks where an intervention leaves computation out: states by hand, rows by
loops over pairs, whatever the kind of intervention."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_alignment_measurement import BASE, evaluator_of, full, key
from test_interventions import parts_of
from test_skipping import DEEP, PLANS, hearing, make, name_of, states
from torch import Tensor

from ima.alignment.reference_pass import Scales
from ima.alignment.rows import alignment_rows
from ima.alignment.streaming.statistics import AlignmentStats
from ima.alignment.tap import Tap
from ima.alignment.views import VARIANTS, Plan
from ima.core.errors import UserError
from ima.core.types import Role, Row, Site
from ima.interventions.base import Intervention, Setting
from ima.interventions.drop import Drop
from ima.interventions.isolate import Isolate
from ima.interventions.merge import Merge
from ima.interventions.parallel import Parallel
from ima.interventions.prune.intervention import Prune
from ima.interventions.skip.auto import SkipAuto
from ima.interventions.skip.engine import Decision, Engine
from ima.interventions.skip.entropy import Entropy
from ima.interventions.skip.exit import Exit
from ima.interventions.skip.plan import Skip
from ima.interventions.stack import stack
from ima.models.llm.acceleration.blocks import accelerate
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.sites import observe
from ima.models.llm.tiny import FAMILY_NAMES
from ima.runs.results import RowWriter

P, Q, A, S0, PAD = (int(role) for role in (Role.PERCEPT, Role.PROMPT, Role.ANSWER, Role.SPECIAL, Role.PAD))
ROLES = torch.tensor(
    [
        [S0, Q, P, P, P, P, Q, A, A],
        [P, P, P, P, Q, A, A, PAD, PAD],
        [S0, Q, P, P, P, P, A, PAD, PAD],
        [P, P, P, P, Q, Q, Q, A, A],
        [P, S0, Q, A, PAD, PAD, PAD, PAD, PAD],
        [Q, Q, A, A, A, PAD, PAD, PAD, PAD],
    ]
)
IDS = ["a", "b", "c", "d", "e", "f"]
SUBSET = IDS[:4]  # that medians, deviations and centres are of
KINDS: dict[str, Callable[[], list[Intervention]]] = {
    "skip ffn": lambda: [Skip("ffn", start=1)],
    "skip attn": lambda: [Skip("attn", ("prompt",), start=1)],
    "skip block": lambda: [Skip("block", ("percept", "prompt"), start=1, every=2)],
    "skip half": lambda: [Skip("block", ("percept", "text"), start=1, ratio=0.5, redraw_per_block=True)],
    "skip hidden": lambda: [Skip("block", ("percept",), start=1, ratio=0.5, select="first", visibility="hidden")],
    "skip all": lambda: [Skip("block", ("all",), start=2)],
    "skip heads": lambda: [Skip("heads", start=1, heads=[1])],
    "two skips": lambda: [Skip("ffn", start=1), Skip("attn", ("prompt", "answer"), start=1, ratio=0.5)],
    "exit context": lambda: [Exit(0)],
    "exit last": lambda: [Exit(1, "last")],
    "exit percept": lambda: [Exit(0, "percept")],
    "entropy": lambda: [Entropy(5.5435, start=1)],  # between what the random model's states give
    "drop": lambda: [Drop(2)],
    "merge": lambda: [Merge(start=1)],
    "parallel": lambda: [Parallel(start=1)],
    "parallel, ln1, and skip": lambda: [Parallel("ln1", start=1), Skip("ffn", start=1)],
    "isolate": lambda: [Isolate(2)],
    "isolate and skip": lambda: [Isolate(2), Skip("block", start=1)],
}  # fmt: skip
Shown = dict[tuple[int, Site], tuple[Tensor, Tensor]]


class Recorder:
    """A sink that keeps everything: x_BSD and seen_BS."""

    def __init__(self) -> None:
        self.shown: Shown = {}

    def begin(self, roles_BS: Tensor, sample_ids: Sequence[str]) -> None:
        self.all_BS = roles_BS != PAD

    def see(self, layer: int, site: Site, x_BSD: Tensor, seen_BS: Tensor | None = None) -> None:
        assert (layer, site) not in self.shown
        self.shown[layer, site] = x_BSD.clone(), self.all_BS if seen_BS is None else seen_BS & self.all_BS

    def end(self) -> None: ...


@torch.no_grad()
def recorded(llm: FrozenLLM, sinks: Sequence[Any], rows: Sequence[int] | None = None) -> None:
    rows = list(range(len(ROLES))) if rows is None else list(rows)
    with Tap(llm, sinks, llm.table.sites) as tap, tap.batch(ROLES[rows], [IDS[row] for row in rows]):
        llm(states(llm, ROLES)[rows], ROLES[rows], [IDS[row] for row in rows])


def sites_by_hand(llm: FrozenLLM, decisions: dict[int, Decision]) -> Shown:
    """Every site of every block: parts run on all tokens by the stock modules, outside of any plan; what the decisions
    leave out is not added to the stream, and not seen."""
    calls: dict[int, dict[str, Any]] = {}
    entering: list[Tensor] = []
    with hearing(llm.table.blocks, calls, entering):
        llm(states(llm, ROLES), ROLES)
    h, out = entering[0], Shown()
    real, none = ROLES != PAD, torch.zeros_like(ROLES, dtype=torch.bool)
    out[0, Site.RESID_POST] = h, real
    for block, layer in enumerate(llm.table.blocks):
        attention_adds, ffn_adds = parts_of(layer)
        decision, kwargs, inside = decisions.get(block, {}), dict(calls[block]), dict[Site, Tensor]()
        mask = kwargs.get("attention_mask")
        mask = torch.ones(1, 1, *[ROLES.shape[1]] * 2, dtype=torch.bool).tril() if mask is None else mask
        kwargs["attention_mask"] = mask & ~decision.get("hidden", none)[:, None, None, :]
        attends = real & ~(decision.get("attn", none) | decision.get("block", none))
        feeds = real & ~(decision.get("ffn", none) | decision.get("block", none))
        parallel = llm.table.family.parallel
        with ExitStack() as looking:
            for site in (Site.LN1, Site.LN2, Site.FC1):
                place = llm.table.place(block, site)
                looking.enter_context(observe(place, partial(inside.__setitem__, site)))
            added = attention_adds(h, lambda module, x, kwargs=kwargs: module(hidden_states=x, **kwargs)[0])
            mid = h + torch.where(attends[..., None], added, 0)
            fed = ffn_adds(h if parallel else mid)
        out[block + 1, Site.RESID_PRE] = h, real
        h = mid + torch.where(feeds[..., None], fed, 0)
        if not parallel:
            out[block + 1, Site.RESID_MID] = mid, real
        out[block + 1, Site.SA], out[block + 1, Site.FC2] = (added, attends), (fed, feeds)
        out[block + 1, Site.RESID_POST], out[block + 1, Site.LN1] = (h, real), (inside[Site.LN1], real)
        for site in (Site.LN2, Site.FC1):
            out[block + 1, site] = inside[site].reshape(*ROLES.shape, -1), feeds
    return out


@pytest.mark.parametrize("plan", [plan for plan in PLANS if plan["part"] != "heads"], ids=name_of)
@pytest.mark.parametrize("family", DEEP)
@torch.no_grad()
def test_a_site_is_of_the_tokens_for_which_it_is_computed_and_the_stream_is_of_all(
    family: str, plan: dict[str, Any]
) -> None:
    llm, recorder = make(family), Recorder()
    with Engine(llm, [Skip(**{"start": 1} | plan)], record=True) as engine:
        recorded(llm, [recorder])
    assert engine.decisions is not None
    expected = sites_by_hand(llm, {block: decision for _, block, decision in engine.decisions})
    assert recorder.shown.keys() == expected.keys()
    for name, (x_BSD, seen_BS) in recorder.shown.items():
        assert torch.equal(seen_BS, expected[name][1]), name
        torch.testing.assert_close(x_BSD[seen_BS], expected[name][0][seen_BS], rtol=1e-4, atol=1e-4, msg=str(name))
    assert any(not torch.equal(seen_BS, ROLES != PAD) for _, seen_BS in recorder.shown.values())


# -- rows by loops over pairs ------------------------------------------------------------------------------------------


class ByHand:
    """Rows from what was shown, by their definitions, in fp64."""

    def __init__(self, shown: Shown) -> None:
        self.shown = {name: (x.double(), seen) for name, (x, seen) in shown.items()}
        self.tokens, self.mean, self.sim = cache(self._tokens), cache(self._mean), cache(self._sim)
        self.limit, self.deviation = cache(self._limit), cache(self._deviation)

    def every(self, name: tuple[int, Site]) -> Tensor:
        """All tokens that scales are of."""
        return torch.cat([self.tokens(name, IDS.index(other), side) for other in SUBSET for side in "PT"])

    def _limit(self, name: tuple[int, Site]) -> float:
        norms = self.every(name).norm(dim=1)
        return 10 * float(norms.sort().values[(len(norms) - 1) // 2]) if len(norms) else -1.0

    def _deviation(self, name: tuple[int, Site]) -> Tensor | None:
        tokens = self.every(name)
        return tokens.std(0, unbiased=False) if len(tokens) else None

    def _tokens(self, name: tuple[int, Site], row: int, role: str, variant: str = "raw") -> Tensor:
        x_BSD, seen_BS = self.shown[name]
        wanted = {"P": (P,), "T": (Q, A), "T.answer": (A,), "T.prompt": (Q,)}[role]
        kept = [place for place in range(ROLES.shape[1]) if int(ROLES[row, place]) in wanted and seen_BS[row, place]]
        if variant == "nosink":
            first = next(place for place in range(ROLES.shape[1]) if int(ROLES[row, place]) != PAD)
            kept = [place for place in kept if place != first]
        if variant == "nomassive":
            kept = [place for place in kept if float(x_BSD[row, place].norm()) <= self.limit(name)]
        return x_BSD[row, kept]

    def _mean(self, name: tuple[int, Site], row: int, role: str, variant: str) -> Tensor | None:
        """None where the example has no such token there."""
        if variant == "update":
            after, before = (self.mean((name[0] - step, name[1]), row, role, "raw") for step in (0, 1))
            return None if after is None or before is None else after - before
        found = self.tokens(name, row, role, variant)
        if not len(found):
            return None
        mean = found.mean(0)
        if variant == "scaled":
            deviation = self.deviation(name)
            return None if deviation is None else mean / deviation
        if variant == "centred":
            others = [self.mean(name, IDS.index(other), role, "raw") for other in SUBSET if other != IDS[row]]
            known = [other for other in others if other is not None]
            return mean - torch.stack(known).mean(0) if known else None
        return mean

    def units(self, name: tuple[int, Site], role: str, variant: str) -> tuple[Tensor, Tensor]:
        """Unit means of all examples, zero where one has none; who has one."""
        means = [self.mean(name, row, role, variant) for row in range(len(IDS))]
        there = torch.tensor([mean is not None for mean in means])
        width = self.shown[name][0].shape[-1]
        stacked = torch.stack([torch.zeros(width).double() if mean is None else mean for mean in means])
        return stacked / stacked.norm(dim=1, keepdim=True).clamp_min(1e-30), there

    def _sim(self, name: tuple[int, Site], role: str, variant: str) -> dict[str, float]:
        (p, has_p), (t, has_t) = self.units(name, "P", variant), self.units(name, role, variant)
        cosines, both, same = p @ t.T, has_p[:, None] & has_t, torch.eye(len(IDS), dtype=torch.bool)
        every, matched, across = (cosines[both & which].mean() for which in (same | ~same, same, ~same))
        return {"sim": float(every), "sim_matched": float(matched), "gap_read": float(matched - across)}

    def cone(self, name: tuple[int, Site], role: str, variant: str) -> float:
        units, has = self.units(name, role, variant)
        both = has[:, None] & has & ~torch.eye(len(IDS), dtype=torch.bool)
        return float((units @ units.T)[both].mean())

    def consecutive(self, layer: int, site: Site, role: str) -> tuple[float, int]:
        """Of the tokens that are there at both layers."""
        if not {(layer, site), (layer + 1, site)} <= self.shown.keys():
            return math.nan, 0
        (x, seen), (y, seen_next) = self.shown[layer, site], self.shown[layer + 1, site]
        wanted = torch.isin(ROLES, torch.tensor({"P": [P], "T": [Q, A]}[role])) & seen & seen_next
        found = torch.cosine_similarity(x[wanted], y[wanted], dim=-1)
        return (float(found.mean()), len(found)) if len(found) else (math.nan, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_every_site_under_every_intervention_are_those_of_a_double_loop(kind: str) -> None:
    llm, recorder, scales = make("llama"), Recorder(), Scales(SUBSET)
    stats = AlignmentStats(llm.num_blocks + 1, plan=Plan(VARIANTS), scales=scales)
    with stack(llm, KINDS[kind]()):
        recorded(llm, [recorder])
        recorded(llm, [scales], range(4))
        for rows in ([5, 2, 0], [4, 1, 3]):
            recorded(llm, [stats], rows)
    hand, num_rows = ByHand(recorder.shown), 0
    for row in alignment_rows(stats, BASE):
        site, layer = Site(row.site) if row.site else None, row.layer_a
        if site is None or layer is None:
            continue
        what, role = (row.score, site.value, row.variant, row.role_a, row.role_b, layer), row.role_b or row.role_a
        there = (layer, site) in recorder.shown
        assert row.value == row.value or row.note, what
        if row.score in ("sim", "sim_matched", "gap_read"):
            value = hand.sim((layer, site), role, row.variant)[row.score] if there else math.nan
        elif row.score == "cone":
            value = hand.cone((layer, site), role, row.variant) if there else math.nan
        elif row.score == "consecutive" and row.layer_b == layer + 1:
            value, num = hand.consecutive(layer, site, role)
            assert row.n == num, what
        elif row.score == "norm_q50":
            found = [hand.tokens((layer, site), index, row.role_a) for index in range(len(IDS))] if there else []
            norms = torch.cat(found).norm(dim=-1) if found else torch.zeros(0)
            assert row.n == len(norms), what
            value = float(norms.sort().values[(len(norms) - 1) // 2]) if len(norms) else math.nan
            assert row.value == pytest.approx(value, rel=0.01, nan_ok=True), what
            continue
        else:
            continue
        num_rows += 1
        assert row.value == pytest.approx(value, abs=2e-4, nan_ok=True), what
    assert num_rows > 300


def test_what_is_skipped_for_a_whole_role_is_absent_and_counts_nobody() -> None:
    llm = make("llama")
    stats = AlignmentStats(llm.num_blocks + 1)
    with stack(llm, [Skip("ffn", start=1)]):
        recorded(llm, [stats])
    rows = [row for row in alignment_rows(stats, BASE) if row.variant == "raw" and row.layer_a in (1, 2, 3)]
    gone = [row for row in rows if row.site in ("ln2", "fc1", "fc2") and row.layer_a > 1 and row.role_a == "P"]
    assert gone and all(math.isnan(row.value) and row.n == 0 and row.note for row in gone)
    rest = [row for row in rows if row.score == "sim" and row not in gone]
    assert rest and not any(math.isnan(row.value) for row in rest)


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("part", ["ffn", "block"])
def test_every_family_says_how_many_tokens_of_each_site_were_computed(family: str, part: str) -> None:
    llm, recorder = make(family), Recorder()
    if llm.table.family.stream_norms:
        pytest.skip("skipping is refused there")
    with stack(llm, [Skip(part, start=1)]):  # type: ignore[arg-type]
        recorded(llm, [recorder])
    for (layer, site), (_, seen_BS) in recorder.shown.items():
        skipped = {"ffn": (Site.LN2, Site.FC1, Site.FC2), "block": (Site.SA, Site.LN2, Site.FC1, Site.FC2)}[part]
        kept = (ROLES != PAD) & (ROLES != P) if site in skipped and layer > 1 else ROLES != PAD
        assert torch.equal(seen_BS, kept), (layer, site)


# -- whole measurements ------------------------------------------------------------------------------------------------


def measured(batch_size: int, plan: list[Intervention], setting: Setting | None = None) -> Any:
    evaluator = evaluator_of(batch_size)
    llm = evaluator.module.llm
    with stack(llm, [one.resolve(llm, setting or Setting()) for one in plan]), accelerate(llm.model):
        _, measurement = evaluator.teacher_forced(evaluator.source.samples("val"), full(num_tsne_layers=0))
    assert measurement is not None
    return [row for row in measurement.rows(BASE, {})[0] if not row.score.startswith("tsne")]


def assert_same(rows: list[Row], others: list[Row]) -> None:
    """Every row has a value or a reason, and the same one in both."""
    assert not [key(row) for row in rows if not math.isfinite(row.value) and not row.note]
    found = {key(row): row for row in others}
    for row in rows:
        loose = 2e-3 if row.score.startswith(("mir", "cka_debiased", "norm")) else 1e-4
        other = found[key(row)]
        assert other.value == pytest.approx(row.value, abs=loose, rel=loose, nan_ok=True), key(row)
        assert other.n == row.n, key(row)


@pytest.mark.parametrize("kind", ["skip ffn", "skip half", "two skips", "exit context", "entropy", "drop", "merge"])
def test_the_full_suite_under_every_intervention_is_the_same_in_any_batches(kind: str) -> None:
    plan = KINDS[kind]()
    assert_same(measured(24, plan), measured(7, plan))


@pytest.mark.parametrize("kind", ["prune", "skip_auto"])
def test_the_full_suite_under_masks_and_chosen_skips_is_the_same_in_any_batches(kind: str, tmp_path: Path) -> None:
    plain = measured(24, [])
    RowWriter(tmp_path / "rows.jsonl").write(plain)
    setting = Setting({"percept": 4, "prompt": 3, "answer": 4}, tmp_path, {"_target_": "ima.models.llm.load.tiny"})
    chosen: Intervention = {"prune": Prune("magnitude", 0.5), "skip_auto": SkipAuto(0.9)}[kind]
    rows = measured(24, [chosen], setting)
    assert_same(rows, measured(7, [chosen], setting))
    before = {key(row): row.value for row in plain}
    changed = [row for row in rows if row.score == "sim" and abs(row.value - before[key(row)]) > 1e-3]
    assert changed and {row.layer_a for row in changed} <= set(range(1, 4)), "the embeddings stay"


def test_positions_that_nobody_accounts_for_are_refused_before_they_are_counted() -> None:
    llm = make("llama")
    module = llm.table.blocks[1].get_submodule("post_attention_layernorm")
    handle = module.register_forward_hook(lambda _module, _args, output: output[:, 1:])
    stats, line = AlignmentStats(llm.num_blocks + 1), "alignment.sites: ln2 at layer 2 has 48 positions of 54"
    try:
        with pytest.raises(UserError, match=line):
            recorded(llm, [stats])
    finally:
        handle.remove()
    assert not any(bool(site.count_LGR.any()) for site in stats.sites.values())
