"""Pruning masks: which weights of the blocks' linear maps are kept, how that is decided, and how masks compare.

`mask` (files and algebra), `compare` and `rows` know numpy only; `scores`, `select` and `calibration` decide on a
loaded LLM; `recipe` and `builder` make the masks that a config asks for, once; `python -m ima masks` is the command.
"""
