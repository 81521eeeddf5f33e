"""What a person may write: typed roots, composition, signatures, validation; no torch."""

from ima.core.moved_imports import moved_attribute

__getattr__ = moved_attribute(__name__)
