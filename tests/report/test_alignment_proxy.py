"""Correlations agree with scipy, intervals cover, p is exact for few points, columns come from runs or epochs."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ima.cli.correlate import main
from ima.report.correlation import auroc, correlate, kendall, ranks


def linked(n, seed=0, noise=1.0):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=n)
    return x, x + noise * generator.normal(size=n)


def test_values_are_those_of_scipy():
    x, y = linked(15)
    y[3] = y[4]
    found = {each.name: each for each in correlate(x, y)}
    expected = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}
    for name, of in expected.items():
        each = found[name]
        assert each.value == pytest.approx(of(x, y).statistic) and each.n == 15
        assert each.low < each.value < each.high


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=120))
@settings(max_examples=60, deadline=None)
def test_ranks_and_tau_of_many_ties_are_those_of_scipy(points):
    x, y = (np.array(side, dtype=float) for side in zip(*points, strict=True))
    assert np.array_equal(ranks(x), stats.rankdata(x))
    assert kendall(x, y) == pytest.approx(stats.kendalltau(x, y).statistic, nan_ok=True)


def test_the_permutation_p_is_exact_for_few_points_and_small_only_for_a_relation():
    five = {each.name: each.p for each in correlate([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])}
    assert five["spearman"] == pytest.approx(2 / math.factorial(5))
    x, y = linked(25, noise=0.2)
    assert all(each.p < 0.002 for each in correlate(x, y))
    assert all(each.p > 0.05 for each in correlate(x, np.random.default_rng(9).normal(size=25)))


def test_what_does_not_vary_or_is_too_few_is_nan_and_missing_values_are_left_out():
    assert all(math.isnan(each.value) for each in correlate([1, 1, 1, 1], [1, 2, 3, 4]))
    assert all(math.isnan(each.value) and each.n == 2 for each in correlate([1, 2, math.nan], [1, 2, 3]))
    assert correlate([1, 2, 3, math.nan], [1, 2, 3, 9])[0].value == pytest.approx(1)


def test_auroc_counts_pairs():
    assert auroc([1, 2, 3, 4], [False, False, True, True]) == 1.0
    assert auroc([3, 1, 3], [True, False, False]) == 0.75
    assert math.isnan(auroc([1, 2], [True, True]))


def write_run(folder, ima, accuracy):
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"metrics": {"ima/mean": ima, "T0/noun_accuracy": accuracy}}))
    base = {"run": folder.name, "schema": 1}
    rows = []
    for epoch in range(3):
        field = base | {"epoch": epoch}
        rows += [
            field | {"score": "ima", "value": ima + epoch, "variant": "raw", "site": "resid_post", "role_b": "T"},
            field | {"score": "ima", "value": 99.0, "variant": "raw", "site": "sa", "role_b": "T"},
            field | {"score": "ima", "value": 98.0, "variant": "raw", "site": "resid_post", "role_b": "T.answer"},
            field | {"score": "noun_accuracy", "value": accuracy + 2 * epoch, "track": "T0"},
        ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_command_takes_columns_of_runs_or_epochs(tmp_path, capsys):
    for index in range(4):
        write_run(tmp_path / f"run{index}", 0.1 * index, 0.2 * index)
    runs = [str(tmp_path / f"run{index}") for index in range(4)]
    out = ["--rows", str(tmp_path / "proxy" / "rows.jsonl")]
    assert main([*runs, "--y", "T0/noun_accuracy", *out]) == 0
    assert "pearson    1.000" in capsys.readouterr().out
    points = json.loads((tmp_path / "proxy" / "points.json").read_text())["points"]
    assert [point["label"] for point in points] == ["run0", "run1", "run2", "run3"]
    assert main([*runs, "--over", "epochs", "--x", "ima", "--y", "T0/noun_accuracy", *out]) == 0
    points = json.loads((tmp_path / "proxy" / "points.json").read_text())["points"]
    assert len(points) == 12 and points[1] == {"label": "run0@1", "x": 1.0, "y": 2.0}
    assert main([*runs, "--y", "T0/noun_acuracy", *out]) == 2
    assert "T0/noun_accuracy" in capsys.readouterr().err


def test_folders_that_have_nothing_to_compare_are_left_out_with_a_line(tmp_path, capsys):
    """As outputs/* names them: a sweep's, one of masks, a run without the task, an evaluation of another split."""
    for index in range(4):
        write_run(tmp_path / f"run{index}", 0.1 * index, 0.2 * index)
    (tmp_path / "masks").mkdir()
    write_run(tmp_path / "other", 0.5, 0.5)
    (tmp_path / "other" / "result.json").write_text(json.dumps({"metrics": {"ima/mean": 0.5}}))
    folders = [str(tmp_path / name) for name in ("masks", "other", "run0", "run1", "run2", "run3")]
    out = ["--y", "T0/noun_accuracy", "--rows", str(tmp_path / "out" / "rows.jsonl")]
    assert main([*folders, *out]) == 0
    said = capsys.readouterr()
    assert "n 4" in said.out and said.err.count("left out: ") == 2 and "other: no metric 'T0/noun_accuracy'" in said.err
    assert main([*folders, "--over", "epochs", "--x", "ima", *out]) == 0
    assert "masks/rows.jsonl: not found" in capsys.readouterr().err
    assert main([*folders, "--over", "examples", *out]) == 2
    assert "examples.jsonl: not found; evaluate with" in capsys.readouterr().err
    assert main([*folders, str(tmp_path / "typo"), *out]) == 2 and "typo: no folder" in capsys.readouterr().err
    (tmp_path / "page.html").write_text("of something else")
    assert main([*folders, str(tmp_path / "page.html"), *out]) == 0 and "left out" in capsys.readouterr().err


def test_over_examples_the_alignment_meets_the_predictions_and_detects(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    lines = [{"id": f"s{i}", "ima_matched": 0.1 * i, "ima_matched/T.prompt": -0.1 * i} for i in range(12)]
    lines[11]["ima_matched"] = None
    (folder / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = [{"id": f"s{i}", "track": "T0", "right": i >= 6} for i in range(2, 12)]
    said.append({"id": "s3", "track": "blind", "right": True})
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in said))
    argv = [str(folder), "--over", "examples", "--y", "right", "--rows", str(tmp_path / "out" / "rows.jsonl")]
    assert main([*argv, "--x", "ima_matched"]) == 0
    printed = capsys.readouterr().out
    assert "auroc      1.000" in printed and "n 9" in printed
    assert main([*argv, "--x", "ima_matched/T.prompt"]) == 0
    assert "auroc      0.000" in capsys.readouterr().out
    assert main([*argv, "--x", "ima_match"]) == 2 and "ima_matched" in capsys.readouterr().err
    (folder / "examples.jsonl").write_text('{"id": "s1"}\n{"di": "s2"}\n')
    assert main(argv) == 2 and "examples.jsonl:2: 'id' is no text" in capsys.readouterr().err
