"""Whether the Hugging Face hub is asked for what does not lie here, and whether somebody answers at an address.

`offline: auto` asks the hub where a config names something of it that is not in the local cache and the hub can be
reached; a machine without network is found out with one question of two seconds instead of the libraries' many. Then
no library waits for a network, and no run that needs nothing of the hub asks for a name or a connection.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Collection
from pathlib import Path

VARIABLE = "HF_HUB_OFFLINE"  # read by the libraries when they are imported
ENDPOINT = "https://huggingface.co"
SECONDS = 2.0
YES = ("1", "true", "yes", "on")


def settle(offline: str | bool | None, names: Collection[str] = ()) -> None:
    """Tell the libraries of the hub. offline: auto, true or false; names: what a config wants of the hub and the local
    cache does not have. With auto a variable that is set already wins."""
    asked = "auto" if offline is None else str(offline).lower()
    if asked == "auto" and os.environ.get(VARIABLE):
        return
    is_offline = asked == "true" or (asked == "auto" and not (names and is_online()))
    os.environ[VARIABLE] = "1" if is_offline else "0"
    if (constants := sys.modules.get("huggingface_hub.constants")) is not None:
        constants.HF_HUB_OFFLINE = is_offline  # type: ignore[attr-defined]


def is_offline() -> bool:
    return os.environ.get(VARIABLE, "").lower() in YES


def is_online() -> bool:
    """Whether the hub can be reached."""
    try:
        reach(os.environ.get("HF_ENDPOINT") or ENDPOINT, SECONDS)
    except OSError:
        return False
    return True


def hint() -> str:
    """For messages about something that the local cache does not have."""
    if not is_offline():
        return ""
    return f"; the hub was not asked ({VARIABLE}={os.environ[VARIABLE]}), offline=false asks it"


def reach(url: str, seconds: float) -> None:
    """Raises OSError where nobody answers at `url` in that time. Behind a proxy nothing can be said."""
    import urllib.parse  # a hundredth of a second of each start, for what few runs ask
    import urllib.request

    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    if urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return
    port = parts.port or (80 if parts.scheme == "http" else 443)
    socket.create_connection((host, port), timeout=seconds).close()


def cache_of_hub() -> Path:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub")


def hub_folder(name: str, kind: str = "models") -> Path | None:
    """The local copy of a model of the hub, or the folder that is named; None where there is neither."""
    if Path(name).is_dir():
        return Path(name)
    snapshots = cache_of_hub() / f"{kind}--{name.replace('/', '--')}" / "snapshots"
    files = sorted(path for path in snapshots.glob("*/*") if path.name != ".no_exist")
    return next((path.parent for path in files), None)
