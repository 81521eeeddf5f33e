"""Reads run folders and draws them: tidy tables, figures and one self-contained page.

Knows files only (result.json, rows.jsonl, samples.jsonl, media/); imports no torch, lightning or hydra, and
matplotlib only when something is drawn. `write_report` makes the page, `collect` one table row per run.
"""

from ima.report.build import write_report
from ima.report.collect import collect, write_csv

__all__ = ["collect", "write_csv", "write_report"]
