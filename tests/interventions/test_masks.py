"""Mask files and algebra, and the choice of what is pruned: numbers exact, ties by place, overlap beside chance."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ima.core.errors import UserError
from ima.interventions.prune import select, select_on_device
from ima.interventions.prune.compare import density_by_chance, overlap, overlaps
from ima.interventions.prune.mask import Mask, intersection, place_of, union
from ima.interventions.prune.recipe import Recipe
from ima.interventions.prune.select import (
    keep,
    keep_by,
    keep_global,
    keep_number,
    keep_pattern,
    num_pruned,
    ranks,
    shares,
)

SHAPES = {
    "model.layers.0.self_attn.q_proj": (6, 10),
    "model.layers.0.mlp.up_proj": (9, 7),
    "model.layers.1.self_attn.q_proj": (6, 10),
    "model.layers.1.mlp.up_proj": (9, 7),
}


def random_mask(density: float, seed: int, shapes: dict[str, tuple[int, int]] = SHAPES) -> Mask:
    generator = np.random.default_rng(seed)
    return Mask.of({path: generator.random(shape) < density for path, shape in shapes.items()}, {"llm": "tiny"})


# -- what is pruned --------------------------------------------------------------------------------------------------


def test_wanda_by_row_on_two_by_three_is_what_a_hand_computes() -> None:
    # |W| * norm: row 0: 1*4, 2*1, 3*1 = 4, 2, 3; row 1: 0.5*4, 6*1, 1*1 = 2, 6, 1
    weight = torch.tensor([[1.0, -2.0, 3.0], [-0.5, 6.0, 1.0]])
    score = weight.abs() * torch.tensor([4.0, 1.0, 1.0])
    assert keep_by("row", score, 1 / 3).tolist() == [[True, False, True], [True, True, False]]
    assert keep_by("row", score, 2 / 3).tolist() == [[True, False, False], [False, True, False]]
    assert keep_by("matrix", score, 1 / 3).tolist() == [[True, False, True], [True, True, False]]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 12), st.floats(0, 1), st.integers(0, 2**31))
def test_every_row_prunes_exactly_its_lowest_and_ties_fall_from_the_left(
    rows: int, length: int, ratio: float, seed: int
) -> None:
    score = torch.randint(0, 4, (rows, length), generator=torch.Generator().manual_seed(seed)).float()
    kept = keep_by("row", score, ratio)
    num = num_pruned(length, ratio)
    for row in range(rows):
        order = sorted(range(length), key=lambda column: (float(score[row, column]), column))
        assert np.flatnonzero(~kept[row]).tolist() == sorted(order[:num])
    assert np.array_equal(ranks(score) >= num, kept)


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_a_pattern_prunes_the_lowest_n_of_each_m_neighbours(pattern: str) -> None:
    n, m = map(int, pattern.split(":"))
    score = torch.randint(0, 5, (6, 16), generator=torch.Generator().manual_seed(0)).float()
    kept = keep_pattern(score, pattern).reshape(-1, m)
    for group, found in zip(score.reshape(-1, m).tolist(), kept, strict=True):
        order = sorted(range(m), key=lambda place: (group[place], place))
        assert np.flatnonzero(~found).tolist() == sorted(order[:n])
    with pytest.raises(UserError, match=f"pattern: {pattern} needs rows of a multiple of {m}"):
        keep_pattern(torch.rand(2, 3), pattern)


@pytest.mark.parametrize("num", [0, 1, 17, 100, 245, 246])
def test_a_global_threshold_found_by_digits_is_that_of_one_long_sorted_list(num: int) -> None:
    generator = torch.Generator().manual_seed(3)
    scores = {path: (torch.rand(shape, generator=generator) * 20).round() for path, shape in SHAPES.items()}
    kept = dict(keep_global(scores.__getitem__, SHAPES, num))
    flat = torch.cat([score.reshape(-1) for score in scores.values()])
    expected = keep(flat[None], num)[0]
    assert np.array_equal(np.concatenate([each.reshape(-1) for each in kept.values()]), expected)


@pytest.mark.parametrize("num", [0, 5, 26, 60])
def test_a_given_number_is_met_exactly_and_spread_evenly_over_rows(num: int) -> None:
    score = torch.rand(6, 10, generator=torch.Generator().manual_seed(0))
    by_row = (~keep_number("row", score, num)).sum(1)
    assert by_row.sum() == num and by_row.max() - by_row.min() <= 1
    assert (~keep_number("matrix", score, num)).sum() == num


def test_shares_add_up_and_follow_the_sizes() -> None:
    found = shares(SHAPES, 101)
    assert sum(found.values()) == 101
    for path, shape in SHAPES.items():
        assert abs(found[path] - 101 * math.prod(shape) / 246) < 1


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UserError, match="not all finite"):
        keep_by("row", torch.tensor([[1.0, math.nan]]), 0.5)


# -- algebra and files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["all different", "few values", "all equal", "zeros of both signs"])
def test_masks_chosen_on_a_device_are_those_of_numpy_bit_for_bit_ties_included(kind: str) -> None:
    g = torch.Generator().manual_seed(3)
    score = {
        "all different": torch.rand(7, 24, generator=g),
        "few values": torch.randint(0, 3, (7, 24), generator=g).float(),
        "all equal": torch.ones(7, 24),
        "zeros of both signs": torch.where(torch.rand(7, 24, generator=g) < 0.5, -0.0, 0.0),
    }[kind]
    clean = select.checked(score)
    assert torch.equal(select_on_device.ranks(clean), ranks(score))
    for num in (0, 1, 11, 23, 24):
        by_row = (np.arange(7) * 5 + num) % 25  # also another number in each row
        for nums in (np.full(7, num), by_row):
            assert torch.equal(select_on_device.keep(clean, torch.from_numpy(nums)), keep(score, nums))
            order = sorted((float(value), place) for place, value in enumerate(clean[0].tolist()))
            out = {place for _, place in order[: int(nums[0])]}
            assert keep(score, nums)[0].tolist() == [place not in out for place in range(24)]
    for n, m in ((2, 4), (4, 8)):
        assert torch.equal(select_on_device.keep_pattern(clean, n, m), keep_pattern(score, f"{n}:{m}"))


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 16), (1, 9)])
def test_bits_packed_on_a_device_are_those_of_numpy(shape: tuple[int, int]) -> None:
    kept = torch.rand(shape, generator=torch.Generator().manual_seed(5)) < 0.5
    bits = np.packbits(kept.numpy())
    assert select_on_device.pack(kept).tolist() == bits.tolist() == select.pack(kept).tolist()
    on_device = select_on_device.unpack(torch.from_numpy(bits), kept.numel()).reshape(shape)
    assert torch.equal(on_device, kept) and torch.equal(select.unpack(bits, shape, torch.device("cpu")), kept)


def test_algebra_is_that_of_bool_arrays() -> None:
    a, b = random_mask(0.6, 1), random_mask(0.4, 2)
    for path in SHAPES:
        x, y = a.kept(path), b.kept(path)
        assert np.array_equal((a & b).kept(path), x & y)
        assert np.array_equal((a | b).kept(path), x | y)
        assert np.array_equal((a - b).kept(path), x & ~y)
        assert np.array_equal((~a).kept(path), ~x)
    assert (~~a) == a and (~a).num_kept == a.num_weights - a.num_kept
    assert intersection([a, b, ~a]).num_kept == 0 and union([a, ~a]).density == 1


def test_density_is_counted_per_matrix_block_kind_and_part() -> None:
    mask = random_mask(0.5, 3)
    kept = {path: mask.kept(path) for path in SHAPES}
    assert mask.num_kept == sum(int(each.sum()) for each in kept.values())
    assert (
        mask.densities("block")["1"] == np.concatenate([each.ravel() for p, each in kept.items() if ".1." in p]).mean()
    )
    assert set(mask.densities("part")) == {"attn", "ffn"}
    assert set(mask.densities("kind")) == {"self_attn.q_proj", "mlp.up_proj"} and len(mask.densities()) == 4
    place = place_of("gpt_neox.layers.11.attention.query_key_value")
    assert (place.block, place.kind, place.part) == (11, "attention.query_key_value", "attn")


def test_a_file_gives_back_bits_and_facts(tmp_path: Path) -> None:
    mask = random_mask(0.5, 4)
    mask.save(tmp_path / "m.safetensors")
    found = Mask.load(tmp_path / "m.safetensors")
    assert found == mask and found.facts == mask.facts and isinstance(next(iter(found.bits.values())), np.memmap)


def test_a_file_has_at_most_1_02_bits_a_weight_beside_its_header(tmp_path: Path) -> None:
    mask = random_mask(0.5, 5, {f"model.layers.{i}.mlp.up_proj": (64, 48) for i in range(4)})
    mask.save(tmp_path / "m.safetensors")
    raw = (tmp_path / "m.safetensors").read_bytes()
    header = 8 + int.from_bytes(raw[:8], "little")
    assert 8 * (len(raw) - header) / mask.num_weights <= 1.02


def test_a_mask_of_106_million_weights_loads_at_once_and_a_subnet_of_six_is_counted_packed(tmp_path: Path) -> None:
    shapes = {f"model.layers.{i}.mlp.{kind}": (1536, 576) for i in range(30) for kind in "abcd"}  # 106 M
    generator = np.random.default_rng(0)
    for index in range(6):
        bits = {path: generator.integers(0, 256, 1536 * 576 // 8, dtype=np.uint8) for path in shapes}
        Mask(bits, shapes, {"llm": "big"}).save(tmp_path / f"{index}.safetensors")
    start = time.perf_counter()
    masks = [Mask.load(tmp_path / f"{index}.safetensors") for index in range(6)]
    loaded = time.perf_counter() - start
    found, by_chance = intersection(masks), density_by_chance(masks)
    print(f"6 loads {loaded:.2f} s, with the subnet {time.perf_counter() - start:.2f} s")
    assert found.density == pytest.approx(1 / 64, rel=0.01) and by_chance == pytest.approx(1 / 64, rel=0.01)


def spoilt(path: Path, what: str) -> None:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    match what:
        case "short":
            raw = raw[:-3]
        case "text":
            raw = b"no mask at all, but a text"
        case "empty":
            raw = b""
        case "format":
            header["__metadata__"]["format"] = "other"
        case "shape":
            shapes = json.loads(header["__metadata__"]["shapes"])
            header["__metadata__"]["shapes"] = json.dumps(shapes | {next(iter(shapes)): [600, 10]})
        case "facts":
            header["__metadata__"]["facts"] = "{"
    if what in ("format", "shape", "facts"):
        text = json.dumps(header).encode()
        raw = len(text).to_bytes(8, "little") + text + raw[8 + length :]
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("short", "bytes where its header says"),
        ("text", "not a readable mask file"),
        ("empty", "not a readable mask file"),
        ("format", "not a mask"),
        ("shape", "damaged mask"),
        ("facts", "damaged mask"),
    ],
)
def test_a_spoilt_file_is_refused_in_one_line_that_names_it(tmp_path: Path, what: str, told: str) -> None:
    path = tmp_path / "m.safetensors"
    random_mask(0.5, 6).save(path)
    spoilt(path, what)
    with pytest.raises(UserError, match=told) as caught:
        Mask.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_and_masks_of_two_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Mask.load(tmp_path / "nowhere.safetensors")
    other = random_mask(0.5, 7, {"model.layers.0.self_attn.q_proj": (6, 11)})
    with pytest.raises(UserError, match="masks of different models"):
        random_mask(0.5, 7) & other


# -- overlap ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.3, 0.5, 0.7])
def test_two_random_masks_overlap_as_chance_says(density: float) -> None:
    rows, length = 200, 240
    a, b = (
        Mask.of({"model.layers.0.mlp.up": keep_by("row", torch.rand(rows, length, generator=g), 1 - density)})
        for g in (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2))
    )
    kept = a.num_kept
    # The intersection of a row is hypergeometric; IoU = both / (2 kept - both).
    variance = rows * length * density**2 * (1 - density) ** 2 * length / (length - 1)
    both = density * kept
    error = math.sqrt(variance) * 2 * kept / (2 * kept - both) ** 2
    found = overlap(a, b)
    assert found.chance == pytest.approx(density / (2 - density), abs=1e-9)
    assert abs(found.iou - found.chance) < 3 * error
    assert abs(found.corrected) < 3 * error / (1 - found.chance)


def test_overlap_is_counted_as_sets_are_and_chance_is_exact_for_unequal_densities() -> None:
    a, b = random_mask(0.8, 1), random_mask(0.3, 2)
    whole = overlap(a, b)
    x, y = (np.concatenate([mask.kept(path).ravel() for path in SHAPES]) for mask in (a, b))
    assert whole.iou == (x & y).sum() / (x | y).sum() and whole.iou_pruned == (~x & ~y).sum() / (~x | ~y).sum()
    expected = [(a.kept(p).sum() * b.kept(p).sum() / a.kept(p).size, a.kept(p).sum() + b.kept(p).sum()) for p in SHAPES]
    assert whole.chance == pytest.approx(sum(e for e, _ in expected) / sum(s - e for e, s in expected))
    same = overlap(a, a)
    assert same.iou == same.iou_pruned == same.corrected == same.corrected_pruned == 1
    assert set(overlaps(a, b, ("block", "kind", "matrix"))["block"]) == {"0", "1"}


def test_a_restricted_overlap_looks_only_at_weights_outside_the_given_mask() -> None:
    a, b, common = random_mask(0.5, 1), random_mask(0.5, 2), random_mask(0.6, 3)
    found = overlap(a, b, without=common)
    x, y, z = (np.concatenate([mask.kept(path).ravel() for path in SHAPES]) for mask in (a, b, common))
    assert found.num == (~z).sum() and found.iou == (x & y & ~z).sum() / ((x | y) & ~z).sum()
    assert found.iou_pruned == (~x & ~y & ~z).sum() / ((~x | ~y) & ~z).sum()
    assert ((a | b) - common).num_kept == ((x | y) & ~z).sum()


# -- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"method": "wandaa"}, "did you mean wanda"),
        ({"ratio": 1.5}, "outside 0 to 1"),
        ({"pattern": "2:4", "ratio": 0.3}, "use ratio=0.5"),
        ({"method": "subnet"}, "needs runs"),
        ({"matched": "overall"}, "needs runs"),
        ({"order": "sequential", "method": "random"}, "sequential is for methods wanda and sparsegpt"),
        ({"order": "sequential", "group": "global"}, "needs order=one_shot"),
        ({"method": "subnet", "runs": ["a"], "group": "global"}, "made of masks by row"),
        ({"num_examples": 0}, "at least 1"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_in_one_line(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        Recipe(**wrong)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
