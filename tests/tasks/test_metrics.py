"""Caption metrics: CIDEr-D against a slow transcription, nouns and their traps, tokens, the captioning task."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ima.core.errors import UserError
from ima.core.types import Sample
from ima.pipeline.evaluator import metric_rows
from ima.report.page.html import headlines
from ima.report.run import Run
from ima.tasks.base import Prediction
from ima.tasks.caption import CaptionTask
from ima.tasks.metrics.cider import Frequencies, cider_d
from ima.tasks.metrics.judge import judge
from ima.tasks.metrics.nouns import reader
from ima.tasks.metrics.ptb import tokenize
from ima.tasks.metrics.vocabulary import load_nouns, pluralise, with_article

WORDS = ("a", "the", "cow", "dog", "red", "big", "on", "left", "and", "two", "three", "sits", "runs", "house", "tree")


def sentences(num: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 9))) for _ in range(num)]


def slow_cider_d(texts: list[str], references: list[list[str]], sigma: float = 6.0) -> list[float]:
    """Written from the formula, n-gram by n-gram, without sharing code with the module."""

    def count(text: str, n: int) -> Counter:
        words = text.split()
        return Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))

    out = []
    for text, truths in zip(texts, references, strict=True):
        total = 0.0
        for truth in truths:
            for n in (1, 2, 3, 4):
                c, r = count(text, n), count(truth, n)

                def idf(gram: str, n: int = n) -> float:
                    found = sum(any(gram in count(t, n) for t in group) for group in references)
                    return math.log(len(references)) - math.log(max(1, found))

                dot = sum(min(c[g] * idf(g), r[g] * idf(g)) * r[g] * idf(g) for g in c if g in r)
                norm = math.sqrt(sum((c[g] * idf(g)) ** 2 for g in c)) * math.sqrt(sum((r[g] * idf(g)) ** 2 for g in r))
                gap = len(text.split()) - len(truth.split())
                total += (dot / norm if norm else 0.0) * math.exp(-(gap**2) / (2 * sigma**2)) / 4
        out.append(10 * total / len(truths))
    return out


def test_cider_d_equals_a_slow_transcription() -> None:
    texts = sentences(25, 1)
    references = [sentences(3, 100 + index) for index in range(25)]
    assert np.allclose(cider_d(texts, references, Frequencies.of(references)), slow_cider_d(texts, references))


def test_cider_d_of_the_reference_itself_is_ten_and_of_strangers_zero() -> None:
    references = [["one red cow eats grass"], ["five blue cars drive fast"], ["some tiny bees fly home"]]
    frequencies = Frequencies.of(references)
    assert np.allclose(cider_d([r[0] for r in references], references, frequencies), 10)
    assert np.allclose(cider_d(["some tiny bees fly home", "", "zzz"], references, frequencies), 0)


def test_cider_d_does_not_pay_for_repetition() -> None:
    references = [["one red cow eats grass"], ["five blue cars drive fast"]]
    frequencies = Frequencies.of(references)
    plain, repeated = cider_d(["one red cow", "one red cow cow cow cow"], [references[0], references[0]], frequencies)
    assert repeated < plain


def test_document_frequencies_are_the_callers() -> None:
    references = [["a red cow eats"], ["a blue car drives"]]
    many = references + [["a red cow eats"]] * 8
    small = cider_d(["a red cow"], references[:1], Frequencies.of(references))[0]
    large = cider_d(["a red cow"], references[:1], Frequencies.of(many))[0]
    assert small != large


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A man's dog, isn't it?", "a man 's dog is n't it"),
        ("Two dogs can't run.", "two dogs ca n't run"),
        ("He cannot - or won't.", "he can not or wo n't"),
        ("A well-known T-shirt (red)!", "a well-known t-shirt -lrb- red -rrb-"),
        ("“Quoted” text…", "quoted text"),
        ("It costs $3.50 or 1,000 at 10:30", "it costs $ 3.50 or 1,000 at 10:30"),
        ("The U.S. flag on Main St. today.", "the u.s. flag on main st. today"),
        ("They're Dr. Smith's dogs'", "they 're dr. smith 's dogs"),
        ("Wait... -- what? half 3/4", "wait what half 3/4"),
        ("", ""),
    ],
)
def test_tokens(text: str, tokens: str) -> None:
    assert " ".join(tokenize(text)) == tokens


TRAPS = [
    ("a teddy bear", "teddy bear"),
    ("a fire truck", "fire truck"),
    ("two rubber ducks", "rubber duck"),
    ("a computer mouse", "computer mouse"),
    ("a Christmas tree", "Christmas tree"),
    ("a hot-air balloon", "hot air balloon"),
    ("a football helmet", "football helmet"),
    ("an apple core", "apple core"),
    ("an orange fish", "fish"),
    ("an orange", "orange"),
    ("a cow as well", "cow"),
    ("i saw a cow", "cow"),
    ("a cow on grass", "cow"),
    ("some mice", "mouse"),
    ("a bunny", "rabbit"),
    ("an F-22 plane", "airplane"),
    ("a jack-o'-lantern", "jack-o'-lantern"),
    ("a bird flies as well", ""),
    ("a dock in the sun", "dock sun"),
    ("some trousers", "pants"),
    ("knives", "knife"),
    ("the moon", "moon"),
    ("a glass bottle", "bottle"),
]


@pytest.mark.parametrize(("text", "nouns"), TRAPS)
def test_longest_match_and_plurals(text: str, nouns: str) -> None:
    found = [noun for mention in reader().mentions(text) for noun in sorted(mention.nouns)]
    assert " ".join(found) == nouns


def test_each_noun_is_read_from_its_own_phrases() -> None:
    read = reader()
    for noun in load_nouns().values():
        for text in (noun.single, noun.plural if noun.one else noun.counted(2), f"this is {noun.single}"):
            mentions = read.mentions(text)
            assert len(mentions) == 1 and noun.name in mentions[0].nouns, (text, mentions)


def test_glasses_may_be_two_glasses() -> None:
    (mention,) = reader().mentions("two glasses")
    assert mention.nouns == {"glass", "glasses"} and mention.num == 2


def test_broader_terms_are_true_but_name_nothing() -> None:
    facts = {"nouns": ("penguin",), "category": "animal"}
    bird, dog, both = judge(facts, "a bird"), judge(facts, "a dog"), judge(facts, "a bird: a penguin")
    assert bird and dog and both
    assert not bird.right and not bird.absent and bird.category_right
    assert not dog.right and dog.absent == ("dog",) and dog.category_right
    assert both.right
    assert bird.slots["noun"] == (0, 0, 1) and dog.slots["noun"] == (0, 1, 1)


def test_naming_an_absent_noun_makes_a_caption_wrong() -> None:
    facts = {"nouns": ("cow",), "category": "animal"}
    said = {"a cow": True, "a cow and a car": False, "a cow, an animal": True, "a car": False, "": False, "cows": True}
    for text, right in said.items():
        judged = judge(facts, text)
        assert judged is not None and judged.right is right, text


def test_slots_of_a_scene() -> None:
    facts = {
        "nouns": ("cow", "pig"),
        "objects": [{"noun": "cow", "num": 1, "place": "left"}, {"noun": "pig", "num": 2, "place": "top"}],
    }
    judged = judge(facts, "on the left, a cow; three pigs at the top and a dog on the right")
    assert judged is not None
    assert judged.slots == {"noun": (2, 3, 2), "position": (2, 3, 2), "count": (1, 3, 2)}


def test_english() -> None:
    assert with_article("owl") == "an owl" and with_article("university") == "a university"
    assert [pluralise(word) for word in ("bus", "cherry", "key", "brush")] == ["buses", "cherries", "keys", "brushes"]


def sample(noun: str, references: tuple[str, ...] = (), track: str = "T0", number: int = 0) -> Sample:
    nouns = load_nouns()
    return Sample(
        id=f"{noun}/{number}",
        split=track,
        track=track,
        modality="image",
        references=references or (nouns[noun].single, f"a picture of {nouns[noun].single}"),
        cluster=noun,
        facts={"nouns": (noun,), "category": nouns[noun].category},
    )


def test_scores_carry_intervals_and_clusters() -> None:
    samples = [sample(noun, number=i) for noun in ("cow", "pig", "car", "owl") for i in range(5)]
    texts = [s.references[0] if s.facts["nouns"][0] != "owl" else "a cow" for s in samples]
    task = CaptionTask()
    metrics = {
        m.name: m
        for m in task.score(
            [Prediction(s, t) for s, t in zip(samples, texts, strict=True)], [s.references for s in samples]
        )
    }
    accuracy = metrics["noun_accuracy"]
    assert accuracy.value == 0.75 and accuracy.low <= 0.75 <= accuracy.high
    assert (accuracy.n, accuracy.num_clusters) == (20, 4)
    assert metrics["category_accuracy"].value == 1.0
    assert metrics["noun_f1"].value == pytest.approx(0.75)
    assert 0 < metrics["cider_d"].value < 10


def test_sources_without_nouns_are_scored_by_wording_alone() -> None:
    samples = [Sample(str(i), "T0", "T0", "image", (text,)) for i, text in enumerate(["a red cow", "a blue car"])]
    task, said = CaptionTask(headline="cider_d"), [Prediction(s, "a red cow") for s in samples]
    metrics = {m.name: m.value for m in task.score(said, [s.references for s in samples])}
    assert list(metrics) == ["cider_d", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l"]
    rows = task.per_example(said, [s.references for s in samples])
    for name in ("cider_d", "rouge_l"):
        assert np.mean([row[name] for row in rows]) == pytest.approx(metrics[name])
    assert all(row["right"] == row["cider_d"] for row in rows) and "absent" not in rows[0]
    assert rows[0]["cider_d"] > rows[1]["cider_d"] and rows[0]["bleu_2"] > rows[1]["bleu_2"]


def test_unknown_nouns_are_scored_by_category() -> None:
    samples = [sample(noun, track="T2") for noun in ("cow", "car")]
    names = [m.name for m in CaptionTask().score([Prediction(s, "a pig") for s in samples], [])]
    assert names == ["category_accuracy"]


def test_targets_continue_the_prompt_and_depend_on_the_draw_only() -> None:
    cow = sample("cow", ("a cow", "this is a cow", "a brown cow"))
    assert CaptionTask().target_for(cow, 5) == " a cow"
    assert CaptionTask(prompt="").target_for(cow, 5) == "a cow"
    any_task = CaptionTask(targets="any")
    drawn = [any_task.target_for(cow, draw) for draw in range(30)]
    assert drawn == [any_task.target_for(cow, draw) for draw in range(30)]
    assert set(drawn) == {" a cow", " a brown cow"}


@pytest.mark.parametrize(
    ("raw", "clean"),
    [(" a cow.\n\nThe", "a cow"), ("a cow. It eats.", "a cow"), ("\n\n a  cow ", "a cow"), ("", ""), ("St. a", "St")],
)
def test_cleaning(raw: str, clean: str) -> None:
    assert CaptionTask().clean(raw) == clean


def test_mistakes_in_the_task_are_one_line() -> None:
    for options in ({"targets": "frist"}, {"max_new_tokens": 0}, {"num_beams": 0}, {"headline": "cider"}):
        with pytest.raises(UserError):
            CaptionTask(**options)


def test_per_example_rows_are_plain() -> None:
    row = CaptionTask().per_example([Prediction(sample("cow"), "a cow and a car")])[0]
    assert row["named"] == ["cow"] and row["absent"] == ["car"] and row["right"] is False


@pytest.mark.parametrize(("num", "reason"), [(1, "1 example has no"), (3, "all references have the same")])
def test_cider_d_of_nothing_to_weigh_by_is_undefined_and_says_so(num: int, reason: str) -> None:
    samples = [Sample(f"x/{i}", "val", "val", "image", ("a red cow",), cluster=str(i)) for i in range(num)]
    task, said = CaptionTask(headline="cider_d"), [Prediction(sample, "a red cow") for sample in samples]
    idf = [sample.references for sample in samples]
    metrics = {metric.name: metric for metric in task.score(said, idf)}
    assert np.isnan(metrics["cider_d"].value) and reason in (metrics["cider_d"].note or "")
    assert metrics["bleu_1"].value == pytest.approx(1) and metrics["rouge_l"].value == 1
    rows = [row for row in metric_rows(task.score(said, idf), {"run": "r"}) if row.score == "cider_d"]
    assert len(rows) == 1 and reason in (rows[0].note or "")
    assert all(row["right"] is None and "cider_d" not in row for row in task.per_example(said, idf))


def test_one_reference_more_that_differs_defines_cider_d() -> None:
    references = [["a red cow"], ["a red cow"], ["a dog"]]
    assert np.isfinite(cider_d(["a red cow"], references[:1], Frequencies.of(references))).all()


def test_the_page_says_why_a_headline_is_not_a_number(tmp_path: Path) -> None:
    run = Run(tmp_path, "r", {"metrics": {"test/cider_d": None}, "facts": {}, "status": "ok"})
    run.rows.append({"score": "cider_d", "track": "test", "value": None, "note": "one picture"})
    assert "not a number: one picture" in headlines(run)
