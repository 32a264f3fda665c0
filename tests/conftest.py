"""``import pixelkiln`` is this checkout, whatever the folder is called."""

from __future__ import annotations

import atexit
import gc
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

WORKER = "PYTEST_XDIST_WORKER" in os.environ
if WORKER:  # one of several at once: a core each
    os.environ["OMP_NUM_THREADS"] = "1"
if WORKER or "PIXELKILN_CACHE" not in os.environ:  # what tests remember is nobody else's
    os.environ["PIXELKILN_CACHE"] = tempfile.mkdtemp(prefix="pixelkiln-cache-")
    atexit.register(shutil.rmtree, os.environ["PIXELKILN_CACHE"], ignore_errors=True)

if "pixelkiln" not in sys.modules:
    where = [str(ROOT)]
    spec = importlib.util.spec_from_file_location("pixelkiln", ROOT / "__init__.py", submodule_search_locations=where)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["pixelkiln"] = module
    spec.loader.exec_module(module)


FROZEN = 0  # modules that were imported when what is kept for good was last taken out of collection


def pytest_runtest_teardown() -> None:
    """A run collects garbage several times: it shall not look through all that pytest and the imports keep."""
    global FROZEN
    if len(sys.modules) - FROZEN > 100:
        FROZEN = len(sys.modules)
        gc.collect()
        gc.freeze()
