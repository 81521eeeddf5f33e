"""Runs on the Hugging Face hub: `checkpoint=hub:user/name` and `init=hub:user/name` are folders in the hub's cache.

A branch, tag or commit may follow after an @. What is read there is somebody else's, as any run folder is
(docs/security.md).
"""

from __future__ import annotations

import functools
from pathlib import Path

from ima.core.errors import UserError
from ima.core.network import hint, is_offline, is_online

PREFIX = "hub:"
READ = ["*.safetensors", "*.json"]  # the rest is for people


def is_hub(name: str) -> bool:
    return name.startswith(PREFIX)


def local(name: str, key: str = "checkpoint") -> str:
    """The folder that a name stands for; a name of something here is given back as it is. key: what names it, for
    messages. Raises UserError where the hub has no such run, or cannot be asked and the cache has none."""
    return fetch(name.removeprefix(PREFIX), key) if is_hub(name) else name


@functools.lru_cache
def fetch(name: str, key: str) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    repo, _, revision = name.partition("@")
    cached_only = is_offline() or not is_online()
    try:
        folder = snapshot_download(repo, revision=revision or None, allow_patterns=READ, local_files_only=cached_only)
    except HFValidationError as error:
        raise UserError(f"{key}: {PREFIX}{name} is no name of the hub; write {PREFIX}user/name") from error
    except LocalEntryNotFoundError as error:
        reason = hint() or "; the hub cannot be reached"
        raise UserError(f"{key}: {PREFIX}{name} is not in the local cache{reason}") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{key}: the hub has no {PREFIX}{name} that you may read; for a private one log in first (hf auth login)"
        ) from error
    except Exception as error:  # the network has many kinds
        raise UserError(f"{key}: {PREFIX}{name} cannot be had ({type(error).__name__}: {str(error)[:120]})") from error
    if not (Path(folder) / "result.json").is_file():
        raise UserError(f"{key}: {PREFIX}{name} holds no run; one that `ima push` wrote has a result.json")
    return folder
