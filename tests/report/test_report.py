"""The page of one run: complete, escaped, self-contained, and never a crash for what is missing."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from report_runs import make_run, write_page

from ima.cli.report import main
from ima.core.errors import UserError
from ima.report.build import write_report
from ima.report.figures.drawing import Figure
from ima.report.figures.order import figures_of
from ima.report.load import load_run
from ima.report.page.html import page_html

FIGURES = ("ima_by_layer", "ima_heatmap", "training", "ima_by_epoch", "ima_gap", "ima_variants", "norms", "consecutive",
           "tasks")  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 30 layers and 6 epochs with its report."""
    folder = make_run(tmp_path_factory.mktemp("outputs") / "demo")
    write_report([folder])
    return folder


def small_run(folder: Path, **options: Any) -> Path:
    return make_run(folder, **{"layers": 3, "epochs": 2, "samples": 2, **options})


def rewrite_result(folder: Path, **fields: Any) -> None:
    path = folder / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def page_of(folder: Path) -> str:
    """The page alone, without the files beside it."""
    run = load_run(folder)
    return page_html([run], figures_of(run))


def words_of(folder: Path) -> str:
    """The page with empty pictures, where only its words are looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "inline", lambda figure: "<svg ></svg>")
        return page_of(folder)


def test_page_holds_headlines_with_intervals_figures_samples_and_the_command(demo: Path) -> None:
    html = (demo / "report.html").read_text(encoding="utf-8")
    assert html.count("<svg ") == len(FIGURES)
    assert "95 % interval 0.730 to 0.860" in html
    assert "python train.py encoder=efficientnet-lite0 trainer.seed=0" in html
    assert html.count('src="data:image/') == 12
    assert "✓ right" in html
    assert "SmolLM2-135M-Instruct" in html
    assert "blind · no medium" in html


def test_every_figure_is_also_svg_png_and_csv(demo: Path) -> None:
    for name in FIGURES:
        assert (demo / "figures" / f"{name}.svg").read_text().rstrip().endswith("</svg>")
        assert (demo / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (demo / "figures" / f"{name}.csv").read_text().count("\n") > 1


def test_csv_of_the_layer_figure_has_the_values_of_the_rows(demo: Path) -> None:
    wanted = {
        (row["epoch"], row["layer_b"]): row["value"]
        for row in map(json.loads, (demo / "rows.jsonl").read_text().splitlines())
        if row["score"] == "sim" and row["variant"] == "raw" and row["role_b"] == "T"
    }
    with open(demo / "figures" / "ima_by_layer.csv", newline="") as file:
        found = {(int(row["epoch"]), int(row["layer"])): float(row["value"]) for row in csv.DictReader(file)}
    assert len(wanted) == 7 * 31
    assert found == wanted


def test_page_is_self_contained_and_small(demo: Path) -> None:
    html = (demo / "report.html").read_text(encoding="utf-8")
    outside = re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']*|url\((?!#)[^)]*|@import""", html)
    assert outside == []
    assert len(html.encode()) < 400_000


def test_ids_in_the_page_are_unique_and_every_reference_inside_svg_resolves(demo: Path) -> None:
    html = (demo / "report.html").read_text(encoding="utf-8")
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    references = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', html))
    assert {name for pair in references for name in pair if name} <= set(ids)


def test_page_svg_takes_its_colours_from_variables_that_the_page_defines(demo: Path) -> None:
    html = (demo / "report.html").read_text(encoding="utf-8")
    used = set(re.findall(r"var\(--([\w]+)\)", html))
    defined = set(re.findall(r"--([\w]+):", html))
    assert used <= defined
    assert "#0b0b" not in html


def test_shortening_coordinates_leaves_tick_labels_alone() -> None:
    from ima.report.figures.style import clean_svg

    svg = clean_svg(b'<svg><path d="M 1.23456 2.98765"/><text x="1.23456" y="2">0.12345</text></svg>', "p")
    assert svg == '<svg><path d="M 1.23 2.98"/><text x="1.23" y="2">0.12345</text></svg>'


def test_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = small_run(tmp_path / "run")

    def drawn(name: str) -> list[Any]:
        first = figures_of(load_run(folder))[0]
        first.save(tmp_path / name)
        return [first.inline(), *(path.read_bytes() for path in sorted((tmp_path / name).iterdir()))]

    assert len(drawn("a")) == 4
    assert drawn("a") == drawn("b")


