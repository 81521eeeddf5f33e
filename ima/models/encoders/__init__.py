"""Encoders: frozen networks that turn media into features, and the controls."""

from ima.models.encoders.base import Encoder, check_features
from ima.models.encoders.controls import NoiseEncoder
from ima.models.encoders.hf_audio import AudioMAE, AudioTransformer
from ima.models.encoders.hf_video import VideoTransformer
from ima.models.encoders.image import EfficientNetLite, FocusViT, ImagePreprocess, TimmImage

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
