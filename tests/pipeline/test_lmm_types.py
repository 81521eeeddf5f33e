"""Multimodal models of every type of the table, against stock transformers: which position is what, passes, skips,
masks. Models are tiny and random, processors real."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lmm_cases import Case, case_of, lmm_of, skipped, stretched, written
from tiny_lmms import tiny, write_lmm

from ima.core.errors import UserError
from ima.core.types import Role
from ima.interventions.base import Setting
from ima.interventions.isolate import Isolate
from ima.interventions.prune.intervention import Prune
from ima.interventions.prune.scores import linears_of
from ima.interventions.skip.plan import Skip
from ima.models.hf_multimodal import KINDS, Lmm, hf, joined
from ima.models.hf_multimodal.check import check_percepts, example, moved_positions, perturbed
from ima.models.llm.decoding import own_settings
from ima.models.llm.pass_context import Generation
from ima.pipeline.hf_evaluator import LmmCalibration

IMAGES = (
    "llava", "pixtral", "mistral3", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3",
    "paligemma", "paligemma2", "idefics3", "smolvlm", "internvl", "molmo2", "phi4_multimodal",
)  # fmt: skip
VIDEOS = ("llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl")
NAMES = [f"{kind}-image" for kind in IMAGES] + [f"{kind}-video" for kind in VIDEOS]
NAMES += ["qwen2_audio-audio", "voxtral-audio"]
PARTS = ("ffn", "attn", "block")
SIX = Generation(max_new_tokens=6)


@pytest.fixture(params=NAMES)
def case(request: pytest.FixtureRequest) -> Case:
    if "smolvlm" in request.param and not importlib.util.find_spec("num2words"):
        pytest.skip("SmolVLM's processor needs num2words")
    return case_of(request.param)


def close(one: Any, other: Any, error: float = 1e-5) -> None:
    torch.testing.assert_close(one, other, rtol=error, atol=error)


def moved_by_media(case: Case, batch: Any) -> Any:
    x_BSD, roles_BS, _ = case.lmm.splice(batch)
    batch.inputs, batch.parts = perturbed(batch.inputs), [perturbed(part) for part in batch.parts]
    return moved_positions(x_BSD, case.lmm.splice(batch)[0]), roles_BS


def test_every_type_of_the_table_is_among_the_cases() -> None:
    kinds = {name.partition("-")[0] for name in NAMES} - {"smolvlm"}
    tested = {(kind.model_type, kind.processor) for kind in (lmm_of(each).kind for each in kinds)} | {("smolvlm", "")}
    assert {(kind.model_type, kind.processor) for kind in KINDS} == tested


def test_percepts_are_exactly_the_positions_that_other_media_move(case: Case) -> None:
    """Of one medium, two, and none, in one batch."""
    batch = case.batch([case.source.sample(0), case.source.two(), case.source.none()])
    ids_BS = batch.inputs["input_ids"]
    moved_BS, roles_BS = moved_by_media(case, batch)
    assert torch.equal(moved_BS, roles_BS == Role.PERCEPT)
    assert (moved_BS.sum(1) > 1).tolist() == [True, True, False]
    assert torch.equal(roles_BS == Role.PAD, batch.inputs["attention_mask"] == 0)
    for row, answer in enumerate(("a red cube", "two green balls", "it")):
        said = {role: case.lmm.llm.decode(ids_BS[row][roles_BS[row] == role].tolist()) for role in (2, 3)}
        assert said[Role.PROMPT] == "What is shown?" and said[Role.ANSWER].strip() == answer
        kept = batch.labels_BS[row][batch.labels_BS[row] != -100].tolist()
        assert kept == [*ids_BS[row][roles_BS[row] == Role.ANSWER].tolist(), case.lmm.llm.eos_id]


@torch.no_grad()
def test_a_teacher_forced_pass_is_that_of_the_stock_model(case: Case) -> None:
    batch = case.batch()
    h_BSD, roles_BS = case.states(batch)
    real_BS = roles_BS != Role.PAD
    if case.lmm.kind.alone:  # stock features depend on the batch, so that each row is compared by itself
        for row, sample in enumerate(case.source.samples()):
            inputs = case.inputs(case.batch([sample]))
            close(case.lmm.llm.logits(h_BSD[row][real_BS[row]]), case.lmm.whole(**inputs).logits[0], 1e-4)
        return
    close(case.lmm.llm.logits(h_BSD[real_BS]), case.lmm.whole(**batch.inputs, use_cache=False).logits[real_BS])


def test_a_row_alone_is_itself_in_a_padded_batch(case: Case) -> None:
    h_BSD, roles_BS = case.states(case.batch())
    for row, sample in enumerate(case.source.samples()):
        alone, roles = case.states(case.batch([sample]))
        assert torch.equal(roles[0], roles_BS[row][roles_BS[row] != Role.PAD])
        close(alone[0], h_BSD[row][roles_BS[row] != Role.PAD], 1e-4)


@torch.no_grad()
def test_generation_is_that_of_the_stock_model(case: Case) -> None:
    """Greedy and with beams, padded on the left; the stock model is told the same ids that it may not write."""
    lmm, llm = case.lmm, case.lmm.llm
    for num_beams in (1, 2):
        settings = Generation(6, num_beams)
        batch = case.batch(answers=False)
        with written(lmm.whole) as found:
            texts = lmm.generate(batch, settings)
        batches = [case.batch([sample], answers=False) for sample in case.source.samples()]
        for row, one in enumerate(batches if lmm.kind.alone else [batch]):
            with own_settings(lmm.whole, settings, llm.stop_ids, llm.pad_id, llm.bos_id) as config:
                ids = lmm.whole.generate(**case.inputs(one), generation_config=config)
            new = ids[:, one.inputs["input_ids"].shape[1] :]
            ours = found[0][row : row + 1] if lmm.kind.alone else found[0][:, batch.inputs["input_ids"].shape[1] :]
            assert torch.equal(ours[:, : new.shape[1]], new)
        assert texts == [lmm.generate(one, settings)[0] for one in batches]


def test_placeholders_are_never_written(case: Case) -> None:
    ids = sorted(case.lmm.layout.ids)

    def prefer(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return output.index_fill(-1, torch.tensor(ids), 1e4)

    handle = case.lmm.llm.model.lm_head.register_forward_hook(prefer)
    try:
        with written(case.lmm.whole) as found:
            case.lmm.generate(case.batch([case.source.sample(0)], answers=False), Generation(3))
    finally:
        handle.remove()
    assert not torch.isin(found[0][:, -3:], torch.tensor(ids)).any()


def test_nobody_reads_a_later_token_of_the_answer(case: Case) -> None:
    for sample in (case.source.sample(1), case.source.none()):
        batch = case.batch([sample])
        before, _ = case.states(batch)
        batch.inputs["input_ids"] = batch.inputs["input_ids"].clone()
        batch.inputs["input_ids"][:, -2] = (batch.inputs["input_ids"][:, -2] + 1) % 200 + 5
        after, _ = case.states(batch)
        close(after[:, :-2], before[:, :-2], 1e-6)
        assert (after[:, -2:] - before[:, -2:]).abs().max() > 1e-3


def test_a_plan_that_skips_nobody_changes_no_bit(case: Case) -> None:
    batch = case.batch()
    before, _ = case.states(batch)
    for part in PARTS:
        with Skip(part, start=0, ratio=0.0).apply(case.lmm.llm):
            assert torch.equal(case.states(batch)[0], before)


def test_a_skip_for_percepts_is_what_hooks_say_it_is(case: Case) -> None:
    """Teacher-forced, in prefill, in cached decoding and with beams; decoding is a pass over the whole."""
    lmm, blocks = case.lmm, case.lmm.llm.table.blocks[1:]
    batch, prompt = case.batch(), case.batch(answers=False)
    plain, roles_BS = case.states(batch)
    real_BS = roles_BS != Role.PAD
    prompt_BS = lmm.splice(prompt)[1]
    for part in PARTS:
        with skipped(blocks, part, roles_BS == Role.PERCEPT):
            wanted, _ = case.states(batch)
        with Skip(part, start=1).apply(lmm.llm):
            found, _ = case.states(batch)
        close(found[real_BS], wanted[real_BS])
        assert (found - plain)[roles_BS == Role.ANSWER].abs().max() > 1e-4, "others see the skip"
        for settings in (SIX, Generation(4, num_beams=2)):
            with skipped(blocks, part, prompt_BS == Role.PERCEPT):
                hooked = lmm.generate(prompt, settings)
            with Skip(part, start=1).apply(lmm.llm):
                assert lmm.generate(prompt, settings) == hooked


@torch.no_grad()
def test_cached_decoding_is_the_pass_over_the_whole(case: Case) -> None:
    lmm = case.lmm
    batch = case.batch([case.source.sample(1)], answers=False)
    length = batch.inputs["input_ids"].shape[1]
    for part in (None, *PARTS):
        plan = Skip(part or "ffn", start=1, roles=("percept", "text"), ratio=1.0 if part else 0.0, phase="both")
        with plan.apply(lmm.llm):
            with written(lmm.whole) as found:
                lmm.generate(batch, SIX)
            new = found[0] if lmm.kind.alone else found[0][:, length:]
            h_BSD, _ = case.states(stretched(case, batch, new[:, :-1]))
            logits = lmm.llm.logits(h_BSD[0, length - 1 :])
        logits[:, lmm.layout.never_written] = -torch.inf
        assert logits.argmax(-1).tolist()[: new.shape[1]] == new[0].tolist()


def test_isolated_text_does_not_see_the_media(case: Case) -> None:
    batch, other = case.batch(), case.batch()
    other.inputs, other.parts = perturbed(other.inputs), [perturbed(part) for part in other.parts]
    for num_blocks, equal in ((case.lmm.llm.num_blocks, True), (1, False)):
        with Isolate(num_blocks).apply(case.lmm.llm):
            (one, roles_BS), (two, _) = case.states(batch), case.states(other)
        text_BS = (roles_BS != Role.PERCEPT) & (roles_BS != Role.PAD)
        assert bool(((one - two)[text_BS].abs().max() < 1e-5) == equal)


def test_masks_give_every_weight_back_bit_for_bit(case: Case) -> None:
    llm, batch = case.lmm.llm, case.batch()
    before = {path: linear.weight.clone() for path, linear in linears_of(llm).items()}
    plain, _ = case.states(batch)
    mask = Prune(method="magnitude", ratio=0.5).resolve(llm, Setting())
    with mask.apply(llm):
        shares = [float((linear.weight == 0).float().mean()) for linear in linears_of(llm).values()]
        assert np.mean(shares) == pytest.approx(0.5, abs=0.02)
        assert not torch.equal(case.states(batch)[0], plain)
    assert all(torch.equal(linear.weight, before[path]) for path, linear in linears_of(llm).items())
    assert torch.equal(case.states(batch)[0], plain)


@pytest.mark.parametrize("kind", ["llava", "qwen3_vl"])
def test_statistics_of_a_mask_are_gathered_on_the_data_of_the_evaluation(kind: str) -> None:
    from ima.data.given import GivenTask

    case = case_of(f"{kind}-image")
    setting = Setting(
        {}, Path(kind), None, lambda run, num, seed: LmmCalibration(case.lmm, GivenTask(), case.source, num, seed)
    )
    mask = Prune(method="wanda", ratio=0.5, roles="percept", num_examples=2).resolve(case.lmm.llm, setting)
    assert mask.sparsity == pytest.approx(0.5, abs=0.02) and mask.load().facts["tasks"][0]["source"] == "shown"


@pytest.mark.parametrize("kind", ["qwen3_vl_moe"])
def test_a_type_whose_blocks_are_known_not_to_fit_is_refused_by_name(kind: str) -> None:
    made = tiny(kind)
    with pytest.raises(UserError, match=f"type '{kind}' is refused: its experts are no nn.Linear"):
        Lmm(made.model, made.processor, kind)


def test_a_type_that_is_not_in_the_table_is_measured_where_the_general_rule_holds_and_refused_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ima.models.hf_multimodal import kinds, whole

    monkeypatch.setattr(whole, "kind_of", lambda model_type, processor="": kinds.Kind(model_type, listed=False))
    assert Lmm(tiny("qwen2_vl").model, tiny("qwen2_vl").processor, "mine").modalities == ("image",)
    with pytest.raises(UserError, match="'llava_next' is not in the table and the general rule does not fit it"):
        Lmm(tiny("llava_next").model, tiny("llava_next").processor, "mine")


@pytest.mark.parametrize("kind", [*IMAGES, "qwen2_audio", "voxtral"])
def test_a_folder_is_loaded_and_its_percepts_are_proved(kind: str, tmp_path: Path) -> None:
    if kind == "smolvlm" and not importlib.util.find_spec("num2words"):
        pytest.skip("SmolVLM's processor needs num2words")
    lmm = hf(str(write_lmm(tmp_path, kind)), "float32")
    assert lmm.kind == lmm_of(kind).kind and lmm.modalities == lmm_of(kind).modalities
    check_percepts(lmm, lmm.one)


def test_a_template_that_writes_the_first_token_has_it_once() -> None:
    """As transformers does it, where the tokenizer would write it too."""
    from tokenizers.processors import TemplateProcessing

    made = copy.deepcopy(tiny("llava").processor)
    made.tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    lmm = Lmm(tiny("llava").model, made, "llava")
    for template in (made.chat_template, "<s>" + made.chat_template):
        made.chat_template = template
        ids = lmm.one("What is this?", [example("image")], "image").inputs["input_ids"][0].tolist()
        assert ids[0] == 1 and ids.count(1) == 1


@pytest.mark.parametrize("kind", ["llava", "gemma3", "qwen2_audio"])
def test_the_assistant_mask_of_a_template_marks_our_answer(kind: str) -> None:
    """Roles of answers are laid out here; transformers' own mask over the same conversation says the same."""
    case = case_of(f"{kind}-{'audio' if kind == 'qwen2_audio' else 'image'}")
    batch, modality, processor = case.batch([case.source.sample(0)]), case.source.modality, case.lmm.processor
    medium: Any = case.source.medium(case.source.sample(0))
    content = [
        {"type": modality, modality: getattr(medium, "wave", medium)},
        {"type": "text", "text": "What is shown?"},
    ]
    talk = [{"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": "a red cube"}]}]  # fmt: skip
    made = processor.apply_chat_template(
        [talk], tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True
    )
    marked = made["input_ids"][0][torch.as_tensor(made["assistant_masks"])[0].bool()].tolist()
    ours = batch.inputs["input_ids"][0][batch.roles_BS[0] == Role.ANSWER].tolist()
    assert case.lmm.llm.decode(marked).strip() == case.lmm.llm.decode(ours).strip() == "a red cube"


def test_pictures_in_fewer_tiles_are_filled_with_zeros() -> None:
    found = joined([torch.ones(1, 2, 3), torch.ones(1, 1, 3)])
    assert found.shape == (2, 2, 3) and float(found.sum()) == 9


def test_the_proof_of_percepts_notices_a_wrong_role() -> None:
    lmm = lmm_of("llava")

    def wrong(prompt: str, media: Any, modality: str) -> Any:
        batch = lmm.one(prompt, media, modality)
        batch.roles_BS[0, -1] = Role.PERCEPT
        return batch

    check_percepts(lmm, lmm.one)
    with pytest.raises(UserError, match="1 positions of a image"):
        check_percepts(lmm, wrong)
