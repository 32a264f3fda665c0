"""``python -m pixelkiln.extension.supervisor RUNS``: works the queue off, with or without an open page."""

from __future__ import annotations

import sys
from pathlib import Path

from .queue import supervise
from .store import Home

if __name__ == "__main__":
    supervise(Home(Path(sys.argv[1])))
