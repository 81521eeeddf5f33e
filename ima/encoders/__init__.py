"""Encoders: frozen networks that turn media into features, and the controls."""

from ima.encoders.base import Encoder, check_features
from ima.encoders.controls import NoiseEncoder
from ima.encoders.hf_audio import AudioMAE, AudioTransformer
from ima.encoders.hf_video import VideoTransformer
from ima.encoders.image import EfficientNetLite, FocusViT, ImagePreprocess, TimmImage

__all__ = [
    "AudioMAE",
    "AudioTransformer",
    "EfficientNetLite",
    "Encoder",
    "FocusViT",
    "ImagePreprocess",
    "NoiseEncoder",
    "TimmImage",
    "VideoTransformer",
    "check_features",
]
