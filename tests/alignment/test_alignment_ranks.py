"""Given the same states, two gloo ranks give what one process gives, also where one has no sample at all."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from alignment_states import NUM_LAYERS, examples, feed
from test_alignment_variants import subset_of

from ima.alignment.reference_pass import Scales
from ima.alignment.reservoir import Reservoir, Tokens
from ima.alignment.reservoir_rows import reservoir_rows
from ima.alignment.rows import alignment_rows, example_lines
from ima.alignment.streaming.statistics import AlignmentStats
from ima.alignment.views import VARIANTS, Plan
from ima.core.types import Site

SITES = (Site.RESID_POST, Site.SA)


def measure(mine, every, batch_size):
    """Rows of this rank's share, `mine`, of `every` example."""
    subset = {name for name, _, _ in subset_of(every)}
    scales = Scales(sorted(subset))
    feed(scales, [example for example in mine if example[0] in subset], batch_size, sites=SITES)
    scales.reduce()
    stats = AlignmentStats(NUM_LAYERS, plan=Plan(VARIANTS), scales=scales, examples=True)
    reservoir = Reservoir(8, (0, 2))
    for sink in (stats, reservoir):
        feed(sink, mine, batch_size, sites=SITES)
        sink.reduce()
    assert {line["id"] for line in example_lines(stats)} == {name for name, _, _ in every}
    rows = [*alignment_rows(stats, {"run": "r"}), *reservoir_rows(Tokens(reservoir, scales), {"run": "r"})]
    return [(row.score, row.site, row.variant, row.role_a, row.role_b, row.layer_a, row.layer_b, row.n, row.value,
             row.se) for row in rows]  # fmt: skip


def on_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    every = examples()
    shared = measure(every[rank::2], every, 3)
    lonely = measure(every if rank == 1 else [], every, 7)
    torch.save({"shared": shared, "lonely": lonely}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(on_rank, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("share", ["shared", "lonely"])
def test_two_ranks_have_the_rows_of_one_process_on_both(ranks, share):
    every = examples()
    alone = measure(every, every, 20)
    for found in ranks:
        assert len(found[share]) == len(alone) > 300
        for mine, theirs in zip(found[share], alone, strict=True):
            assert mine[:8] == theirs[:8]
            for one, two in zip(mine[8:], theirs[8:], strict=True):
                expected = two if two is None else pytest.approx(two, abs=1e-5, rel=1e-4, nan_ok=True)
                assert one == expected, mine[:8]
