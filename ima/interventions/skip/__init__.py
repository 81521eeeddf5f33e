"""Skips: plans that leave out parts of blocks for some tokens, and the engine that makes them real."""

from ima.core.moved_imports import moved_attribute

__getattr__ = moved_attribute(__name__)
