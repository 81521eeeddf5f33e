"""Cones from the files of two evaluations equal the double loop over the examples of both."""

import json

import pytest
import torch
from alignment_states import NUM_LAYERS, examples, feed
from test_alignment_variants import average, brute_means, cosine, scales_of

from ima.alignment.cone_file import NAME, read_sums, write_sums
from ima.alignment.cones import cone_rows
from ima.alignment.streaming.statistics import AlignmentStats
from ima.alignment.views import Plan
from ima.cli.cones import main
from ima.core.errors import UserError

FACTS = {"llm": "tiny", "llm_width": 12, "llm_blocks": 3}


@pytest.fixture(scope="module")
def sets():
    return {"stamps": examples(14, 1), "songs": examples(9, 2)}


@pytest.fixture()
def folders(sets, tmp_path):
    for name, made in sets.items():
        stats = AlignmentStats(NUM_LAYERS, plan=Plan(("nosink", "nomassive", "scaled")), scales=scales_of(made))
        feed(stats, made, 4)
        (tmp_path / name).mkdir()
        modality = {"stamps": "image", "songs": "audio"}[name]
        write_sums(tmp_path / name, stats, FACTS | {"run": name, "dataset": name, "modality": modality})
    return [tmp_path / name for name in sets]


@pytest.mark.parametrize(("roles", "names"), [("PP", ("stamps", "songs")), ("TT", ("stamps", "songs")),
                                              ("PT", ("songs", "stamps")), ("PT", ("songs", "songs"))])  # fmt: skip
@pytest.mark.parametrize("variant", ["raw", "nosink"])
def test_across_datasets_it_is_the_mean_over_all_pairs(sets, folders, roles, names, variant):
    rows = {
        row.layer_a: row
        for row in cone_rows([read_sums(folder) for folder in folders])
        if (row.role_a + row.role_b, row.dataset_a, row.dataset_b) == (roles, *names)
        and (row.score, row.variant) == ("cone", variant)
    }
    assert rows[1].modality_b == ("text" if roles[1] == "T" else "audio")
    for layer in range(NUM_LAYERS):
        a, b = (brute_means(sets[name], layer, role, variant).values() for name, role in zip(names, roles, strict=True))
        assert rows[layer].value == pytest.approx(average(cosine(x, y) for x in a for y in b), abs=1e-5)


def test_within_a_dataset_it_is_the_mean_over_distinct_pairs(sets, folders):
    rows = [
        row.value
        for row in cone_rows([read_sums(folder) for folder in folders])
        if (row.role_a, row.role_b, row.dataset_a, row.dataset_b) == ("P", "P", "stamps", "stamps")
        and (row.score, row.variant) == ("cone", "raw")
    ]
    means = list(brute_means(sets["stamps"], 2, "P", "raw").values())
    expected = average(cosine(x, y) for i, x in enumerate(means) for j, y in enumerate(means) if i != j)
    assert rows[2] == pytest.approx(expected, abs=1e-5)


def test_the_command_writes_rows_and_prints_the_means(folders, tmp_path, capsys):
    assert main([*map(str, folders), "--rows", str(tmp_path / "out" / "rows.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert {row["score"] for row in rows} == {"cone", "cone_mean"}
    assert {row["note"] for row in rows} >= {"stamps ~ songs", "songs ~ stamps", "songs ~ songs"}
    assert "P stamps (image)  P songs (audio)" in capsys.readouterr().out


def test_a_flipped_bit_in_the_sums_is_noticed(folders):
    path = folders[0] / NAME
    whole = bytearray(path.read_bytes())
    for place in (len(whole) - 3, len(whole) // 2):
        broken = whole.copy()
        broken[place] ^= 16
        path.write_bytes(broken)
        with pytest.raises(UserError, match="damaged"):
            read_sums(folders[0])
    path.write_bytes(whole)


def test_what_does_not_fit_is_one_line(folders, tmp_path, capsys):
    assert main([str(tmp_path)]) == 2 and "alignment=full writes it" in capsys.readouterr().err
    (folders[0] / NAME).write_bytes(b"not tensors")
    with pytest.raises(UserError, match="not a readable file"):
        read_sums(folders[0])
    stats = AlignmentStats(NUM_LAYERS)
    feed(stats, examples(3), 3)
    write_sums(folders[0], stats, FACTS | {"run": "x", "dataset": "x", "modality": "image", "llm": "other"})
    with pytest.raises(UserError, match="no common space"):
        list(cone_rows([read_sums(folder) for folder in folders]))


def test_scaled_views_are_not_kept_because_each_run_has_its_own_scales(folders):
    assert {view.partition(".")[2] for view in read_sums(folders[0]).sum_LGD} == {"", "nosink", "nomassive"}
    assert all(torch.isfinite(value).all() for value in read_sums(folders[0]).sum_LGD.values())
