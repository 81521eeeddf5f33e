"""Figures of what `alignment=full` measures inside the LLM: variants, sites of a block, cones, norms, logit lens.

Every figure is made only where its rows are: a default run gets none of them. They show the last epoch that has the
rows, one dataset, role T (all text) unless said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ima.core.metric_names import TEXT_ALONE
from ima.report import curves as series
from ima.report.curves import Curve, Row
from ima.report.figures.drawing import Figure
from ima.report.figures.panels import Panel, Stroke, multiples
from ima.report.figures.style import DASHES

DEFAULT_VARIANTS = (None, "raw", "nosink")
VARIANTS = {  # label, colour, dash
    "raw": ("raw", "c0", DASHES[0]),
    "nosink": ("no sink", "c1", DASHES[1]),
    "nomassive": ("no massive tokens", "c2", DASHES[0]),
    "scaled": ("scaled dimensions", "c3", DASHES[3]),
    "centred": ("centred", "c6", DASHES[2]),
}
STREAM = {"resid_pre": ("c5", DASHES[2]), "resid_mid": ("c2", DASHES[1]), "resid_post": ("c0", DASHES[0])}
ADDED = {"sa": ("c1", DASHES[0]), "fc2": ("c3", DASHES[1])}
WITHIN = {"ln1": ("c4", DASHES[0]), "ln2": ("c6", DASHES[1]), "fc1": ("c7", DASHES[2])}
SITES = ("resid_pre", "ln1", "sa", "resid_mid", "ln2", "fc1", "fc2", "resid_post")


def full_rows(rows: Sequence[Row]) -> list[Row]:
    """Validation rows of every site, of one dataset (the most frequent); empty where a default run measured no more
    than it must."""
    kept = [
        row if row["epoch"] is not None else {**row, "epoch": series.EVALUATED}
        for row in series.where(rows, split=series.measured_split(rows), track=(None, "val"))
    ]
    kept = [row for row in kept if row["role_b"] != TEXT_ALONE]
    if all(row["site"] in (None, "resid_post") and row["variant"] in DEFAULT_VARIANTS for row in kept):
        return []
    datasets = Counter((row["dataset_a"], row["modality_a"]) for row in kept if row["score"] == "sim")
    if len(datasets) < 2:
        return kept
    dataset, modality = datasets.most_common(1)[0][0]
    textual = "text"  # modality_a of T with T
    return [row for row in kept if row["dataset_a"] == dataset and row["modality_a"] in (modality, textual)]


def latest(rows: Sequence[Row], label: str, layer: str = "layer_b", **fields: object) -> Curve:
    """The rows with these fields, at the last epoch that has any, over the layer. Site resid_post unless given."""
    kept = [row for row in series.where(rows, **{"site": "resid_post", **fields}) if row[layer] is not None]
    epochs = series.epochs(kept)
    return series.curve(series.where(kept, epoch=epochs[-1]) if epochs else [], label, lambda row: row[layer])


def similarity(rows: Sequence[Row], score: str, variant: str, site: str = "resid_post") -> Curve:
    return latest(rows, variant, score=score, role_a="P", role_b="T", variant=variant, site=site)


def variants(rows: Sequence[Row]) -> list[Figure]:
    panels = [
        Panel(title, [Stroke(label, similarity(rows, score, variant), colour, dash)
                      for variant, (label, colour, dash) in VARIANTS.items()])
        for title, score in (("all pairs", "sim"), ("own text only", "sim_matched"),
                             ("own text minus all pairs", "gap_read"), ("P as it enters (layer 0)", "sim_p0"))
    ]  # fmt: skip
    return multiples(
        "full_variants",
        "Similarity in every variant",
        "What is left of P against T without the first position, without tokens of huge norm, with every dimension"
        " divided by its deviation, and minus the mean example (own text only); bands: 95 % interval.",
        panels,
        ylabel="cosine, P against T",
        alike="row",
    )


def sites(rows: Sequence[Row]) -> list[Figure]:
    panels = []
    for variant in ("raw", "nomassive"):
        for place, chosen in (("stream", STREAM), ("added", ADDED), ("within", WITHIN)):
            strokes = [Stroke(site, similarity(rows, "sim", variant, site), *look) for site, look in chosen.items()]
            if place == "added" and variant == "raw":
                strokes.append(Stroke("whole update", similarity(rows, "sim", "update"), "c2", DASHES[3]))
            panels.append(Panel(f"{place}, {VARIANTS[variant][0].removesuffix(' tokens')}", strokes))
    if not any(stroke.drawn and stroke.label in (*ADDED, *WITHIN) for panel in panels for stroke in panel.strokes):
        return []
    return multiples(
        "full_sites",
        "Similarity inside the blocks",
        "Along the residual stream (left), in what a block adds to it (middle: self-attention, FFN, both), and after"
        " the norms and in the hidden layer (right). Left above middle: the stream aligns more than what is added.",
        panels,
        columns=3,
        ylabel="cosine, P against T",
    )


def cones(rows: Sequence[Row]) -> list[Figure]:
    panels = [
        Panel(label, [
            Stroke("P with P", latest(rows, "pp", score="cone", role_a="P", role_b="P", variant=variant), "P"),
            Stroke("T with T", latest(rows, "tt", score="cone", role_a="T", role_b="T", variant=variant), "T",
                   DASHES[1]),
            Stroke("P with T", similarity(rows, "sim", variant), "c2", DASHES[3]),
        ])
        for variant, (label, _, _) in VARIANTS.items() if variant != "centred"
    ]  # fmt: skip
    return multiples(
        "full_cones",
        "Cones of the two modalities",
        "Mean cosine between tokens of different examples: perceptual (P), textual (T), between both. Each modality"
        " is a narrow cone of its own where P with P and T with T are far above P with T.",
        panels,
        ylabel="mean cosine",
    )


def site_norms(rows: Sequence[Row]) -> list[Figure]:
    if not any(row["score"] == "norm_q50" and row["site"] not in (None, "resid_post") for row in rows):
        return []

    def quartile(site: str, role: str, q: int) -> Curve:
        return latest(rows, role, layer="layer_a", score=f"norm_q{q}", role_a=role, site=site)

    panels = [
        Panel(site, [
            Stroke(role, quartile(site, role, 50), role, dash, (quartile(site, role, 25), quartile(site, role, 75)))
            for role, dash in (("P", DASHES[0]), ("T", DASHES[1]))
        ], log=True)
        for site in SITES
    ]  # fmt: skip
    return multiples(
        "full_norms",
        "Token norms at every site",
        "Median L2 norm of perceptual and textual tokens by layer, band: quartiles, log scale, one axis for all sites.",
        panels,
        columns=4,
        ylabel="L2 norm (log scale)",
    )


def vocabulary(rows: Sequence[Row]) -> list[Figure]:
    def roles(score: str) -> list[Stroke]:
        return [
            Stroke(role, latest(rows, role, score=score, role_a=role, role_b=role), role, dash)
            for role, dash in (("P", DASHES[0]), ("T", DASHES[1]))
        ]

    def both(score: str) -> list[Stroke]:
        return [Stroke("P against T", latest(rows, score, score=score, role_a="P", role_b="T"), "c2", DASHES[3])]

    kl = both("kl")
    panels = [
        Panel("KL(P || T)", kl, log=all(not y <= 0 for y in kl[0].curve.y), ylabel="nats"),
        Panel("JS divergence of P and T", both("js"), ylabel="nats"),
        Panel("entropy", roles("entropy"), ylabel="nats"),
        Panel("with the measured layer before", roles("vocabulary_cosine"), ylabel="cosine"),
    ]
    return multiples(
        "full_vocabulary",
        "Decoded to the vocabulary",
        "Distributions over the vocabulary that the LLM's own head reads from a layer (logit lens): how far P is"
        " from T, how sure each is, and how much each keeps from the layer measured before it; bands: 95 % interval.",
        panels,
        alike="none",
    )
