"""Which figures a page has, in the page's order: those of one run, or those that compare several."""

from __future__ import annotations

from collections.abc import Sequence

from ima.report import curves as series
from ima.report.figures.alignment import consecutive, heat_map, ima_by_epoch, layer_figure, norms, retrieval, variants
from ima.report.figures.compare import comparison_figures
from ima.report.figures.drawing import Figure
from ima.report.figures.full import cones, full_rows, site_norms, sites, vocabulary
from ima.report.figures.full import variants as all_variants
from ima.report.figures.groups import group_figures
from ima.report.figures.masks import mask_rows, overlap_figures
from ima.report.figures.mixture import mixture_figures, named
from ima.report.figures.reservoir import geometry, token_pairs, tsne
from ima.report.figures.task import task_parts, tasks, training
from ima.report.run import Run

__all__ = ["comparison_figures", "figures_of", "full_figures"]


def figures_of(run: Run) -> list[Figure]:
    """All figures of one run in the page's order; those without data carry the reason. What only a full
    measurement has is left out where it is not. Of a mixture, with a panel for each entry."""
    if run.result["facts"].get("kind") == "masks":
        return overlap_figures(mask_rows([run]))
    groups = series.by_entry(run.rows)
    if len(groups) > 1:
        entries = run.result["facts"].get("entries") or {}
        headlines = {entry: str(facts["headline"]) for entry, facts in entries.items() if "headline" in facts}
        first, *rest = mixture_figures(groups, headlines)
        full = [
            named(figure, entry)
            for entry, own in groups.items()
            for figure in (*group_figures(series.alignment_rows(own)), *full_figures(own))
        ]
        return [first, rest[0], training(run.rows), *rest[1:], *task_parts(run.rows), *full]
    rows = series.alignment_rows(next(iter(groups.values())))
    word = series.medium_word(rows)
    return [
        layer_figure(rows, "ima_by_layer", "Implicit alignment by layer",
                     f"Mean cosine between the {series.media_word(rows)}' and the texts' mean tokens, over all pairs,"
                     " at the output of each block; bands: 95 % interval, first and last measurement. It says how close"
                     " the two lie, not whether they mean the same: noise reaches the same values. Compare within one"
                     " LLM.",
                     "sim", "mean cosine, P against T"),
        retrieval(rows),
        heat_map(rows),
        *learning(run.rows, rows),
        layer_figure(rows, "ima_gap", f"What the alignment knows of the {word}",
                     "Similarity with the own text minus similarity with other texts. Zero: the two modalities may be"
                     f" close, but no {word} is closer to its own text. The text has read the {word} in this pass, so"
                     " that an untrained adapter is above zero too.", "gap_read", "own text minus other texts"),
        variants(rows),
        norms(rows),
        consecutive(rows),
        tasks(next(iter(groups.values()))),
        *task_parts(run.rows),
        *group_figures(rows),
        *full_figures(next(iter(groups.values()))),
    ]  # fmt: skip


def learning(rows: Sequence[series.Row], aligned: Sequence[series.Row]) -> list[Figure]:
    """Curves over a training; none for an evaluation, which measures once."""
    if rows and not any(row["split"] == "train" for row in rows) and len({row["epoch"] for row in rows}) == 1:
        return []
    return [training(rows), ima_by_epoch(aligned)]


def full_figures(rows: Sequence[series.Row]) -> list[Figure]:
    """Figures of what `alignment=full` measures: those whose rows are there, none for a default run."""
    kept = full_rows(rows)
    makers = (all_variants, sites, cones, site_norms, vocabulary, token_pairs, geometry, tsne)
    return [figure for make in makers for figure in make(kept)]