def test_text_from_a_run_is_escaped_everywhere(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>\" onload=\"$\\frac{&amp;\ud800"
    folder = small_run(tmp_path / "run", status="failed", reason=evil, command=evil, overrides=[evil],
                       config={evil: {"name": evil}, "encoder": evil}, facts={evil: evil, "llm": evil},
                       metrics={evil: 1.0}, versions={evil: evil}, seeds={evil: 1}, git={"commit": evil})  # fmt: skip
    sample = {"id": evil, "track": evil, "references": [evil, evil], "prediction": evil, "correct": None, "epoch": 1,
              "image": evil}  # fmt: skip
    (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    with open(folder / "rows.jsonl", "a") as file:
        file.write(json.dumps({"score": evil, "track": evil, "epoch": 1, "value": 1.0, "run": evil}) + "\n")
    html = page_of(folder)
    assert html.count("<script>") == 1
    assert "<script>alert" not in html
    assert 'onload="' not in html
    assert "&lt;script&gt;alert" in html


def test_page_refuses_scripts_other_than_its_own(demo: Path) -> None:
    import base64
    import hashlib

    html = (demo / "report.html").read_text(encoding="utf-8")
    script = html.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html
    assert "default-src 'none'" in html


def drop_rows(folder: Path) -> None:
    (folder / "rows.jsonl").unlink()


def drop_samples(folder: Path) -> None:
    (folder / "samples.jsonl").unlink()


def all_not_finite(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    (folder / "rows.jsonl").write_text("".join(json.dumps({**row, "value": None}) + "\n" for row in rows))


def some_not_finite(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    rows = [{**row, "value": None, "se": None} if index % 3 == 0 else row for index, row in enumerate(rows)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rewrite_result(folder, metrics={"T0/noun_accuracy": None})


def broken_rows(folder: Path) -> None:
    with open(folder / "rows.jsonl", "a") as file:
        file.write("{broken\n")


def broken_samples(folder: Path) -> None:
    with open(folder / "samples.jsonl", "a") as file:
        file.write('[1]\n{"id": ')


def failed(folder: Path) -> None:
    rewrite_result(folder, status="failed", reason="loss became NaN at step 7", metrics={})


def running(folder: Path) -> None:
    rewrite_result(folder, status="running", metrics={}, wall_seconds=None)


def bare(folder: Path) -> None:
    for name in ("rows.jsonl", "samples.jsonl"):
        (folder / name).unlink()
    (folder / "result.json").write_text('{"status": "failed"}')


def pictures_gone(folder: Path) -> None:
    for path in (folder / "media").iterdir():
        path.write_bytes(b"not a picture")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (drop_rows, "no `sim` rows"),
        (drop_samples, "No generated samples"),
        (all_not_finite, "no `train_loss` or `val_loss` rows with numbers"),
        (some_not_finite, "not a number"),
        (broken_rows, "rows.jsonl was read up to a broken line"),
        (broken_samples, "samples.jsonl: 2 line(s) could not be read"),
        (failed, "This run failed: loss became NaN at step 7"),
        (running, "This run is not finished"),
        (bare, "no reason was recorded"),
        (pictures_gone, "picture could not be read"),
    ],
)
def test_what_is_missing_is_said_on_the_page(tmp_path: Path, damage: Any, said: str) -> None:
    folder = small_run(tmp_path / "run")
    damage(folder)
    reads_figures = damage in (drop_rows, all_not_finite, some_not_finite, broken_rows, bare)
    assert said in (page_of if reads_figures else words_of)(folder)


def test_one_epoch_gives_a_page_without_the_map(tmp_path: Path) -> None:
    html = page_of(small_run(tmp_path / "run", epochs=0))
    assert "only one epoch was measured" in html
    assert "Implicit alignment by layer" in html


def test_an_evaluation_without_epochs_still_shows_its_layers(tmp_path: Path) -> None:
    folder = small_run(tmp_path / "run", epochs=0)
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    (folder / "rows.jsonl").write_text("".join(json.dumps({**row, "epoch": None}) + "\n" for row in rows))
    assert "as evaluated" in page_of(folder)


def test_picture_outside_the_run_folder_is_not_read(tmp_path: Path) -> None:
    folder = small_run(tmp_path / "run", samples=1)
    (tmp_path / "secret.png").write_bytes((folder / "media" / "0.png").read_bytes())
    line = json.loads((folder / "samples.jsonl").read_text().splitlines()[0])
    (folder / "samples.jsonl").write_text(json.dumps({**line, "image": "../secret.png"}) + "\n")
    html = words_of(folder)
    assert "picture outside the run folder" in html
    assert 'src="data:image/' not in html


def test_large_picture_is_shrunk(tmp_path: Path) -> None:
    from PIL import Image

    from ima.report.page.samples import MAX_SIDE, shrunk

    Image.effect_noise((900, 600), 90).convert("RGBA").save(tmp_path / "large.png")
    kind, data = shrunk((tmp_path / "large.png").read_bytes())
    (tmp_path / "small").write_bytes(data)
    with Image.open(tmp_path / "small") as small:
        assert (kind, max(small.size)) == ("jpeg", MAX_SIDE)


@pytest.mark.parametrize("content", [None, "{", "[1, 2]"])
def test_folder_that_is_no_run_is_one_clear_line(
    tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    assert main([str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "result.json" in message
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.write_text("")])
def test_path_that_is_no_folder_is_refused_by_name(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "thing")
    with pytest.raises(UserError, match="thing: (is a file|does not exist)"):
        write_report([tmp_path / "thing"])


def test_place_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    folder = small_run(tmp_path / "run", samples=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out"):
        write_page([folder], tmp_path / "file" / "report.html", drawn=False)


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )


def test_help_loads_no_drawing_code_and_the_page_no_torch(tmp_path: Path) -> None:
    folder = small_run(tmp_path / "run", samples=1)
    code = (
        "import sys\nfrom ima.cli.report import main\n"
        "assert 'matplotlib' not in sys.modules and 'numpy' not in sys.modules\nassert main(sys.argv[1:]) == 0\n"
        "print([name for name in ('torch', 'lightning', 'hydra', 'omegaconf', 'wandb', 'transformers', 'pandas')"
        " if name in sys.modules])"
    )
    done = run_python(code, str(folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(folder / "report.html"), "[]"]
    assert done.stderr == ""


def task_run(folder: Path, score: str, tracks: dict[str, float]) -> Path:
    """A run whose task is told by `score` alone, one value a track."""
    small_run(folder, samples=0)
    rows = [
        row for line in (folder / "rows.jsonl").read_text().splitlines() if (row := json.loads(line))["track"] is None
    ]
    rows += [
        {"run": "r", "score": score + ending, "value": value + shift, "epoch": 2, "split": "test", "track": track}
        for track, value in tracks.items()
        for ending, shift in (("", 0.0), ("_low", -0.05), ("_high", 0.05))
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rewrite_result(folder, metrics={f"{track}/{score}": value for track, value in tracks.items()})
    return folder


def test_what_stands_beside_the_tracks_comes_last_and_is_said_in_words(tmp_path: Path) -> None:
    values = {
        "prior": 0.4,
        "blind": 0.35,
        "shuffled_frames": 0.5,
        "T1": 0.6,
        "single_frame": 0.45,
        "other": 0.2,
        "T0": 0.8,
    }
    html = words_of(task_run(tmp_path / "run", "accuracy", values))
    table = html.partition('<section id="tasks">')[2].partition("</section>")[0]
    order = (
        "T0 · ",
        "T1 · ",
        ">other<",
        "single frame · ",
        "shuffled frames · ",
        "blind · ",
        "prior · best guess from the",
    )
    places = [table.index(words) for words in order]
    assert places == sorted(places)
    assert table.count('<tr class="blind">') == 4
    for title in ("T0 accuracy", "T1 accuracy", "blind accuracy", "prior accuracy", "single frame"):
        assert f"<h3>{title}</h3>" in html
    assert "Accuracy by track" in html


def card_of(folder: Path, **fields: Any) -> str:
    from ima.report.page.samples import card

    return card(folder, [{"references": ["two"], "prediction": "2", "epoch": 1, **fields}])


def test_cards_show_the_question_and_every_kind_of_verdict(tmp_path: Path) -> None:
    asked = card_of(tmp_path, question="How many <b>cows</b>?", right=1.0)
    assert "How many &lt;b&gt;cows&lt;/b&gt;?" in asked and "✓ right" in asked
    assert asked.index("How many") < asked.index("“2”")
    assert "question" not in card_of(tmp_path, right=True)
    for fields, words in (
        ({"right": True}, "✓ right"), ({"right": False}, "✗ wrong"), ({"right": 0}, "✗ wrong"),
        ({"right": 0.3}, "◐ 0.30 right"), ({"right": 1}, "✓ right"), ({}, "○ not scored"),
        ({"right": None}, "○ not scored"), ({"correct": True}, "✓ right"),
        ({"right": 0.531, "cider_d": 0.531}, "CIDEr-D 0.53"), ({"right": True, "cider_d": 1.0}, "✓ right"),
    ):  # fmt: skip
        assert words in card_of(tmp_path, **fields)


def test_alignment_that_was_measured_by_step_is_drawn_over_steps(tmp_path: Path) -> None:
    """One epoch, measured five times in it: five points and five columns, not one; the tasks stay at their epochs."""
    run = make_run(tmp_path / "run", epochs=4, layers=3)
    rows = [json.loads(line) for line in (run / "rows.jsonl").read_text().splitlines()]
    for row in rows:
        if row["track"] is None and row["split"] != "train":
            row["step"], row["epoch"] = 50 * row["epoch"], min(row["epoch"], 1)
    (run / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = json.loads((run / "result.json").read_text())
    result["config"]["alignment"] = {"every_num_steps": 50}
    (run / "result.json").write_text(json.dumps(result))
    page = write_page([run]).read_text()
    assert "IMA by layer and step" in page and "step (0 = untrained adapter)" in page and "IMA score by step" in page
    steps = ["0", "50", "100", "150", "200"]
    for name in ("ima_by_layer", "ima_heatmap", "ima_by_epoch"):
        with (run / "figures" / f"{name}.csv").open(newline="") as file:
            assert sorted({row["step"] for row in csv.DictReader(file)}, key=int) == steps, name
    with (run / "figures" / "tasks.csv").open(newline="") as file:
        assert {row["epoch"] for row in csv.DictReader(file)} <= {"1", "2", "3", "4"}
