"""The papers' claims as a table computed from runs: what was measured, over how many seeds, with which verdict."""
