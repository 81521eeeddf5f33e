"""A run on disk: its folder, its record and rows, what makes two runs the same, comparison; no torch."""
