"""The nodes as classes for ComfyUI versions that do not have the V3 schema."""

from __future__ import annotations

from typing import Any

from . import routes
from .all import NODES
from .node import In, Node, validator


def _input(one: In) -> tuple[Any, ...]:
    options: dict[str, Any] = {"tooltip": one.tip}
    if one.kind == "COMBO":
        return one.choices(), {**options, "default": one.default}
    if one.kind in ("STRING", "INT", "FLOAT", "BOOLEAN"):
        known = {"default": one.default, "min": one.low, "max": one.high, "step": one.step}
        options |= {key: value for key, value in known.items() if value is not None}
        options |= {"forceInput": True} if one.socket else {}
        options |= {"multiline": True} if one.multiline else {}
    return one.kind, options


def _input_types(node: Node) -> dict[str, dict[str, Any]]:
    types: dict[str, dict[str, Any]] = {
        "required": {one.name: _input(one) for one in node.inputs if not one.optional},
        "optional": {one.name: _input(one) for one in node.inputs if one.optional},
    }
    if node.knows_graph:
        types["hidden"] = {"graph": "PROMPT", "node_id": "UNIQUE_ID"}
    return types


def node_class(node: Node) -> type:
    def run(self, **inputs: Any) -> Any:
        result = node.run(**inputs)
        return {"ui": result.ui, "result": result.values} if result.ui else result.values

    members: dict[str, Any] = {
        "INPUT_TYPES": classmethod(lambda cls: _input_types(node)),
        "RETURN_TYPES": tuple(o.kind for o in node.outputs),
        "RETURN_NAMES": tuple(o.name for o in node.outputs),
        "OUTPUT_IS_LIST": tuple(o.many for o in node.outputs),
        "OUTPUT_TOOLTIPS": tuple(o.tip for o in node.outputs),
        "OUTPUT_NODE": node.output,
        "INPUT_IS_LIST": node.whole_lists,
        "CATEGORY": node.category,
        "DESCRIPTION": node.about,
        "FUNCTION": "run",
        "run": run,
    }
    if node.fingerprint is not None:
        fingerprint = node.fingerprint
        members["IS_CHANGED"] = classmethod(lambda cls, **inputs: fingerprint(**_without_hidden(inputs)))
    if node.check is not None:
        members["VALIDATE_INPUTS"] = classmethod(validator(node.check))
    return type(node.id, (), members)


def _without_hidden(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name not in ("graph", "node_id")}


routes.register()
NODE_CLASS_MAPPINGS = {node.id: node_class(node) for node in NODES}
NODE_DISPLAY_NAME_MAPPINGS = {node.id: node.name for node in NODES}
