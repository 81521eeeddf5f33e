"""Texts tokenised piece by piece have the ids of the whole text, for tokenizers that put a blank before every text too;
names of special tokens in data are plain text."""

from __future__ import annotations

from typing import Any

import pytest

from ima.core.types import MEDIUM, Sample
from ima.data.collate import Collate, NoMediaInputs
from ima.models.llm.chat import TEMPLATES, TOKENS
from ima.models.llm.frozen import FrozenLLM
from ima.models.llm.pieces import Before, PieceTokenizer
from ima.models.llm.tiny import tiny_model, tiny_tokenizer
from ima.tasks.caption import CaptionTask
from ima.tasks.conversation import ConversationTask
from ima.tasks.qa import QaTask

CHATS = ("llama2", "vicuna", "chatml", "phi3")
PLAIN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:?!'<>|/[]_-\n"


def tokenizer_of(kind: str, special: tuple[str, ...] = ()) -> Any:
    """kind: how the blank comes before a text. "llama" is the first Llamas' (before each part between special tokens),
    "always" and "first" are of Metaspace, "bytes" is GPT-2's with add_prefix_space, "none" has none."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if kind == "none":
        return tiny_tokenizer(special)
    if kind == "bytes":
        made = tiny_tokenizer(special)
        made.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        return made
    words = ["▁c", "▁ca", "▁cat", "▁A", "▁U", "is", "ic", "▁▁"]
    vocab = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", "▁", *PLAIN, *words])}
    merges = [("▁", "c"), ("▁c", "a"), ("▁ca", "t"), ("▁", "A"), ("▁", "U"), ("i", "s"), ("i", "c"), ("▁", "▁")]
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    if kind == "llama":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=kind, split=False)
    made.decoder = decoders.Metaspace("▁", prepend_scheme="always")
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


KINDS = ("none", "bytes", "llama", "always", "first")


def llm_of(kind: str, chat: str | None = None) -> FrozenLLM:
    tokenizer = tokenizer_of(kind, ("<image>", *TOKENS.get(chat or "", ())))
    return FrozenLLM(tiny_model(vocab_size=len(tokenizer)), tokenizer, bos="always", chat=chat)


def whole(llm: FrozenLLM, text: str) -> list[int]:
    return list(llm.tokenizer(text, add_special_tokens=False).input_ids)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", ["This is a picture of", "Say: ", "", "see\n"])
def test_prompt_and_answer_have_the_ids_of_the_whole_text(kind: str, prompt: str) -> None:
    llm, task = llm_of(kind), CaptionTask(prompt)
    sample = Sample("a/1", "train", "train", "image", ("a cat is nice",))
    laid = Collate(task, llm, NoMediaInputs()).lay(sample, 0)
    assert laid.ids == [llm.bos_id, *whole(llm, prompt + task.target_for(sample, 0)), llm.eos_id]
    asked = Collate(task, llm, NoMediaInputs(), answers=False).lay(sample, 0)
    assert laid.ids[: len(asked.ids)] == asked.ids


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chat", CHATS)
def test_turns_have_the_ids_of_the_whole_conversation(kind: str, chat: str) -> None:
    llm = llm_of(kind, chat)
    turns = (("user", "What is it?"), ("assistant", "A cat."), ("user", "Is it? a"), ("assistant", "cats"))
    sample = Sample("a/1", "train", "train", "image", ("x",), media=(), turns=turns)
    ids = Collate(ConversationTask(), llm, NoMediaInputs()).lay(sample, 0).ids
    said = [{"role": who, "content": text} for who, text in turns]
    text = llm.tokenizer.apply_chat_template(said, tokenize=False, chat_template=TEMPLATES[chat])
    expected = whole(llm, text)
    expected = expected if expected[0] == llm.bos_id else [llm.bos_id, *expected]
    assert llm.chat is not None and llm.chat.stop_id not in expected[len(ids) :]
    assert ids == expected[: len(ids)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("asked", [f"{MEDIUM}\nWhat is it?", f"What is {MEDIUM} and {MEDIUM}?", f"Is it a{MEDIUM}cat?"])
def test_pieces_around_a_medium_have_the_ids_of_the_text_where_it_is_a_token(kind: str, asked: str) -> None:
    llm = llm_of(kind, "vicuna")
    media = tuple(Sample(f"m/{index}", "train", "train", "image", ()) for index in range(asked.count(MEDIUM)))
    sample = Sample("a/1", "train", "train", "image", ("x",), media=media, turns=(("user", asked), ("assistant", "A")))
    laid = Collate(ConversationTask(), llm, NoMediaInputs()).lay(sample, 0)
    said = [{"role": "user", "content": asked.replace(MEDIUM, "<image>")}, {"role": "assistant", "content": "A"}]
    text = llm.tokenizer.apply_chat_template(said, tokenize=False, chat_template=TEMPLATES["vicuna"])
    image = llm.tokenizer.convert_tokens_to_ids("<image>")
    expected = [llm.bos_id, *whole(llm, text)]
    places = [place for place, token in enumerate(expected) if token == image]
    assert laid.ids == [token for token in expected if token != image]
    assert laid.places == [place - number for number, place in enumerate(places)]


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_special_tokens_in_data_are_plain_text(kind: str) -> None:
    llm = llm_of(kind)
    sample = Sample("a/1", "train", "train", "image", ("a </s> cat <image>",), question="is <s> it </s>?")
    for task in (CaptionTask(), QaTask()):
        laid = Collate(task, llm, NoMediaInputs()).lay(sample, 0)
        assert not set(laid.ids[1:-1]) & set(set(llm.tokenizer.all_special_ids) - {llm.tokenizer.unk_token_id})
        assert "</s>" in llm.tokenizer.decode(laid.ids[1:-1])


def test_a_model_of_tokens_that_finds_the_name_in_plain_text_is_hindered() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    scores = [("<unk>", -9.0), ("<s>", 0.0), ("</s>", 0.0), *((letter, -3.0) for letter in "abcs</> ")]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.Unigram(scores, unk_id=0)),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
    )
    pieces = PieceTokenizer(tokenizer)
    ids = pieces.encode("ab</s>c", Before.TEXT)
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", "b", "<", "/", "s", ">", "c"]
    assert pieces.encode("ab</s>c", special=True)[2] == tokenizer.eos_token_id
