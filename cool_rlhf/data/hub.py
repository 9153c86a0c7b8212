"""Whether the Hub is within reach, asked once: its client would retry for half a minute before it says no."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

_PATIENCE = 3.0  # seconds


@cache
def prepare_hub() -> bool:
    """True where the Hub answers. Otherwise only copies in the local cache are used from here on, also by processes
    started later. Call it before ``datasets`` or ``transformers`` are imported."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # the proxy looks up names: only the client itself can tell
    if _answers(constants.ENDPOINT):
        return True
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True
    return False


def cached_set(name: str) -> bool:
    """Whether the local caches hold anything of the data set ``name``."""
    from huggingface_hub import constants

    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets"))
    downloaded = Path(constants.HF_HUB_CACHE, "datasets--" + name.replace("/", "--"))
    return downloaded.is_dir() or (prepared / name.replace("/", "___")).is_dir()


def _answers(endpoint: str) -> bool:
    parts = urlsplit(endpoint)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    pool = ThreadPoolExecutor(max_workers=1)
    try:
        pool.submit(socket.create_connection, (parts.hostname or "", port), _PATIENCE).result(_PATIENCE).close()
    except (OSError, FutureTimeoutError):
        return False
    finally:
        pool.shutdown(wait=False)
    return True
