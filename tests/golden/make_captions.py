"""Writes captions.json.gz: captions with references, their tokens and scores by the official scorer, made once.

Needs pycocoevalcap and Java; nothing else in the project does. The texts are drawn here from word lists, plain ones and
odd ones (quotes, brackets, numbers, money, contractions, abbreviations, dashes, accents, other scripts, smileys).

    python tests/golden/make_captions.py
"""

from __future__ import annotations

import gzip
import json
import random
import string
from pathlib import Path
from typing import Any

NUM_EXAMPLES = 640
PATH = Path(__file__).parent / "captions.json.gz"


def listed(text: str, sign: str = " ") -> list[str]:
    return text.split(sign)


THINGS = listed("cow dog bus train lamp clock plate river bridge kite horse violin lady farmer cat robot piano apple")
LOOKS = listed("red small old wooden shiny striped blue-green two-storey hand-made well-known half-eaten bright")
DOES = listed("stands sits runs sleeps waits looks flies drives plays shines leans rests")
PLACES = listed(
    "on a table|in the grass|near the U.S. flag|under a tree|at 5 p.m.|on Main St. today|by the sea|in St. Louis", "|"
)
ODD_WORDS = listed(
    "isn't|can't|won't|they're|she's|I'm|we've|he'd|you'll|cannot|gonna|wanna|gotta|gimme|'tis|'twas|ma'am|"
    "o'clock|y'all|rock'n'roll|rock 'n' roll|'em|O'Brien|dogs'|James's|man's|children's|it’s|don’t|M&M's|"
    "the '90s|1990s|747s|90's|cat's|$3.50|$1,000|1,000|10:30|3/4|1/2|24/7|50%|#1|No. 5|7-Eleven|10am|5 p.m.|"
    "A.M.|3.5|.5|1st|22nd|3rd|6-foot|4x4|3D|F-22|10-20|555-1234|10/20/2010|3:1|1,2|£5|€7|5¢|5°|x2|R2-D2|C3PO|"
    "mp3|747-400|mid-1990s|-5|1.2.3|2,000,000|5'|Mr. Smith|Mrs. Jones|Dr. Who|Jr.|U.S.|U.S.A.|U.K.|N.Y.|e.g.|"
    "i.e.|etc.|vs.|Mt. Fuji|Ave.|Co.|Inc.|a.m.|Ph.D.|J. Smith|Jan. 5|Sept.|Oct. 31|lbs.|oz.|ft.|in.|T.V.|"
    "Blvd.|Prof. Plum|Gov. Lee|Sgt. Pepper|\"stop\"|“stop”|‘stop’|``stop''|'stop'|(red)|[blue]|{green}|<b>|"
    '&amp;|"Eat here"|(a cat)|( open )|"no|end"|wait...|wait…|and -- then|a — b|a – b|left - right|red/blue|'
    "and/or|w/ cheese|AT&T|black & white|Q&A|black&white|a+b|hello!!|what?!|why???|oh!|yes;|so:|well,|a,b|"
    "end.Next|stop!now|who?me|...|!!!|--|;|café|naïve|jalapeño|ñandú|Zürich|garçon|日本|кот|кошка|São|"
    "smörgåsbord|½|™|®|©|°|•|→|²|:)|:-)|;)|:D|<3|@home|#tbt|www.example.com|http://example.com/a|"
    "me@example.com|a_b|*wow*|~|^|=|+|\\|x|_|`|t-shirt|T-shirt|ice-cream|twenty-one|x-ray|merry-go-round|"
    "jack-in-the-box|co-op|re-do|e-mail|-|sub-zero|STOP|OPEN 24 HRS|NYC|IKEA|WiFi|iPhone|eBay|McDonald's|"
    "Coca-Cola|A|I|TV|tv's|CD's|DVDs|ok|OK.",
    "|",
)
ENDS = (".", ".", ".", "", "", "", "!", "?", " .", "..", "...", " !", '."', '".', ".)", ")", ";", ",", " - ", "  ", "…")


