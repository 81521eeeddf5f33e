"""Whole multimodal models that were trained elsewhere, measured by the suite."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from launcher import Launcher
from PIL import Image
from report_runs import write_page
from tiny_lmms import KINDS, write_lmm

from ima.alignment.tap import Tap
from ima.config.settings import Alignment
from ima.core.errors import UserError
from ima.core.types import Role, Sample, Site
from ima.data.shapes import Shapes
from ima.interventions.prune.intervention import Prune
from ima.models.hf_multimodal import KINDS as TABLE
from ima.models.hf_multimodal import Lmm, hf
from ima.models.hf_multimodal.kinds import REFUSED
from ima.models.llm.pass_context import Generation
from ima.pipeline.evaluate import plan_of_whole
from ima.pipeline.hf_evaluator import LmmCollate, LmmEvaluator
from ima.runs.record import read_result
from ima.tasks.caption import CaptionTask


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: write_lmm(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, Lmm]:
    return {kind: hf(str(folder), "float32") for kind, folder in folders.items()}


class Sized(Shapes):
    """Pictures of several sizes and shapes, so that models see different numbers of tokens."""

    def medium(self, sample: Sample) -> Image.Image:
        number = sum(map(ord, sample.id))
        return super().medium(sample).resize([(56, 56), (112, 56), (40, 90)][number % 3])


SOURCE = Sized(num_train=4, num_test=6)
TASK = CaptionTask("What is shown?")


def samples() -> list[Sample]:
    """With answers of different lengths."""
    return [
        dataclasses.replace(sample, references=(" ".join(["a shape"] * (index + 1)),))
        for index, sample in enumerate(SOURCE.samples("val")[:3])
    ]


def test_the_page_of_types_names_those_of_the_table() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text()
    named = set(re.findall(r"^\| `(\w+)`", page, flags=re.M))
    assert named == {kind.model_type for kind in TABLE} | set(REFUSED)


def batch_of(lmm: Lmm, chosen: list[Sample], answers: bool = True) -> Any:
    return LmmCollate(TASK, SOURCE, lmm, answers)([(sample, 0) for sample in chosen])


@pytest.mark.parametrize("kind", KINDS)
def test_the_tap_sees_the_states_of_the_stock_model_and_the_loss_is_its_own(models: dict[str, Lmm], kind: str) -> None:
    lmm, batch = models[kind], batch_of(models[kind], samples())
    seen: dict[int, torch.Tensor] = {}

    class Keep:
        def begin(self, roles_BS: torch.Tensor, sample_ids: Any) -> None: ...

        def see(self, layer: int, site: Site, x_BSD: torch.Tensor) -> None:
            seen[layer] = x_BSD.clone()

        def end(self) -> None: ...

    with torch.no_grad(), Tap(lmm.llm, [Keep()]) as tap:
        x_BSD, roles_BS, labels_BS = lmm.splice(batch)
        with tap.batch(roles_BS, [sample.id for sample in batch.samples]):
            h_BSD = lmm.llm(x_BSD, roles_BS)
        stock = lmm.whole(**batch.inputs, labels=labels_BS, output_hidden_states=True, use_cache=False)
    real = roles_BS != Role.PAD
    for layer, state in enumerate(stock.hidden_states[:-1]):  # the last one of transformers is after the norm
        torch.testing.assert_close(seen[layer][real], state[real], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(h_BSD[real], stock.hidden_states[-1][real], rtol=1e-5, atol=1e-5)
    num = int((labels_BS[:, 1:] != -100).sum())
    assert float(lmm.llm.loss_sum(h_BSD, labels_BS)) / num == pytest.approx(float(stock.loss), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_roles_are_those_of_the_picture_the_question_and_the_answer(models: dict[str, Lmm], kind: str) -> None:
    lmm, chosen = models[kind], samples()
    batch = batch_of(lmm, chosen)
    ids_BS = batch.inputs["input_ids"]
    for ids_S, roles_S, labels_S, sample in zip(ids_BS, batch.roles_BS, batch.labels_BS, chosen, strict=True):
        said = {role: lmm.llm.decode(ids_S[roles_S == role].tolist()) for role in (Role.PROMPT, Role.ANSWER)}
        assert said[Role.PROMPT] == "What is shown?" and said[Role.ANSWER].strip() == sample.references[0]
        placeholder_S = torch.isin(ids_S, torch.tensor(sorted(lmm.layout.ids)))
        assert (placeholder_S | (roles_S != Role.PERCEPT)).all() and (roles_S == Role.PERCEPT).sum() > 1
        assert labels_S[labels_S != -100].tolist() == [*ids_S[roles_S == Role.ANSWER].tolist(), lmm.llm.eos_id]


def test_pictures_of_other_shapes_have_other_numbers_of_tokens(models: dict[str, Lmm]) -> None:
    counts = {kind: (batch_of(lmm, samples()).roles_BS == Role.PERCEPT).sum(1).unique() for kind, lmm in models.items()}
    assert len(counts["llava"]) == 1 and len(counts["qwen2_vl"]) > 1 and len(counts["llava_next"]) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_scores_do_not_depend_on_batches(models: dict[str, Lmm], kind: str) -> None:
    found = []
    for batch_size in (1, 3):
        loss, suite = LmmEvaluator(models[kind], TASK, SOURCE, batch_size).teacher_forced(samples(), Alignment())
        assert suite is not None
        found.append([loss] + [row.value for row in suite.rows({"run": "r"}, {})[0]])
    torch.testing.assert_close(*map(torch.tensor, found), rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_generation_in_a_batch_is_that_of_each_sample_alone(models: dict[str, Lmm], kind: str) -> None:
    lmm, settings = models[kind], Generation(max_new_tokens=6)
    together = lmm.generate(batch_of(lmm, samples(), answers=False), settings)
    assert together == [lmm.generate(batch_of(lmm, [sample], answers=False), settings)[0] for sample in samples()]


def test_a_processor_without_a_template_is_asked_as_llava_is(tmp_path: Path) -> None:
    lmm = hf(str(write_lmm(tmp_path, "llava", template=False)), "float32")
    ids_S = batch_of(lmm, samples()[:1]).inputs["input_ids"][0].tolist()
    assert lmm.processor.tokenizer.decode(ids_S, skip_special_tokens=True).startswith(
        "USER: \nWhat is shown? ASSISTANT: a"
    )


def test_a_template_of_a_language_model_takes_the_turn_as_one_text(models: dict[str, Lmm]) -> None:
    layout, processor = models["llava"].layout, models["llava"].processor
    before = processor.chat_template
    try:
        processor.chat_template = "{% for m in messages %}[{{ m['role'] + ': ' + m['content'] }}]{% endfor %}"
        assert layout.around("What?", "image", 2) == ("[user: <image>\n<image>\n", "]")
        processor.chat_template = "hello"
        with pytest.raises(UserError, match="shows no image and question"):
            layout.around("What?", "image", 1)
    finally:
        processor.chat_template = before


def command(folder: Path, out: Path) -> list[str]:
    return ["lmm=hf", f"lmm.path={folder}", "lmm.dtype=float32", "data=shapes", "data.num_train=4", "data.num_test=4",
            f"output_dir={out}", "alignment=full", "alignment.num_reservoir=4"]  # fmt: skip


def test_a_mask_is_calibrated_on_the_data_of_the_evaluation_and_on_no_run(models: dict[str, Lmm]) -> None:
    evaluator = LmmEvaluator(models["llava"], TASK, SOURCE, 2)
    with pytest.raises(UserError, match="prune.run: x; a whole model is calibrated on the samples"):
        plan_of_whole(evaluator, {"prune": Prune(run="x")}, samples())


def test_one_command_measures_a_whole_model(launcher: Launcher, folders: dict[str, Path], tmp_path: Path) -> None:
    argv = command(folders["qwen2_vl"], tmp_path)
    done = launcher.run("evaluate", argv)
    assert done.code == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    result = read_result(folder)
    assert result["status"] == "ok" and -1 <= result["metrics"]["ima/mean"] <= 1 and "T0/chair_s" in result["metrics"]
    assert folder.name.startswith(folders["qwen2_vl"].name) and (folder / "alignment.safetensors").is_file()
    html = write_page([folder]).read_text()
    assert "IMA" in html and folder.name in html and "as evaluated" in html and "0 = untrained adapter" not in html
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert rows and all(row["epoch"] is None for row in rows), "it was trained elsewhere"
    again = launcher.run("evaluate", argv)
    assert again.code == 0 and "evaluated already" in again.stdout


def test_one_command_skips_in_a_whole_model_and_says_what_that_saves(
    launcher: Launcher, folders: dict[str, Path], tmp_path: Path
) -> None:
    skips = ["intervention=[skip_ffn,prune]", "intervention.skip_ffn.start=1", "intervention.prune.num_examples=2"]
    done = launcher.run("evaluate", command(folders["llava_next"], tmp_path) + skips)
    assert done.code == 0, done.stderr
    assert "no ffn for percept" in done.stdout and "measured: the prompt's pass takes" in done.stdout
    (folder,) = tmp_path.iterdir()
    result = read_result(folder)
    kinds = [each["kind"] for each in result["facts"]["plan"]["interventions"]]
    assert kinds == ["skip", "mask"] and 0 < result["facts"]["plan"]["flops"]["prefill_left"] < 1
    assert result["facts"]["plan"]["interventions"][1]["sparsity"] == pytest.approx(0.5, abs=0.02)
    assert "skip" in write_page([folder]).read_text()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "lmm.path: missing"),
        (["lmm.path=nowhere/to/be/found"], "lmm.path: nowhere/to/be/found cannot be loaded"),
        (["lmm.path={llava}", "checkpoint=outputs/demo"], "checkpoint: not together with lmm"),
        (
            ["lmm.path={llava}", "intervention=skip_block", "intervention.skip_block.start=9"],
            "skip_block.start: blocks",
        ),
        (["lmm.path={llava}", "llm.dtype=float32"], "llm.dtype: not together with lmm"),
        (["lmm.path={llava}", "lmm.dtyp=float32"], "no 'dtyp' in lmm"),
        (["lmm.path={llava}", "data=stamps_audio"], "is audio; "),
    ],
)
def test_a_mistake_is_one_line(
    argv: list[str], said: str, launcher: Launcher, folders: dict[str, Path], tmp_path: Path
) -> None:
    done = launcher.run("evaluate", ["lmm=hf", *(a.format(**folders) for a in argv), f"output_dir={tmp_path}"])
    errors = [line for line in done.stderr.splitlines() if not line.startswith("StampWorld's sounds")]
    assert done.code == 2 and said in errors[0] and len(errors) == 1, done.stderr


def test_a_model_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    from ima.models.llm.tiny import tiny_model, tiny_tokenizer

    tiny_model("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="type 'llama' is not supported; supported are gemma3"):
        hf(str(tmp_path))


@pytest.mark.parametrize("number", [None, 0])
@pytest.mark.parametrize("key", ["patch_size", "num_additional_image_tokens"])
def test_a_processor_that_lacks_a_number_is_one_line(folders: dict[str, Path], key: str, number: int | None) -> None:
    """Old checkpoints have neither: too few places for the features, or an error of arithmetic."""
    lmm = hf(str(folders["llava"]), "float32")
    setattr(lmm.layout.processor, key, number)
    with pytest.raises(UserError, match=r"is its processor_config.json whole \(patch_size") as refused:
        lmm.splice(lmm.one("What?", [SOURCE.medium(SOURCE.samples("val")[0])], "image"))
    assert "\n" not in str(refused.value)
