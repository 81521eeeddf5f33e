"""Tensors on disk: one safetensors file, whole or not at all."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ima.core.files import replace_atomic


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: dict[str, str]) -> None:
    """A safetensors file, whole or not at all. Raises UserError where the disk is full."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def write(temporary: Path) -> None:
        try:
            save_file(dict(tensors), temporary, metadata)
        except SafetensorError as error:  # its own kind even for a full disk
            if "os error 28" not in str(error):
                raise
            raise OSError(errno.ENOSPC, str(error)) from error

    replace_atomic(path, write)
