"""``import pixelkiln`` is this checkout, whatever the folder is called."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

if "PIXELKILN_CACHE" not in os.environ:  # what tests remember is nobody else's
    os.environ["PIXELKILN_CACHE"] = tempfile.mkdtemp(prefix="pixelkiln-cache-")

if "pixelkiln" not in sys.modules:
    where = [str(ROOT)]
    spec = importlib.util.spec_from_file_location("pixelkiln", ROOT / "__init__.py", submodule_search_locations=where)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["pixelkiln"] = module
    spec.loader.exec_module(module)
