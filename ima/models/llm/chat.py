"""Chat templates: a conversation as pieces of token ids, each with its role, the assistant's turns supervised.

The template is rendered once with marks in place of what is said, for every order of speakers; what stands between
the marks is the template's own text. So nothing that somebody says is ever taken for a part of the template, a prompt
has the same ids in training and in generation, and labels need no search. Pieces are tokenised one by one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ima.core.errors import UserError, nearest
from ima.core.files import read_utf8
from ima.core.types import MEDIUM, Role, Turn
from ima.models.llm.pieces import Before, PieceTokenizer

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
EACH, END = "{% for m in messages %}", "{% endfor %}"
# Formats for tokenizers that bring no template of their own.
TEMPLATES = {
    "chatml": EACH + "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n" + END,
    "vicuna": (
        "{% if messages[0]['role'] != 'system' %}" + VICUNA_SYSTEM + " {% endif %}" + EACH
        + "{% if m['role'] == 'user' %}USER: {{ m['content'] }} {% elif m['role'] == 'assistant' %}"
        + "ASSISTANT: {{ m['content'] }}{{ eos_token }}{% else %}{{ m['content'] }} {% endif %}" + END
    ),
    "llama2": (
        EACH + "{% if m['role'] == 'user' %}{{ bos_token }}[INST] {{ m['content'] }} [/INST]"
        + "{% elif m['role'] == 'assistant' %} {{ m['content'] }} {{ eos_token }}{% else %}"
        + "{{ raise_exception('llama2 has no turn of its own for the system') }}{% endif %}" + END
    ),
    "llama3": (
        "<|begin_of_text|>" + EACH
        + "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}<|eot_id|>" + END
    ),
    "gemma": (
        "{{ bos_token }}" + EACH + "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else 'user' }}\n"
        + "{{ m['content'] }}<end_of_turn>\n" + END
    ),
    "phi3": EACH + "<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n" + END,
}  # fmt: skip
# The special tokens that a format needs beyond BOS and EOS.
TOKENS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "phi3": ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
}


@dataclasses.dataclass(frozen=True)
class Piece:
    """ids None: a medium stands here."""

    ids: list[int] | None
    role: Role
    supervised: bool = False


@dataclasses.dataclass(frozen=True)
class Frame:
    """The template around n turns: `before` each turn, `end` after each (of the assistant's: up to its end token), and
    `lead`, the blank that the turn's own text takes along from the template. first: what stands before the first turn
    (a BOS that the template does not write counts as nothing)."""

    before: list[list[int]]
    end: list[list[int]]
    lead: list[str]
    first: Before


class ChatFormat:
    """choice: "tokenizer" for the tokenizer's own template, one of TEMPLATES, a template file, or a template.

    Raises UserError where there is no template, and later where a template drops or moves a turn or does not end the
    assistant's turns by a special token.
    """

    def __init__(self, tokenizer: Any, choice: str = "tokenizer", bos_id: int | None = None) -> None:
        self.tokenizer, self.choice, self.bos_id = tokenizer, choice, bos_id
        self.template = template_of(tokenizer, choice)
        self.tokens = PieceTokenizer(tokenizer)
        self.special = self.tokens.special
        self._frames: dict[tuple[str, ...], Frame] = {}
        self.stop_id = self.frame(("user", "assistant")).end[1][-1]

    def frame(self, who: tuple[str, ...]) -> Frame:
        if who not in self._frames:
            self._frames[who] = self._frame(who)
        return self._frames[who]

    def _frame(self, who: tuple[str, ...]) -> Frame:
        from jinja2 import TemplateError

        marks = [f"\ue000{index}\ue001" for index in range(len(who))]
        messages = [{"role": name, "content": mark} for name, mark in zip(who, marks, strict=True)]
        try:
            rest = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=False, chat_template=self.template
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise UserError(f"llm.chat: {self.choice} cannot lay out the turns {', '.join(who)} ({error})") from error
        texts = []
        for index, mark in enumerate(marks):
            text, found, rest = rest.partition(mark)
            if not found or mark in rest:
                raise UserError(f"llm.chat: the template {self.choice} drops, moves or repeats turn {index} of {who}")
            texts.append(text)
        texts.append(rest)
        return self._split(who, texts)

    def _split(self, who: tuple[str, ...], texts: list[str]) -> Frame:
        before: list[list[int]] = []
        ends: list[list[int]] = []
        leads: list[str] = []
        start: list[int] = []  # what is left of the piece after the last turn's end
        for index in range(len(who)):
            shown = texts[index].rstrip(" ")
            lead = texts[index][len(shown) :]
            if index and who[index - 1] == "assistant":
                end, start = self._end(shown)
                ends[-1] = end
                before.append(start)
            else:
                before.append(self.encode(shown, Before.TEXT if index else Before.NOTHING))
            leads.append(lead)
            ends.append([])
        if who and who[-1] == "assistant":
            ends[-1] = self._end(texts[-1])[0]
        first = self.tokens.before(before[0], Before.NOTHING) if before else Before.NOTHING
        if self.bos_id is not None and before and before[0][:1] != [self.bos_id]:
            before[0] = [self.bos_id, *before[0]]
        return Frame(before, ends, leads, first)

    def _end(self, text: str) -> tuple[list[int], list[int]]:
        """The ids that end the assistant's turn, and what the template says after it."""
        ids = self.encode(text, Before.TEXT)
        place = next((index for index, token in enumerate(ids) if token in self.special), None)
        begins = place is not None and ids[place] == self.tokenizer.bos_token_id != self.tokenizer.eos_token_id
        if place is None or begins or self.tokenizer.decode(ids[:place]).strip():
            raise UserError(
                f"llm.chat: {self.choice} does not end the assistant's turns by a special token of this tokenizer; "
                f"{nearest('', TEMPLATES)} or a template of your own"
            )
        return ids[: place + 1], ids[place + 1 :]

    def encode(self, text: str, before: Before) -> list[int]:
        """The template's own text, whose special tokens are meant; what somebody says has none."""
        return self.tokens.encode(text, before, special=True)

    def pieces(self, turns: Sequence[Turn], answer: bool = True) -> list[Piece]:
        """`answer`: with the last turn, which is the assistant's, or up to where it begins (generation)."""
        frame = self.frame(tuple(name for name, _ in turns))
        out: list[Piece] = []
        last = Before.NOTHING
        for index, (name, text) in enumerate(turns):
            out.append(Piece(frame.before[index], Role.SPECIAL))
            last = self.tokens.before(frame.before[index], last) if index else frame.first
            is_answer = name == "assistant"
            if is_answer and not answer and index == len(turns) - 1:
                break
            parts = (frame.lead[index] + text.strip()).split(MEDIUM)
            for number, part in enumerate(parts):
                if number:
                    out.append(Piece(None, Role.PERCEPT))
                    last = Before.SPECIAL
                ids = self.tokens.encode(part, last)
                last = self.tokens.before(ids, last)
                out.append(Piece(ids, Role.ANSWER if is_answer else Role.PROMPT, is_answer))
            out.append(Piece(frame.end[index], Role.SPECIAL, is_answer))
            last = self.tokens.before(frame.end[index], last)
        return [piece for piece in out if piece.ids is None or piece.ids]


def template_of(tokenizer: Any, choice: str) -> str:
    if choice == "tokenizer":
        template = getattr(tokenizer, "chat_template", None)
        if not template:
            raise UserError(f"llm.chat: this tokenizer brings no chat template; {nearest('', TEMPLATES)}")
        return str(template)
    if choice in TEMPLATES:
        return TEMPLATES[choice]
    if "{{" in choice:
        return choice
    path = Path(choice)
    if not path.is_file():
        raise UserError(f"llm.chat: {choice!r} is no format and no file; {nearest(choice, ['tokenizer', *TEMPLATES])}")
    return read_utf8(path)
