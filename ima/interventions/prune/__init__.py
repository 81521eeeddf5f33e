"""Pruning masks: which weights of the blocks' linear maps are kept, how that is decided, and how masks compare.

`bits` (files and algebra), `compare` and `rows` know numpy only; `scores`, `groups` and `calibration` decide on a
loaded LLM; `recipe` and `making` make the masks that a config asks for, once; `python -m ima masks` is the command.
"""
