"""Penn Treebank tokens as captioning metrics count them: lower case, contractions split, punctuation dropped.

A regular-expression account of the rules that matter for captions; numbers with fractions and rare abbreviations may
differ from the Java tokeniser that others use. Both sides of a comparison always pass through the same function.
"""

from __future__ import annotations

import functools
import re

DROPPED = frozenset(
    {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", "(", ")", "[", "]", "{", "}"}
)
DROPPED_WORDS = frozenset({"-lrb-", "-rrb-", "-lcb-", "-rcb-", "-lsb-", "-rsb-"})
JOINED = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "gimme": ("gim", "me"),
    "lemme": ("lem", "me"),
    "d'ye": ("d'", "ye"),
    "'tis": ("'t", "is"),
    "'twas": ("'t", "was"),
}
ABBREVIATIONS = r"(?:mr|mrs|ms|dr|prof|jr|sr|st|ave|blvd|rd|mt|no|vs|etc|inc|co|corp|ltd|ft|oz|lb|lbs)\."
TOKEN = re.compile(
    rf"""
    -l[rcs]b-|-r[rcs]b-                        # brackets that were already escaped
  | (?:[a-z]\.){{2,}}                          # u.s.  a.m.
  | {ABBREVIATIONS}(?=\s|$)
  | \#?[$£€]?\d+(?:[.,:/]\d+)*(?:st|nd|rd|th|s)?(?![a-z])   # 1,000  3.5  3/4  10:30  1990s; a sign splits off below
  | [^\W_]+(?:[-/&'_.@][^\W_]+)*               # words, also with inner hyphens and apostrophes
  | \.{{3}} | -- | `` | '' | \S
    """,
    re.VERBOSE,
)
CLITIC = re.compile(r"^(.+?)(n't|'s|'m|'d|'re|'ve|'ll)$")
SIGN = re.compile(r"^([#$£€])(\d.*)$")


@functools.lru_cache(maxsize=65536)
def tokenize(text: str) -> tuple[str, ...]:
    """'A dog's toy, isn't it?' -> ("a", "dog", "'s", "toy", "is", "n't", "it")."""
    text = text.replace("’", "'").replace("‘", "'").replace("“", "``").replace("”", "''").lower().replace('"', " '' ")
    out: list[str] = []
    for found in TOKEN.findall(text):
        out.extend(split_token(found))
    return tuple(token for token in out if token not in DROPPED and token not in DROPPED_WORDS)


def split_token(token: str) -> tuple[str, ...]:
    if token in JOINED:
        return JOINED[token]
    if sign := SIGN.match(token):
        return sign.groups()
    if clitic := CLITIC.match(token):
        return clitic.groups()
    if "'" in token and not re.fullmatch(r"[^\W_]*o'[^\W_]+|[^\W_]+'n'[^\W_]+", token):
        head, _, tail = token.partition("'")
        return tuple(filter(None, (head, "'" + tail))) if head and tail else (token,)
    return (token,)
