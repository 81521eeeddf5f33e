"""Encoders: frozen networks that turn media into features, and the controls."""

from ima.encoders.base import Encoder, check_features
from ima.encoders.controls import NoiseEncoder
from ima.encoders.image import EfficientNetLite, FocusViT, ImagePreprocess, TimmImage

__all__ = [
    "EfficientNetLite",
    "Encoder",
    "FocusViT",
    "ImagePreprocess",
    "NoiseEncoder",
    "TimmImage",
    "check_features",
]
