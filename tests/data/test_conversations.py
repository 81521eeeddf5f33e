"""Conversations: chat templates lay them out, only the assistant's turns are learnt, LLaVA's files are read."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from launcher import Launcher
from PIL import Image

from ima.core.errors import UserError
from ima.core.types import MEDIUM, Role, Sample
from ima.data.collate import Collate, NoMediaInputs
from ima.data.corpora.conversations import Conversations
from ima.models.llm.chat import TEMPLATES, ChatFormat
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.load import tiny
from ima.tasks.caption import CaptionTask
from ima.tasks.conversation import ConversationTask

FORMATS = sorted(TEMPLATES)
LLMS: dict[str, FrozenLLM] = {}


def llm_of(chat: str) -> FrozenLLM:
    if chat not in LLMS:
        LLMS[chat] = tiny(chat=chat)
    return LLMS[chat]


def sample_of(turns: list[tuple[str, str]], media: int = 0) -> Sample:
    shown = tuple(Sample(f"m/{index}", "train", "train", "image", ()) for index in range(media))
    return Sample("c/1", "train", "train", "image", ("x",), media=shown, turns=tuple(turns))


ASKED = [("user", "What is it?"), ("assistant", "A cat."), ("user", "Sure?"), ("assistant", "Yes.")]
SNAPSHOTS = {
    "chatml": "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n[A cat.<|im_end|>]\n<|im_start|>user\n"
    "Sure?<|im_end|>\n<|im_start|>assistant\n[Yes.<|im_end|>]",
    "gemma": "<s><start_of_turn>user\nWhat is it?<end_of_turn>\n<start_of_turn>model\n[A cat.<end_of_turn>]\n"
    "<start_of_turn>user\nSure?<end_of_turn>\n<start_of_turn>model\n[Yes.<end_of_turn>]",
    "llama2": "<s>[INST] What is it? [/INST][ A cat. </s>]<s>[INST] Sure? [/INST][ Yes. </s>]",
    "llama3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhat is it?<|eot_id|><|start_header_id|>"
    "assistant<|end_header_id|>\n\n[A cat.<|eot_id|>]<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n[Yes.<|eot_id|>]",
    "phi3": "<|user|>\nWhat is it?<|end|>\n<|assistant|>\n[A cat.<|end|>]\n<|user|>\nSure?<|end|>\n<|assistant|>\n"
    "[Yes.<|end|>]",
    "vicuna": "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions. USER: What is it? ASSISTANT:[ A cat.</s>]USER: Sure? "
    "ASSISTANT:[ Yes.</s>]",
}


@pytest.mark.parametrize("chat", FORMATS)
def test_each_format_looks_as_it_does_and_supervises_what_is_in_brackets(chat: str) -> None:
    llm = llm_of(chat)
    ids, _, labels, _ = Collate(ConversationTask(), llm, NoMediaInputs()).lay(sample_of(ASKED), 0)
    shown, inside = "", False
    for token, label in zip(ids, labels, strict=True):
        if (label != -100) != inside:
            shown, inside = shown + ("]" if inside else "["), not inside
        shown += llm.tokenizer.decode([token])
    assert shown + "]" * inside == SNAPSHOTS[chat]


WORDS = st.text(st.characters(codec="ascii", categories=("L", "N", "P", "Z")), min_size=1, max_size=12).filter(
    lambda text: bool(text.strip())
)
TRICKS = st.sampled_from(
    ["<|im_end|>", "</s>", "ASSISTANT: no", "<|user|>", "<end_of_turn>", "user", "[/INST]", "é 漢"]
)
SAID = st.one_of(WORDS, TRICKS)
TALKS = st.lists(st.tuples(SAID, SAID), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(talk=TALKS, chat=st.sampled_from(FORMATS), places=st.lists(st.integers(0, 3), max_size=3), system=st.booleans())
def test_what_is_learnt_is_the_assistants_turns_with_their_ends_and_nothing_else(
    talk: list[tuple[str, str]], chat: str, places: list[int], system: bool
) -> None:
    llm = llm_of(chat)
    marks = [index % len(talk) for index in places]
    turns = [("system", "Be kind.")] if system and chat not in ("llama2", "gemma") else []
    for index, (asked, said) in enumerate(talk):
        turns += [("user", MEDIUM * marks.count(index) + asked), ("assistant", said)]
    sample = sample_of(turns, len(places))
    laid = Collate(ConversationTask(), llm, NoMediaInputs()).lay(sample, 0)
    assert len(laid.ids) == len(laid.roles) == len(laid.labels) and len(laid.places) == len(places)
    learnt = [label for label in laid.labels if label != -100]
    assert all(label in (-100, token) for label, token in zip(laid.labels, laid.ids, strict=True))
    lead = " " if chat in ("vicuna", "llama2") else ""
    end = {"llama2": " </s>", "vicuna": "</s>"}.get(chat) or llm.tokenizer.decode([llm.stop_ids[-1]])
    assert llm.tokenizer.decode(learnt) == "".join(lead + said.strip() + end for _, said in talk)
    roles = [Role(role) for role in laid.roles]
    answers = [token for token, role in zip(laid.ids, roles, strict=True) if role == Role.ANSWER]
    prompts = [token for token, role in zip(laid.ids, roles, strict=True) if role == Role.PROMPT]
    assert llm.tokenizer.decode(answers) == "".join(lead + said.strip() for _, said in talk)
    assert not {*answers, *prompts} & llm.chat.special, "what is said holds no special token"
    # generation sees the same ids up to where the last answer begins
    asked_only = Collate(ConversationTask(), llm, NoMediaInputs(), answers=False).lay(sample, 0)
    last = len(laid.labels) - next(i for i, label in enumerate(reversed(laid.labels)) if label == -100)
    assert asked_only.ids == laid.ids[:last]


def test_media_stand_at_their_marks() -> None:
    llm = llm_of("chatml")
    turns = [("user", f"{MEDIUM}\nand {MEDIUM}?"), ("assistant", "two")]
    laid = Collate(ConversationTask(), llm, NoMediaInputs()).lay(sample_of(turns, 2), 0)
    before = [llm.tokenizer.decode(laid.ids[:place]) for place in laid.places]
    assert before == ["<|im_start|>user\n", "<|im_start|>user\n\nand "]


def test_a_task_of_one_question_is_asked_by_the_template_too() -> None:
    llm = llm_of("chatml")
    sample = Sample("s", "train", "train", "image", ("cat",))
    laid = Collate(CaptionTask(prompt="Name it."), llm, NoMediaInputs()).lay(sample, 0)
    assert llm.tokenizer.decode(laid.ids) == (
        "<|im_start|>user\n\nName it.<|im_end|>\n<|im_start|>assistant\ncat<|im_end|>"
    )
    assert len(laid.places) == 1 and llm.tokenizer.decode(laid.ids[: laid.places[0]]) == "<|im_start|>user\n"


@pytest.mark.parametrize(
    ("turns", "media", "said"),
    [
        ([("user", "a"), ("assistant", " ")], 0, "sample c/1: its target text is empty"),
        ([("user", f"{MEDIUM} a"), ("assistant", "b")], 0, "sample c/1: its text has places for 1 media, it has 0"),
        ([("user", "a"), ("assistant", "b")], 2, "sample c/1: its text has places for 0 media, it has 2"),
    ],
)
def test_what_cannot_be_learnt_is_refused_by_name(turns: Any, media: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Collate(ConversationTask(), llm_of("chatml"), NoMediaInputs()).lay(sample_of(turns, media), 0)


def test_a_long_conversation_is_cut_and_refused_where_no_answer_is_left() -> None:
    sample = sample_of(ASKED)
    llm = llm_of("chatml")
    whole = Collate(ConversationTask(), llm, NoMediaInputs()).lay(sample, 0)
    first = next(index for index, label in enumerate(whole.labels) if label != -100)
    cut = Collate(ConversationTask(), llm, NoMediaInputs(), max_tokens=first + 3).lay(sample, 0)
    assert cut.ids == whole.ids[: first + 3] and sum(label != -100 for label in cut.labels) == 3
    with pytest.raises(UserError, match="sample c/1: no token of it is supervised"):
        Collate(ConversationTask(), llm, NoMediaInputs(), max_tokens=first).lay(sample, 0)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", "does not end the assistant's turns"),
        ("{% for m in messages %}{{ m['content'] }}<s>{% endfor %}", "does not end the assistant's turns"),
        ("{{ messages[-1]['content'] }}</s>", "drops, moves or repeats turn 0"),
        ("{{ raise_exception('no') }}", "cannot lay out"),
        ("nowhere.jinja", "is no format and no file"),
    ],
)
def test_a_template_that_will_not_do_is_refused(template: str, said: str) -> None:
    from ima.models.llm.tiny import tiny_tokenizer

    with pytest.raises(UserError, match=said):
        ChatFormat(tiny_tokenizer(), template)
    with pytest.raises(UserError, match="brings no chat template"):
        ChatFormat(tiny_tokenizer(), "tokenizer")


def test_generation_ends_at_the_end_of_a_turn() -> None:
    llm = llm_of("chatml")
    assert llm.stop_ids == [llm.eos_id, llm.tokenizer.convert_tokens_to_ids("<|im_end|>")]


# -- files -------------------------------------------------------------------------------------------------------------

TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
RECORDS = [
    {"id": "a", "image": "x/0.png", "conversations": TALK},
    {"id": "b", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    {"id": "c", "image": ["x/0.png", "x/1.png"], "conversations": [
        {"from": "human", "value": "<image> or <image>?"}, {"from": "gpt", "value": "The first."},
        {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."}]},
    {"id": "c", "image": "x/1.png", "conversations": [
        {"from": "human", "value": "Say it."}, {"from": "gpt", "value": "Two."}]},
]  # fmt: skip


def picture(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 3), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder: Path, records: Any = RECORDS, tar: bool = False) -> dict[str, Any]:
    (folder / "talk.json").write_text(json.dumps(records))
    table: dict[str, Any] = {"annotations": "talk.json", "media": "{image}"}
    if tar:
        with tarfile.open(folder / "images.tar", "w") as archive:
            for index in range(2):
                member = tarfile.TarInfo(f"./x/{index}.png")
                member.size = len(picture(index + 7))
                archive.addfile(member, io.BytesIO(picture(index + 7)))
        table["tar"] = "images.tar"
    else:
        (folder / "x").mkdir(exist_ok=True)
        for index in range(2):
            (folder / "x" / f"{index}.png").write_bytes(picture(index + 7))
    return {"train": table}


@pytest.mark.parametrize("tar", [False, True], ids=["folder", "tar"])
def test_llava_files_are_read_with_no_one_or_several_pictures(tmp_path: Path, tar: bool) -> None:
    source = Conversations(str(tmp_path), write(tmp_path, tar=tar), "llava", num_val=1)
    train, val = source.samples("train"), source.samples("val")
    assert source.splits == ("train", "val") and [len(train), len(val)] == [3, 1]
    assert [len(sample.media_samples) for sample in (*train, *val)] == [1, 0, 2, 1]
    assert train[0].turns == (("user", f"{MEDIUM}\nWhat?"), ("assistant", "A cat."))
    assert train[2].turns[0] == ("user", f"{MEDIUM} or {MEDIUM}?") and train[2].references == ("Yes.",)
    assert val[0].turns[0] == ("user", f"{MEDIUM}\nSay it."), "a picture without a mark stands first"
    reds = [source.medium(medium).getpixel((0, 0))[0] for medium in train[2].media_samples]  # type: ignore[union-attr]
    assert reds == [7, 8]
    assert train[0].media_samples[0].medium_key == train[2].media_samples[0].medium_key, "a picture is encoded once"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"conversations": TALK[:1]}, "gpt last"),
        ({"conversations": [*TALK, {"from": "robot", "value": "x"}]}, "key 'from' is 'robot'"),
        ({"conversations": [TALK[0], {"from": "gpt", "value": " "}]}, "gpt says nothing"),
        ({"image": ["x/0.png", "x/1.png"]}, "1 times <image> in the text, 2 image given"),
        ({"image": 3}, "must be a path or a list of paths"),
        ({"image": "../secret.png"}, "outside the data folder"),
    ],
)
def test_a_record_that_is_not_as_the_format_says_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    records = [*RECORDS, {**RECORDS[0], **change}]
    source = Conversations(str(tmp_path), write(tmp_path, records), "llava", num_val=0)
    with pytest.raises(UserError, match=said) as caught:
        source.samples("train")
    assert "talk.json: [4]" in str(caught.value)


def test_a_run_on_conversations_of_several_turns_ends_with_all_its_measurements(
    launcher: Launcher, tmp_path: Path
) -> None:
    """Each validation sample is asked its last question, the turns before it given; blind too, once a text."""
    said = [("What is it?", "A cat."), ("Sure?", "Yes.")]
    turns = [turn for ask, answer in said for turn in (
        {"from": "human", "value": ask}, {"from": "gpt", "value": answer})]  # fmt: skip
    first = {"from": "human", "value": f"<image>\n{said[0][0]}"}
    talk = [
        {"id": str(index), "image": f"x/{index % 2}.png", "conversations": [first, *turns[1:]]} for index in range(9)
    ]
    talk[-1] = talk[-1] | {"conversations": [first, {"from": "gpt", "value": "A dog."}, *turns[2:]]}
    write(tmp_path, talk)
    argv = ["llm=tiny", "llm.chat=chatml", "data=llava_665k", "task=conversation", "encoder=noise", "encoder.dim=8",
            f"data.folder={tmp_path}", f"data.media={tmp_path}", "data.splits.train.annotations=talk.json",
            "data.num_val=3", "encoder.num_tokens=4", "adapter.hidden=16", "adapter.grid=1", "trainer.max_epochs=1",
            "trainer.accelerator=cpu", "task.max_new_tokens=4", "logger=none", f"output_dir={tmp_path}",
            "name=talk"]  # fmt: skip
    done = launcher.run("train", argv)
    assert done.code == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "talk/predictions.jsonl").read_text().splitlines()]
    by_track = {track: [line for line in lines if line["track"] == track] for track in ("val", "blind")}
    assert [len(found) for found in by_track.values()] == [3, 3] and len(lines) == 6
    assert all(line["references"] == ["Yes."] and line["question"] == "What is it?" for line in lines)
    metrics = json.loads((tmp_path / "talk/result.json").read_text())["metrics"]
    assert {"val/rouge_l", "blind/rouge_l", "val/loss", "ima/mean"} <= metrics.keys()


def test_blind_samples_that_show_the_same_text_share_a_generation_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import dataclasses

    from ima.pipeline.evaluator import Evaluator
    from ima.tasks.choice import ChoiceTask

    llm = llm_of("chatml")
    talks = [ASKED, ASKED, [("user", "What is it?"), ("assistant", "A dog."), *ASKED[2:]]]
    samples = [dataclasses.replace(sample_of(talk), id=f"c/{index}") for index, talk in enumerate(talks)]
    asked: list[str] = []

    class Model:
        def __init__(self) -> None:
            self.llm, self.device = llm, "cpu"

        def generate(self, batch: Any, _settings: Any) -> list[str]:
            asked.extend(sample.id for sample in batch.samples)
            return [f"said {sample.turns[1][1]}" for sample in batch.samples]

    nothing: Any = None
    evaluator = Evaluator(Model(), ConversationTask(), nothing, NoMediaInputs(), 4)  # type: ignore[arg-type]
    found = evaluator.predict(samples, blind=True)
    assert [prediction.text for prediction in found] == ["said A cat.", "said A cat.", "said A dog."]
    assert len(set(asked)) == len(asked) == 2, "what is shown names the draw, not the sample that comes last"
    # of one question, but other options to choose from
    options = [dataclasses.replace(sample_of([]), question="Which?", facts={"choices": names}, id=name)
               for name, names in (("a", ("x", "y")), ("b", ("u", "v")))]  # fmt: skip
    choosing = Evaluator(Model(), ChoiceTask("{question}", "likelihood"), nothing, NoMediaInputs(), 4)  # type: ignore[arg-type]
    monkeypatch.setattr(choosing, "_likeliest", lambda chosen, _percepts: {s.id: s.facts["choices"][0] for s in chosen})
    assert [prediction.text for prediction in choosing.predict(options, blind=True)] == ["x", "u"]


@pytest.mark.real
def test_the_embedded_models_own_template_supervises_what_is_in_brackets() -> None:
    from transformers import PreTrainedTokenizerFast

    from ima.models.llm.embedded import convert_smollm2

    tokenizer = PreTrainedTokenizerFast.from_pretrained(convert_smollm2(), local_files_only=True)
    chat = ChatFormat(tokenizer, "tokenizer")
    shown = ""
    for piece in chat.pieces(ASKED):
        text = tokenizer.decode(piece.ids)
        shown += f"[{text}]" if piece.supervised else text
    assert shown.endswith(SNAPSHOTS["chatml"].replace(".<|im_end|>]", ".][<|im_end|>]"))
    assert shown.startswith("<|im_start|>system\n"), "it brings a system's turn of its own"
