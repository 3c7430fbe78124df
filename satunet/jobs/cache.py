"""The cache folder, for files that satunet can make or fetch again."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_dir() -> Path:
    """``SATUNET_CACHE``, or ``satunet`` in the user's cache folder."""
    given = os.environ.get("SATUNET_CACHE")
    return Path(given).expanduser() if given else user_cache_path("satunet", appauthor=False)
