"""Verdicts: intervals cover, corrections are Holm's, cells come from the runs they should; a claim without a run says
so; the command writes its three files."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ima.cli import claims as command
from ima.core.resampling import mean as bootstrap
from ima.report.claims.claims import CLAIMS
from ima.report.claims.table import NOT_RUN, Cell, cells_of, csv_of, markdown_of, markdown_of_csv, page_of
from ima.report.claims.verdicts import Combined, Effect, combine, holm, judge
from ima.report.load import load_runs
from ima.report.run import Run


def effect(value: float, half: float = 0.1, seed: int = 0) -> Effect:
    return Effect(value, value - half, value + half, seed)


# -- statistics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_seeds", "spread"), [(1, 0.0), (3, 0.0), (3, 0.3), (5, 0.3)])
def test_intervals_cover_the_truth_at_about_their_level(num_seeds: int, spread: float) -> None:
    """Seeds share 40 clusters of 5 examples; a seed has an effect of its own (`spread`). Truth .5; 250 draws."""
    generator = np.random.default_rng(0)
    clusters = np.repeat(np.arange(40), 5)
    covered = 0
    for _ in range(250):
        shared = generator.normal(0.5, 0.5, 40)[clusters]
        effects = []
        for seed in range(num_seeds):
            own = shared + spread * generator.normal() + generator.normal(0, 0.5, len(clusters))
            found = bootstrap(own, clusters.tolist(), num_resamples=300)
            effects.append(Effect(found.value, found.low, found.high, seed))
        combined = combine(effects)
        covered += combined.low <= 0.5 <= combined.high
    assert 0.90 <= covered / 250 <= 0.99


def test_the_interval_is_the_wider_of_that_over_seeds_and_that_over_examples() -> None:
    close = [effect(0.50, 0.1), effect(0.51, 0.1), effect(0.49, 0.1)]
    far = [effect(0.2, 0.1), effect(0.5, 0.1), effect(0.8, 0.1)]
    assert combine(close).high - combine(close).value == pytest.approx(0.1)
    from scipy.stats import t

    half = t.ppf(0.975, 2) * 0.3 / math.sqrt(3)
    assert combine(far).high - combine(far).value == pytest.approx(half)
    assert combine(far).p == pytest.approx(2 * t.sf(0.5 / (0.3 / math.sqrt(3)), 2))


def test_without_an_interval_over_examples_that_over_three_seeds_is_used_and_fewer_have_none() -> None:
    unknown = [Effect(value, math.nan, math.nan, 0) for value in (0.4, 0.5, 0.6)]
    found = combine(unknown)
    assert math.isfinite(found.low) and math.isfinite(found.p)
    assert math.isnan(combine(unknown[:2]).low)


def test_holm_multiplies_by_the_number_of_tests_left_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    adjusted = holm([math.nan, 0.02])
    assert math.isnan(adjusted[0]) and adjusted[1] == 0.02


@pytest.mark.parametrize(
    ("low", "high", "options", "verdict"),
    [
        (0.1, 0.3, {}, "holds"),
        (-0.3, -0.1, {}, "contradicted"),
        (-0.01, 0.02, {"smallest": 0.05}, "none"),
        (0.01, 0.02, {"smallest": 0.05}, "none"),
        (-0.1, 0.3, {"smallest": 0.05}, "too wide"),
        (-0.04, 0.1, {"bar": -0.05}, "holds"),
        (-0.3, -0.1, {"bar": -0.05}, "contradicted"),
        (-0.3, 0.1, {"bar": -0.05}, "too wide"),
        (-0.01, 0.02, {"smallest": 0.05, "absent": True}, "holds"),
        (0.2, 0.4, {"smallest": 0.05, "absent": True}, "contradicted"),
        (-0.2, 0.4, {"smallest": 0.05, "absent": True}, "too wide"),
        (math.nan, math.nan, {"smallest": 0.05}, "no interval"),
    ],
)
def test_verdicts(low: float, high: float, options: dict[str, Any], verdict: str) -> None:
    found = Combined((low + high) / 2, low, high, 0.001, 3)
    assert judge(found, 0.001, options.pop("smallest", None), **options) == verdict


def test_a_verdict_needs_three_seeds_and_the_corrected_p() -> None:
    assert judge(Combined(0.2, 0.1, 0.3, 0.001, 2), 0.001, None) == "few seeds"
    assert judge(Combined(0.2, 0.1, 0.3, 0.03, 3), 0.09, None) == "too wide"


# -- cells from runs ------------------------------------------------------------------------------------------------


def row(score: str, value: float, roles: tuple[str, str | None] = ("P", "T.text"), **more: Any) -> dict[str, Any]:
    given = {"score": score, "value": value, "se": 0.01, "epoch": 4, "step": 8, "split": "val", "site": "resid_post"}
    given |= {"role_a": roles[0], "role_b": roles[1], "variant": "centred", "layer_a": None}
    return given | more


def run_of(name: str, seed: int, encoder: str = "efficientnet_lite0", **more: Any) -> Run:
    """A finished training whose retrieval rises from .05 to about .5 (a control's does not)."""
    control = encoder.startswith("noise")
    end = 0.05 if control else 0.5 + 0.02 * seed
    facts = {"llm": "smollm2", "task": "caption", "source": "stamps", "adapter": "PoolAdapter", "modality": "image"}
    facts |= {"encoder": "NoiseEncoder" if control else "EfficientNetLite", "headline": "noun_accuracy"}
    metrics = {"retrieval/mean": end, "retrieval/mean/se": 0.01, "ima/mean": 0.6 - 0.01 * seed, "ima/mean/se": 0.01}
    metrics |= {"T0/noun_accuracy": end + 0.3, "T0/chair_i": 0.6 - end}
    config = {"seed": seed, "choices": {"encoder": encoder, "adapter": "pool", "llm": "smollm2"}, "encoder": {}}
    result = {"status": "ok", "config": config, "facts": facts | more, "metrics": metrics, "git": {"commit": "a" * 40}}
    rows = [row("retrieval_mean", 0.05, epoch=0, step=0), row("retrieval_mean", end)]
    rows += [row("retrieval", end / 2, layer_a=0), row("retrieval_chance", 0.03)]
    rows += [row("ima", 0.7, ("P", "T"), variant="raw", epoch=0, step=0), row("ima", 0.6, ("P", "T"), variant="raw")]
    return Run(Path(f"outputs/{name}"), name, result, rows)


def cell(cells: list[Cell], words: str) -> Cell:
    (found,) = [each for each in cells if words in each.quantity.name]
    return found


def three_seeds() -> list[Run]:
    return [run_of(f"demo{seed}", seed) for seed in range(3)] + [run_of(f"twin{s}", s, "noise") for s in range(3)]


def test_three_seeds_with_their_twins_give_verdicts_both_ways() -> None:
    cells = cells_of(three_seeds())
    rose = cell(cells, "retrieval, trained minus untrained")
    assert rose.verdict == "holds" and rose.found.value == pytest.approx(0.47) and rose.found.num_seeds == 3
    fell = cell(cells, "raw IMA, trained minus untrained")
    assert fell.verdict == "contradicted" and fell.found.value == pytest.approx(-0.1)
    twin = cell(cells, "retrieval, run minus noise twin")
    assert twin.verdict == "holds" and twin.found.value == pytest.approx(0.47)
    assert cell(cells, "retrieval at layer 0").verdict == "contradicted"  # the adapter translates


def test_a_twin_is_of_the_same_seed_and_everything_else() -> None:
    runs = three_seeds()
    others = [run_of("x", 0, "noise", task="vqa"), run_of("y", 7, "noise"), run_of("z", 0, "noise", adapter="Mlp")]
    cells = cells_of([runs[0], *others])
    assert not [each for each in cells if "noise twin" in each.quantity.name]
    assert cell(cells_of([runs[0], runs[3]]), "retrieval, run minus noise twin").effects[0].runs == (
        "outputs/demo0", "outputs/twin0",
    )  # fmt: skip


def test_controls_failed_runs_and_runs_under_a_plan_are_no_trained_runs() -> None:
    runs = three_seeds()
    runs[0].result["status"] = "failed"
    runs[1].result["facts"]["plan"] = {"interventions": [{"kind": "skip", "part": "ffn"}]}
    assert (
        cell(cells_of(runs), "retrieval, trained minus untrained").effects
        == cell(cells_of(runs[2:3]), "retrieval, trained minus untrained").effects
    )


def test_one_seed_is_told_as_one_seed_and_never_a_verdict() -> None:
    found = cell(cells_of(three_seeds()[:1]), "retrieval, trained minus untrained")
    assert found.words.startswith("one seed: 0.450 [0.4")


def test_mixed_commits_are_told() -> None:
    runs = three_seeds()
    runs[1].result["git"] = {"commit": "b" * 40}
    found = cell(cells_of(runs, lambda commits: len(commits) > 1), "retrieval, trained minus untrained")
    assert found.mixed and found.words.endswith("(mixed commits)")
    assert found.commits == ["a" * 40, "b" * 40]


def test_correlations_need_eight_trainings_and_count_their_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ima.report.correlation.NUM_DRAWS", 200)
    monkeypatch.setattr("ima.report.correlation.NUM_PERMUTATIONS", 500)
    runs = [run_of(f"r{n}", n % 3) for n in range(9)]
    for n, run in enumerate(runs):
        run.result["metrics"] |= {"ima/mean": 0.1 * n, "T0/noun_accuracy": 0.1 * n, "T0/chair_i": 1 - 0.1 * n}
    tracks = cell(cells_of(runs), "rank correlation of raw IMA with the score")
    assert tracks.found.value == pytest.approx(1) and tracks.found.num_seeds == 3 and tracks.verdict == "holds"
    assert cell(cells_of(runs), "minus rank correlation of raw IMA with CHAIR_i").found.value == pytest.approx(1)
    assert not [each for each in cells_of(runs[:7]) if "rank correlation" in each.quantity.name]


def test_every_claim_is_told_also_one_that_was_not_run() -> None:
    cells = cells_of(three_seeds())
    table = list(csv.DictReader(csv_of(cells).splitlines()))
    assert {line["claim"] for line in table} == {claim.key for claim in CLAIMS}
    assert [line["verdict"] for line in table if line["claim"] == "C9"] == [NOT_RUN]
    text, page = markdown_of(cells), page_of(cells, ["outputs"])
    for claim in CLAIMS:
        assert f"**{claim.key}. " in text and f'id="{claim.key.lower()}"' in page


def test_names_of_runs_cannot_write_markup_into_the_page() -> None:
    runs = three_seeds()
    for run in runs:
        run.result["facts"]["llm"] = "<script>alert(1)</script>"
    assert "<script>alert" not in page_of(cells_of(runs), ["<b>"])


def test_paired_scores_of_plans_masks_and_recovery_come_from_the_same_examples(tmp_path: Path) -> None:
    def folder(name: str, right: float, plan: list[dict[str, Any]], evaluated: bool, **facts: Any) -> Run:
        run = run_of(name, 0)
        here = tmp_path / name
        here.mkdir()
        generator = np.random.default_rng(0)
        lines = [
            {"track": "T0", "id": str(n), "cluster": str(n // 2), "right": float(generator.random() < right)}
            for n in range(80)
        ]
        (here / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        run.result["facts"] |= {"plan": {"interventions": plan, "flops": {"prefill_left": 0.8}}} | facts
        if evaluated:
            run.result["facts"]["evaluated"] = str(tmp_path / "base" / "adapter.safetensors")
        (here / "result.json").write_text(json.dumps(run.result))
        return dataclasses.replace(run, folder=here)

    skip = {"kind": "skip", "part": "block", "roles": ["percept"], "start": 12}
    runs = [
        folder("base", 0.9, [], False),
        folder("skipped", 0.4, [skip], True),
        folder("again", 0.9, [skip], False),
        folder("subnet", 0.6, [{"kind": "mask", "method": "subnet", "sparsity": 0.3}], True),
        folder("own", 0.6, [{"kind": "mask", "method": "wanda", "sparsity": 0.301}], True),
        folder("dense", 0.9, [{"kind": "mask", "method": "random", "sparsity": 0.1}], True),
    ]
    cells = cells_of(runs)
    lost = cell(cells, "score with block skipped")
    assert lost.found.value == pytest.approx(-0.5, abs=0.15) and lost.setting.setup.endswith("80 % of FLOPs, T0")
    assert cell(cells, "trained under the plan").found.value == pytest.approx(0.5, abs=0.15)
    assert cell(cells, "subnet minus the task's own").found.value == 0
    assert not [each for each in cells if "minus random" in each.quantity.name]  # another sparsity


def test_overlap_is_of_percept_and_text_masks_of_one_task_beyond_chance(tmp_path: Path) -> None:
    from ima.interventions.prune.mask import Mask
    from ima.interventions.prune.rows import write_comparison

    generator = np.random.default_rng(0)
    kept = generator.random((40, 50)) < 0.5
    near = kept ^ (generator.random((40, 50)) < 0.1)

    def mask(bits: np.ndarray, roles: str, source: str = "stamps") -> Mask:
        facts = {"llm": "smollm2", "roles": roles, "tasks": [{"source": source}], "asked": 0.5, "seed": 0}
        return Mask.of({"model.layers.0.mlp.up": bits}, facts)

    masks = {"p": mask(kept, "percept"), "t": mask(near, "text"), "other": mask(near, "text", "shapes")}
    write_comparison(masks, tmp_path)
    found = cell(cells_of(load_runs([tmp_path])), "overlap of their masks")
    chance = 1 / 3
    iou = (kept & near).sum() / (kept | near).sum()
    assert found.found.value == pytest.approx((iou - chance) / (1 - chance), abs=0.03)
    assert found.words.startswith("one seed") and found.setting.setup == "stamps, 0.5"


def test_the_command_writes_markdown_csv_and_page_and_refuses_what_is_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artefacts = Path(__file__).parents[1] / "artefacts"
    assert command.main([str(artefacts), "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"claims.md", "claims.csv", "claims.html"}
    assert "C16" in capsys.readouterr().out
    assert command.main([str(tmp_path / "none"), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_code_that_changed_between_commits_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", *identity, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    commits = []
    for name in ("ima/a.py", "docs/b.md", "ima/a.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with open(tmp_path / name, "a") as file:
            file.write("x\n")
        git("add", "-A")
        git("commit", "-qm", name)
        commits.append(git("rev-parse", "HEAD"))
    monkeypatch.chdir(tmp_path)
    assert not command.code_changed(commits[:1]) and not command.code_changed(commits[:2])
    assert command.code_changed(commits) and command.code_changed([commits[0], "f" * 40])
    assert command.code_changed([commits[0] + "+"]) and command.code_changed(["unknown"])


def test_files_that_a_star_names_too_are_passed_over_but_not_alone(tmp_path: Path) -> None:
    from ima.core.errors import UserError
    from ima.report.load import find_runs

    artefacts = Path(__file__).parents[1] / "artefacts"
    (tmp_path / "runs.csv").write_text("x")
    assert find_runs([artefacts, tmp_path / "runs.csv"]) == find_runs([artefacts])
    with pytest.raises(UserError, match="is a file"):
        find_runs([tmp_path / "runs.csv"])
    with pytest.raises(UserError, match="does not exist"):
        find_runs([artefacts, tmp_path / "typo"])


def test_load_runs_reads_rows_of_all_runs_for_the_claims() -> None:
    runs = load_runs([Path(__file__).parents[1] / "artefacts"], max_detailed=10**6)
    assert any(run.rows for run in runs)


def test_the_table_in_the_docs_is_the_committed_results() -> None:
    docs = Path(__file__).parents[2] / "docs"
    table = markdown_of_csv((docs / "results" / "claims.csv").read_text())
    assert table.count("\n") > 5 and table in (docs / "claims.md").read_text()
