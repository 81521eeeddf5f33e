"""The three scripts and one file a command."""

from ima.core.moved_imports import moved_attribute

__getattr__ = moved_attribute(__name__)
