"""Reads run folders and draws them: tidy tables, figures and one self-contained page.

Knows files only (result.json, rows.jsonl, samples.jsonl, media/); imports no torch, lightning or hydra. `build` writes
the page, `collect` one table row per run; drawing is imported with `build` only.
"""