def sentence(draw: random.Random) -> str:
    """A plain sentence about one or two things."""
    words = ["a", draw.choice(LOOKS), draw.choice(THINGS), draw.choice(DOES), draw.choice(PLACES)]
    if draw.random() < 0.4:
        words += [draw.choice(("and", "while", "with")), "the", draw.choice(THINGS), draw.choice(DOES)]
    return " ".join(words)


def oddity(draw: random.Random, text: str) -> str:
    """The same with odd words put in, and now and then the case or the spaces changed."""
    words = text.split(" ")
    for _ in range(draw.choice((0, 0, 1, 1, 1, 2, 3))):
        words.insert(draw.randrange(len(words) + 1), draw.choice(ODD_WORDS))
    text = " ".join(words) + draw.choice(ENDS)
    if draw.random() < 0.5:
        text = text[:1].upper() + text[1:]
    if draw.random() < 0.03:
        text = text.upper()
    if draw.random() < 0.03:
        text = text.replace(" ", "  ")
    if draw.random() < 0.06:
        text = draw.choice(('"{}"', "({})", "'{}'", "“{}”", " {}")).format(text)
    return text


def candidate(draw: random.Random, references: list[str]) -> str:
    """A caption to score: a reference, one with words lost, doubled or swapped, a stranger, or nothing."""
    words = draw.choice(references).split(" ")
    kind = draw.random()
    if kind < 0.1:
        return " ".join(words)
    if kind < 0.2:
        return oddity(draw, sentence(draw))
    if kind < 0.23:
        return draw.choice(("", ".", "...", "a", '"', "cow"))
    for _ in range(draw.randint(1, 3)):
        index = draw.randrange(len(words))
        change = draw.choice(("lose", "double", "swap", "other"))
        if change == "lose" and len(words) > 1:
            del words[index]
        elif change == "double":
            words.insert(index, words[index])
        elif change == "swap":
            words[index], words[-1] = words[-1], words[index]
        else:
            words[index] = draw.choice(THINGS)
    return " ".join(words)


def examples(seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    out = []
    for _ in range(NUM_EXAMPLES):
        base = sentence(draw)
        references = [oddity(draw, base if draw.random() < 0.6 else sentence(draw)) for _ in range(draw.randint(1, 5))]
        out.append({"caption": candidate(draw, references), "references": references})
    assert all(set(text) - set(string.whitespace) for example in out for text in example["references"])
    return out


def measure(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Tokens and scores of the official scorer, for each example and for the corpus."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    said = tokenizer.tokenize({index: [{"caption": one["caption"]}] for index, one in enumerate(found)})
    true = tokenizer.tokenize(
        {index: [{"caption": text} for text in one["references"]] for index, one in enumerate(found)}
    )
    bleu, bleus = Bleu(4).compute_score(true, said, verbose=0)
    rouge, rouges = Rouge().compute_score(true, said)
    cider, ciders = Cider().compute_score(true, said)
    lines = [
        {
            **one,
            "tokens": said[index][0],
            "reference_tokens": true[index],
            "bleu": [round(float(bleus[n][index]), 9) for n in range(4)],
            "rouge_l": round(float(rouges[index]), 9),
            "cider_d": round(float(ciders[index]), 9),
        }
        for index, one in enumerate(found)
    ]
    corpus = {"bleu": [float(value) for value in bleu], "rouge_l": float(rouge), "cider_d": float(cider)}
    return {"scorer": "pycocoevalcap 1.2", "corpus": corpus, "examples": lines}


if __name__ == "__main__":
    with open(PATH, "wb") as file, gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
        packed.write(json.dumps(measure(examples()), ensure_ascii=False, separators=(",", ":")).encode())
    print(PATH, PATH.stat().st_size, "bytes")
