"""Whole multimodal models that were trained elsewhere, measured and changed as they are: `evaluate.py lmm=hf`.

`kinds` is the table of model types, `layout` the general rule of which position is what, `whole` the model itself.
"""

from ima.models.hf_multimodal.batch import LmmBatch, batch_of
from ima.models.hf_multimodal.kinds import KINDS, Kind, kind_of
from ima.models.hf_multimodal.layout import Layout, TokenizedSample, joined
from ima.models.hf_multimodal.whole import Lmm, declared_kind, hf

__all__ = [
    "KINDS",
    "Kind",
    "Layout",
    "Lmm",
    "LmmBatch",
    "TokenizedSample",
    "batch_of",
    "declared_kind",
    "hf",
    "joined",
    "kind_of",
]
