"""What the page's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from pixelkiln.extension.page import Context
from pixelkiln.extension.security import Addresses, Folders
from pixelkiln.extension.store import Home


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """What the page's screens have in common, over an empty folder of runs."""
    home = Home(tmp_path / "runs")
    home.make()
    return Context(home, Addresses.of(home), Folders())
