"""Implicit multimodal alignment: train a mapping adapter into a frozen LLM and look at what happens inside."""

__version__ = "0.1.0"
