from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Where the downloaded data lie, on the file system of ``nnUNet_raw``."""
    folder = tmp_path / "source"
    folder.mkdir()
    return folder
