"""Which figures a page has, in the page's order: those of one run, or those that compare several."""

from __future__ import annotations

from ima.report import series
from ima.report.drawing import Figure
from ima.report.figures_alignment import consecutive, heat_map, ima_by_epoch, layer_figure, norms, variants
from ima.report.figures_compare import comparison_figures
from ima.report.figures_task import tasks, training
from ima.report.load import Run

__all__ = ["comparison_figures", "figures_of"]


def figures_of(run: Run) -> list[Figure]:
    """All figures of one run in the page's order; those without data carry the reason."""
    rows = series.alignment_rows(run.rows)
    return [
        layer_figure(rows, "ima_by_layer", "Implicit alignment by layer",
                     "Mean cosine between the pictures' and the texts' mean tokens, over all pairs, at the output"
                     " of each block; bands: 95 % interval, first and last epoch. Compare within one LLM, not across.",
                     "sim", "mean cosine, P against T"),
        heat_map(rows),
        training(run.rows),
        ima_by_epoch(rows),
        layer_figure(rows, "ima_gap", "What the alignment knows of the picture",
                     "Similarity with the own text minus similarity with other texts. Zero: the two modalities may be"
                     " close, but no picture is closer to its own caption.", "sim_gap", "own text minus other texts"),
        variants(rows),
        norms(rows),
        consecutive(rows),
        tasks(run.rows),
    ]  # fmt: skip
