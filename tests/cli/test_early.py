"""What needs no model is refused before torch is imported, in the same line as the run itself would say it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from corpora_files import wav
from hydra.utils import get_class

from ima.cli.early import modality_of
from ima.config.choices import choices_of
from ima.config.compose import CONF

ROOT = Path(__file__).resolve().parents[2]
CASES: dict[str, tuple[str, list[str], str]] = {
    "folder": ("train", ["experiment=published_coco", "data.folder=nowhere"], "data.folder: nowhere is not there"),
    "own folder": ("train", ["data=folder", "data.path=nowhere"], "data.path: nowhere is not there"),
    "track": ("train", ["data=shapes", "evaluation.tracks=[T7]"], "evaluation.tracks: shapes (procedural) has no 'T7'"),
    "split": ("train", ["data=shapes", "alignment.split=test"], "alignment.split: 'test' is no split of shapes"),
    "layer": ("train", ["data=shapes", "alignment.layers=[0,31]"], "alignment.layers: [0, 31] must lie in 0..30"),
    "encoder": ("train", ["data=folder", "data.path=sounds", "encoder=focus_vit"], "encoder: FocusViT is for image"),
    "no training split": ("train", ["data=stamps_pope", "task=probe"], "has no training split; measure"),
    "mixture": (
        "train",
        ["mixture={a: {_target_: ima.config.settings.Entry, data: {_target_: ima.data.shapes.Shapes}, task: {_target_: "
         "ima.tasks.caption.CaptionTask}, encoder: {_target_: ima.models.encoders.audio.AisFx}}}"],
        "mixture.a.encoder: AisFx is for audio",
    ),
    "export": ("export-data", ["stamps_singel", "--out", "out"], "did you mean stamps_single"),
    "export split": ("export-data", ["shapes", "--out", "out", "--splits", "trian"], "trian"),
}  # fmt: skip
SCRIPT = """
import contextlib, io, json, sys
import ima.__main__
out = {}
for name, (command, argv, _) in json.loads(sys.argv[1]).items():
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = ima.__main__.main([command, *argv, *(["output_dir=out"] if command != "export-data" else [])])
    out[name] = [code, said.getvalue(), "torch" in sys.modules]
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, bool]]:
    """All cases in one process that has imported nothing before."""
    place = tmp_path_factory.mktemp("place")
    for number in range(4):
        wav(place / "sounds" / f"{number}.wav", number)
    (place / "sounds/table.csv").write_text("file,caption\n" + "".join(f"{n}.wav,a {n}\n" for n in range(4)))
    paths = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(CASES)], cwd=place, env=paths, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_that_needs_no_model_is_one_line_without_torch(
    refusals: dict[str, tuple[int, str, bool]], case: str
) -> None:
    code, said, has_torch = refusals[case]
    assert code == 2 and said.startswith("error: ") and CASES[case][2] in said and said.count("\n") == 1, said
    assert not has_torch


def test_encoders_say_what_they_are_for_without_being_imported() -> None:
    """As the classes say it once they are imported."""
    for choice in choices_of("encoder", CONF):
        node = yaml.safe_load((CONF / "encoder" / f"{choice}.yaml").read_text())
        if "_target_" not in node:
            continue  # a file over another one
        said = modality_of(node)
        kind: Any = get_class(node["_target_"])
        if "noise" not in choice:
            assert said == kind.modality, choice
    assert modality_of({"_target_": "nowhere.Mine"}) is None
