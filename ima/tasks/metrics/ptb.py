"""Penn Treebank tokens as captioning benchmarks count them: lower case, contractions split, punctuation dropped.

At every place the longest of the rules below wins, the first of equals: that is how the official tokeniser works
(Stanford's of 2014), and `tests/golden` holds what it makes of thousands of plain and odd captions. Its quirks stay,
since scores depend on them: brackets and !! are words, a pound sign is #, and "3 1/2" is one token with a hard space,
which ROUGE-L takes as it is and BLEU and CIDEr as two words.
"""

from __future__ import annotations

import functools
import re

DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
JOINED = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "gimme": ("gim", "me"),
    "lemme": ("lem", "me"),
    "more'n": ("more", "'n"),
    "'tis": ("'t", "is"),
    "'twas": ("'t", "was"),
}
# Words that keep their full stop, in any case; then those that do so with a capital only, then those before a number.
ABBREVIATIONS = (
    "jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri ala ariz calif colo conn ct "
    "dak fla ga ind kan kans ky md mich minn mo mont neb nev okla penn tenn va vt wis wisc wyo mr mrs ms dr drs "
    "prof profs sen sens rep reps atty attys lt col gen messrs gov govs adm rev maj sgt cpl pvt capt ste st ave "
    "pres lieut hon brig comdr cmdr pfc spc supt supts det mme mlle sr jr bros ph esq blvd rd sq inc co cos corp "
    "ltd plc rt bancorp dept bhd assn univ intl sys invt elec natl tel est ext etc al seq bldg vs wm jos cie cf "
    "ft mt adv adj alex"
)
CAPITALISED = "ark del ill la mass miss ore pa tex wash"
BEFORE_NUMBERS = "no nos prop art figs fig pp ca op"

LETTER = r"(?:[^\W\d_\u00aa\u00b2\u00b3\u00b9\u00ba\u00bc-\u00be\u2150-\u215f\U00010000-\U0010ffff]" \
         r"|[\u0300-\u036f\u064b-\u0652\u0900-\u0903\u093a-\u094f\u0e31\u0e34-\u0e3a\u0e47-\u0e4e])"  # fmt: skip
ALNUM = rf"(?:{LETTER}|\d)"
TICK, TICKS = "['’]", "['’`‘]"
CLITIC = rf"{TICK}(?:[msd]|re|ve|ll)"
WORD = rf"{LETTER}{ALNUM}*(?:[.!?]{LETTER}{ALNUM}*)*"
PART = rf"(?:[dol]{TICKS}(?={LETTER}{{2}}))?{ALNUM}+(?:_{ALNUM}+)*"
THING = rf"{PART}(?:-{PART})*"
FIGURES = r"\d*(?:[.:,]\d+)+|\d+"
PATH = r"/[^\s\"<>|()]+[^\s\"<>|.!?(){},-]"
SLASHED = r"[a-z\d]+(?:-[a-z]+){0,2}"


def words_of(text: str) -> str:
    return "|".join(sorted(text.split(), key=len, reverse=True))


