"""`import ima` in a notebook: the blocks of docs/python.md run as they stand and agree with what scripts measure."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_lmms import write_lmm

import ima
from ima.__main__ import main
from ima.core.errors import UserError
from ima.core.types import Role

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "tests" / "artefacts" / "run"
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), flags=re.S)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the page names: a run, pictures, a model of one's own, masks."""
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "outputs").mkdir()
    (folder / "outputs" / "demo").symlink_to(RUN)
    draw = np.random.default_rng(0)
    for name in ("dog", "cat"):
        Image.fromarray(draw.integers(0, 255, (60, 70, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    write_lmm(folder / "llava-hf" / "llava-1.5-7b-hf", "llava")
    for name in ("a", "b"):
        shapes = {"model.layers.0.mlp.up_proj": draw.random((4, 16)) > 0.5}
        ima.Mask.of(shapes, {"weights": "w", "shapes": {}}).save(folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def model() -> Any:
    return ima.load_run(RUN).load_model("cpu")


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype=np.uint8))


def test_the_blocks_of_the_page_run_in_order_with_ima_alone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    names: dict[str, Any] = {}
    assert len(BLOCKS) >= 5
    for block in BLOCKS:
        assert "from ima" not in block and "import torch" not in block
        if "output.hidden_states" in block:  # states of a model of one's own
            names["roles"] = torch.tensor([[Role.PERCEPT, Role.PERCEPT, Role.PROMPT, Role.ANSWER]] * 3)
            states = [torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(layer)) for layer in range(3)]
            names["output"] = type("Output", (), {"hidden_states": states})
        exec(block, names)  # noqa: S102 (our own documentation)
    assert (place / "states.safetensors").is_file()


def test_the_block_of_readme_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)
    monkeypatch.chdir(place)
    names: dict[str, Any] = {}
    exec(block, names)  # noqa: S102 (our own documentation)
    assert {"model", "lmm"} <= names.keys()


def test_each_of_the_three_snippets_has_at_most_ten_lines() -> None:
    for block in BLOCKS:
        assert len([line for line in block.splitlines() if line.strip()]) <= 10


def test_alignment_of_given_states_is_that_of_the_model(model: Any) -> None:
    pictures, texts = [picture(seed) for seed in range(4)], ["a dog", "a red circle", "a cat and a dog", "a tree"]
    measured = ima.measure_alignment(model, pictures, texts=texts).query("site == 'resid_post' and variant == 'raw'")
    kept = ima.hidden_states(model, pictures, texts=texts)
    again = ima.measure_alignment(
        [kept.states[ima.Site.RESID_POST, layer] for layer in kept.layers], roles=kept.roles_NS
    )
    keys = ["score", "layer_a", "layer_b", "role_a", "role_b"]
    both = measured.merge(again.query("variant == 'raw'"), on=keys, suffixes=("", "_again"))
    assert len(both) > 20
    np.testing.assert_allclose(both["value"], both["value_again"], atol=1e-5)


def test_hidden_states_are_those_that_stock_transformers_gives(model: Any) -> None:
    kept = ima.hidden_states(model, [picture(1)], texts=["a dog"])
    x_BSD = kept.states[ima.Site.RESID_POST, 0]
    with torch.no_grad():
        stock = model.llm.model(inputs_embeds=x_BSD.to(model.llm.dtype), output_hidden_states=True).hidden_states
    for layer in kept.layers[:-1]:  # transformers norms the last one
        torch.testing.assert_close(kept.states[ima.Site.RESID_POST, layer], stock[layer].float(), atol=1e-4, rtol=1e-4)
    assert [len(part) for part in kept.of(1, "percept")] == [int((kept.roles_NS == Role.PERCEPT).sum())]
    assert torch.isnan(kept.mean(1, "soft")).all()


def test_answers_do_not_depend_on_what_else_is_asked(model: Any) -> None:
    alone = [model.generate(picture(seed)) for seed in range(3)]
    assert model.generate([picture(seed) for seed in range(3)]) == alone


def test_an_intervention_acts_inside_and_leaves_nothing(model: Any) -> None:
    states = lambda: ima.hidden_states(model, [picture(1)], texts=["a dog"]).states[ima.Site.RESID_POST, 2]  # noqa: E731
    before = states()
    with ima.intervene(model, ima.Skip(part="block", roles=["percept"], start=1)):
        inside = states()
    assert not torch.equal(inside, before) and torch.equal(states(), before)
    assert 0 < ima.flops(model, ima.Skip(part="block", start=1))["prefill_left"] < 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nothing.png", "nothing.png: no such file"),
        (3, "a picture of shape"),
        (np.zeros((4, 4)), "give a path, a PIL image"),
    ],
)
def test_what_is_no_picture_is_one_line(model: Any, given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        model.generate(given)


def test_texts_that_do_not_fit_the_media_are_one_line(model: Any) -> None:
    with pytest.raises(UserError, match="texts: 1 for 2 media"):
        ima.measure_alignment(model, [picture(1), picture(2)], texts=["a dog"])
    with pytest.raises(UserError, match="give what is said about each medium"):
        ima.measure_alignment(model, [picture(1)])
    with pytest.raises(UserError, match="states: shapes"):
        ima.measure_alignment([torch.zeros(2, 3, 4)], roles=torch.zeros(2, 4))


def test_the_command_says_what_the_model_says(model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(5).save(tmp_path / "dog.png")
    assert main(["generate", f"checkpoint={RUN}", str(tmp_path / "dog.png"), "device=cpu"]) == 0
    assert capsys.readouterr().out.strip() == f"{tmp_path / 'dog.png'}: {model.generate(tmp_path / 'dog.png')}".strip()
    assert main(["generate", "checkpont=x", "a.png"]) == 2
    assert "checkpont: no such key; did you mean checkpoint?" in capsys.readouterr().err


def test_import_is_light_and_every_name_is_there() -> None:
    code = "import sys, ima; print({'torch', 'numpy', 'hydra', 'transformers'} & set(sys.modules) or 'light')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "light"
    for name in ima.__all__:
        assert getattr(ima, name) is not None and name in dir(ima)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ima.nothing


def test_a_config_that_was_composed_trains_as_its_overrides_do(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("ima.pipeline.api.runs.run_fit", lambda config: seen.append(config) or 0)
    monkeypatch.setattr("ima.pipeline.api.runs.load_run", lambda folder: folder)
    words = ["encoder=noise", "seed=3", "name=mine"]
    composed = ima.compose(words)
    changed = ima.compose([*words, "optimizer.lr=0.5"])
    assert [ima.fit(one) for one in (words, composed, changed)] == [Path("outputs/mine")] * 3
    assert seen[0] == seen[1] and type(seen[1]) is dict
    assert seen[2] == {**seen[0], "optimizer": {**seen[0]["optimizer"], "lr": 0.5}}
    with pytest.raises(UserError, match="sede"):
        ima.fit(["sede=3"])
