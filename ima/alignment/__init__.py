"""Alignment inside the LLM: the tap, streamed statistics, scores and their rows."""
