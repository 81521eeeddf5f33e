"""Implicit multimodal alignment: train a mapping adapter into a frozen LLM and look at what happens inside."""

from ima.core import moved_imports

__version__ = "0.1.0"

moved_imports.install()
