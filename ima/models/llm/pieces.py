"""Texts that are tokenised piece by piece get the ids that they have inside the whole text.

Two habits of tokenizers stand in the way. Some put a blank before every text they are given (Llama-2, Vicuna), so that
a piece from the middle would begin with a blank that the whole text does not have. And the name of a special token is
read as that token, so that a caption that says "</s>" would end the sequence. Both are hidden here.
"""

from __future__ import annotations

import enum
import re
from typing import Any

# Put before a piece and taken off its ids again; the first that shares no token with the piece is used.
LEADS = ("\n", ":", ".", "a", "0")


class Before(enum.Enum):
    """What stands before a piece: nothing, a special token (or a medium, which processors write as one), or text."""

    NOTHING = 0
    SPECIAL = 1
    TEXT = 2


class PieceTokenizer:
    """`encode` of one tokenizer. special: ids of the tokens that stand for something else than their text."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        known = getattr(tokenizer, "added_tokens_decoder", {})
        self.special = {int(key) for key, token in known.items() if token.special} | set(tokenizer.all_special_ids)
        self.added = self.special | {int(key) for key in known}
        unknown = {getattr(tokenizer, "unk_token_id", None)}
        names = [str(tokenizer.convert_ids_to_tokens(token)) for token in sorted(self.special - unknown)]
        self._guarded = {token for token in self.special if token not in unknown}
        self._names = re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True) if name))
        self._leads = [(lead, ids) for lead in LEADS if not unknown & set(ids := self._ids(lead, False))]
        alone = self._ids("a", False)
        self.prepends = bool(self._leads) and all(
            self._ids(lead + "a", False) != ids + alone for lead, ids in self._leads
        )
        self.prepends_after_special = self.prepends and self._after_special()

    def encode(self, text: str, before: Before = Before.NOTHING, special: bool = False) -> list[int]:
        """special: names of special tokens are meant as such (a template's own text); else they are plain text."""
        if not text:
            return []
        ids = self._piece(text, before, special)
        if special or self._guarded.isdisjoint(ids):
            return ids
        # Some models of tokens find a special token's name in plain text even so: no name stays in one piece.
        out: list[int] = []
        for part in self._names.sub(lambda found: f"{found[0][:1]}\0{found[0][1:]}", text).split("\0"):
            out += self._piece(part, before, False) if part else []
            before = Before.TEXT
        return out

    def before(self, ids: list[int], otherwise: Before) -> Before:
        """What stands before a piece that follows these ids; `otherwise` where there are none."""
        if not ids:
            return otherwise
        return Before.SPECIAL if ids[-1] in self.added else Before.TEXT

    def _piece(self, text: str, before: Before, special: bool) -> list[int]:
        fresh = before == Before.NOTHING or (before == Before.SPECIAL and self.prepends_after_special)
        if fresh or not self.prepends:
            return self._ids(text, special)
        for lead, ids in self._leads:
            whole = self._ids(lead + text, special)
            if whole[: len(ids)] == ids:
                return whole[len(ids) :]
        return self._ids(text, special)

    def _after_special(self) -> bool:
        """Whether the text after a special token gets the blank too, as in tokenizers of the first Llamas."""
        for token in sorted(self._guarded):
            name = str(self.tokenizer.convert_ids_to_tokens(token))
            ids = self._ids(name + "a", True)
            if ids[:1] == [token]:
                return ids[1:] == self._ids("a", False)
        return True

    def _ids(self, text: str, special: bool) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=not special).input_ids)