# A rule that ends in a look-ahead for what is split off next counts that as part of its length.
FOLLOWED = [
    re.compile(rf"({WORD})({CLITIC})(?![a-z])", re.I),
    re.compile(rf"({WORD}?)(n{TICKS}t)", re.I),
    re.compile(rf"({THING})({CLITIC})(?![a-z])", re.I),
    re.compile(rf"((?-i:[A-Z]+(?:[+&][A-Z]+)+))({CLITIC})(?![a-z])", re.I),
]
RULES = [
    re.compile(rule, flags)
    for rule, flags in (
        (rf"(?:{'|'.join(map(re.escape, JOINED))})(?!{ALNUM})", re.I),
        (rf"{CLITIC}(?![a-z])", re.I),
        (rf"n{TICKS}t(?!{ALNUM})", re.I),
        (WORD, 0),
        (THING, re.I),
        (r"[A-Za-z\d][A-Za-z\d.,]*(?:-(?:(?:[A-Za-z]\.)+[A-Za-z]\.|[A-Za-z\d]+))+", 0),
        (rf"{SLASHED}(?:/{SLASHED}){{1,2}}", re.I),
        (rf"[-+]?(?:{FIGURES})", 0),
        (r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}", 0),
        (r"(?:\d{1,4}[- \xa0])?\d{1,4}/\d{1,4}", 0),
        (r"(?:\(\d{2,3}\)[ \xa0]?|(?:\+\+?)?(?:\d{2,4}[- \xa0])?\d{2,4}[- \xa0])\d{3,4}[- \xa0]?\d{3,5}", 0),
        # Apostrophes inside words: 'em, 'til, the '90s, ma'am, co'op, O'Hara.
        (rf"{TICK}n{TICK}|{TICK}n(?!{ALNUM})|[ldj]{TICK}|y{TICK}(?={LETTER})|(?:dunkin|somethin|ol){TICK}", re.I),
        (rf"{TICK}(?:em|till?|cause|[2-9]0s|\d\d(?![:\"]))(?!{ALNUM})", re.I),
        (rf"[A-HJ-XZn]{TICKS}{LETTER}{{2,}}", 0),
        (rf"{LETTER}+[aeiouyAEIOUY]{TICKS}[aeiouA-Z]{LETTER}*", 0),
        (r"(?:nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l|cont'd)(?![a-z])", re.I),
        # Abbreviations, and whatever has a full stop before a comma.
        (rf"{WORD}\.(?=[,;:])", 0),
        (rf"(?:{words_of(ABBREVIATIONS)})\.", re.I),
        (r"(?:[a-z]\.)*[a-z]\.|(?:ed|ph)\.d\.", re.I),
        (rf"(?:{'|'.join(rf'{word[0].upper()}(?i:{word[1:]})' for word in CAPITALISED.split())})\.", 0),
        (rf"(?:{words_of(BEFORE_NUMBERS)})\.(?=\s?\d)", re.I),
        (r"[A-Z]+(?:[+&][A-Z]+)+|C\+\+|[CF]#", 0),
        # Addresses, marks, faces, signs.
        (r"https?://[^\s\"<>|()]+[^\s\"<>|.!?(){},-]", re.I),
        (rf"(?:[^\s\"<>|.!?(){{}},/@:;&'’“”]+\.)+(?:com|net|org|edu)(?:{PATH})?(?![a-z])", re.I),
        (rf"www\.(?:[^\s\"<>|.!?(){{}},/]+\.)+[a-z]{{2,4}}(?:{PATH})?", re.I),
        (r"<?[a-z\d][^\s\"<>|()]*@(?:[^\s\"<>|().]+\.)*[^\s\"<>|().]+>?", re.I),
        (rf"@[a-z_]\w*|#{LETTER}+|[@#]{2,}", re.I),
        (r"<(?:/?[a-z]|!--)[^<>]*>", re.I),
        (r"&(?:amp|lt|gt|quot|apos|nbsp);", re.I),
        (r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]](?![A-Za-z\d])|[-^x=~<>']_[-^x=~<>']", 0),
        (r"\.{3,5}|[?!]{2,}|-{2,4}|\*+|_+|``|''", 0),
        (r"-{5,}", 0),
        (r"[A-Z]*\$", 0),
        (r"\S", re.S),
    )
]  # fmt: skip
PLAIN = re.compile(r"[a-z]+(?=\s|$)")
SPACE = re.compile(r"\s*")
SAME = {
    "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'", "&nbsp;": "", "…": "...", "“": "``",
    "”": "''", '"': "''", "‘": "`", "’": "'", "«": "``", "»": "''", "‹": "`", "›": "'", "–": "--", "—": "--",
    "―": "--", "‐": "", "‑": "", "£": "#", "€": "$", "¢": "cents", "½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3",
    "⅔": "2/3", "⅛": "1/8", "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    "---": "--", "----": "--", "....": "...", ".....": "...",
}  # fmt: skip
FACE = re.compile(r"[<>]?[:;=][-o*']?[()]")


@functools.lru_cache(maxsize=65536)
def tokenize(text: str) -> tuple[str, ...]:
    """'A dog's toy, isn't it?' -> ("a", "dog", "'s", "toy", "is", "n't", "it"). No token has a space in it."""
    return tuple(word for token in glued(text) for word in token.split())


@functools.lru_cache(maxsize=65536)
def glued(text: str) -> tuple[str, ...]:
    """Tokens as the official tokeniser has them: fractions and telephone numbers may hold hard spaces."""
    out: list[str] = []
    at, end = SPACE.match(text).end(), len(text)  # type: ignore[union-attr]
    while at < end:
        found = longest(text, at)
        out += written(found)
        at = SPACE.match(text, at + len(found)).end()  # type: ignore[union-attr]
    return tuple(token for token in out if token not in DROPPED)


def longest(text: str, at: int) -> str:
    """The token that begins here."""
    if plain := PLAIN.match(text, at):
        return plain[0]
    best, reach = "", 0
    for rule in FOLLOWED:
        if (match := rule.match(text, at)) and match[1] and match.end() - at > reach:
            best, reach = match[1], match.end() - at
    for rule in RULES:
        if (match := rule.match(text, at)) and match.end() - at > reach:
            best, reach = match[0], match.end() - at
    return best


def written(token: str) -> tuple[str, ...]:
    """How a token is written down: in lower case, brackets as names, signs by their plain forms."""
    low = token.lower()
    if low.replace("’", "'") in JOINED:
        return JOINED[low.replace("’", "'")]
    if low in SAME:
        return (SAME[low],) if SAME[low] else ()
    if len(token) == 1 and ord(token) > 0xFFFF:
        return ()
    if re.fullmatch(rf"{CLITIC}|n{TICK}t", low):
        return (low.replace("’", "'"),)
    if FACE.fullmatch(low):
        return (low[:-1] + SAME[low[-1]],)
    if low[:1] == "(":  # of a telephone number
        low = low.replace("(", "-lrb-").replace(")", "-rrb-")
    return (low.replace(" ", "\xa0"),)
