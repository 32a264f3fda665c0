"""The nodes as ComfyUI's V3 schema."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from comfy_api.latest import ComfyExtension, io

from . import routes
from .all import NODES
from .node import PRESET, In, Node, validator

_WIDGETS = {"STRING": io.String, "INT": io.Int, "FLOAT": io.Float, "BOOLEAN": io.Boolean, "COMBO": io.Combo}
_YOUNG = ("advanced", "search_aliases")
"""What the first ComfyUI with a V3 schema does not know."""


@cache
def _parameters(kind: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(kind).parameters


def _made(kind: Callable[..., Any], *values: Any, **named: Any) -> Any:
    """``kind(...)`` without what this ComfyUI does not know yet."""
    return kind(*values, **{k: v for k, v in named.items() if k not in _YOUNG or k in _parameters(kind)})


def _input(one: In) -> Any:
    common: dict[str, Any] = {"tooltip": one.tip, "optional": one.optional}
    if one.unset is not None and hasattr(io, "MultiType"):
        text = _made(io.String.Input, one.name, default=PRESET, **common, advanced=one.advanced or None)
        links = [io.Float, io.Int] if one.kind == "FLOAT" else [io.Int]
        return _made(io.MultiType.Input, text, links, advanced=one.advanced or None)
    if one.kind not in _WIDGETS:
        return io.Custom(one.kind).Input(one.name, **common)
    if one.kind == "COMBO":
        common["options"] = one.choices()
    elif one.socket:
        common["force_input"] = True
    if one.kind in ("INT", "FLOAT"):
        common |= {
            key: value for key, value in (("min", one.low), ("max", one.high), ("step", one.step)) if value is not None
        }
    if one.multiline:
        common["multiline"] = True
    if one.advanced:
        common["advanced"] = True
    return _made(_WIDGETS[one.kind].Input, one.name, default=one.default, **common)


def _inputs(node: Node) -> list[Any]:
    """The inputs; sockets that grow together are one Autogrow, which takes the place of the first."""
    if not hasattr(io, "Autogrow"):
        return [_input(one) for one in node.inputs]
    found: dict[str, Any] = {}
    for one in node.inputs:
        if one.grows and one.grows not in found:
            names = [other.name for other in node.inputs if other.grows == one.grows]
            template = io.Autogrow.TemplateNames(_input(one), names=names, min=0)
            found[one.grows] = io.Autogrow.Input(one.grows, template=template, optional=True, tooltip=one.tip)
        elif not one.grows:
            found[one.name] = _input(one)
    return list(found.values())


def _schema(node: Node) -> io.Schema:
    return _made(
        io.Schema,
        node_id=node.id,
        display_name=node.name,
        category=node.category,
        description=node.about,
        search_aliases=list(node.aliases),
        inputs=_inputs(node),
        outputs=[
            io.Custom(o.kind).Output(display_name=o.name, tooltip=o.tip, is_output_list=o.many) for o in node.outputs
        ],
        hidden=[io.Hidden.prompt, io.Hidden.unique_id] if node.knows_graph else [],
        is_output_node=node.output,
        is_input_list=node.whole_lists,
    )


def node_class(node: Node) -> type[io.ComfyNode]:
    """A class as ComfyUI wants one; its methods are the table's functions."""

    def define_schema(cls) -> io.Schema:
        return _schema(node)

    def execute(cls, **inputs: Any) -> io.NodeOutput:
        if node.knows_graph:
            inputs |= {"graph": cls.hidden.prompt, "node_id": cls.hidden.unique_id}
        for group in {one.grows for one in node.inputs if one.grows}:
            inputs |= inputs.pop(group, None) or {}
        result = node.run(**inputs)
        return io.NodeOutput(*result.values, ui=result.ui or None)

    methods: dict[str, Any] = {"define_schema": classmethod(define_schema), "execute": classmethod(execute)}
    if node.fingerprint is not None:
        fingerprint = node.fingerprint
        methods["fingerprint_inputs"] = classmethod(lambda cls, **inputs: fingerprint(**inputs))
    if node.check is not None:
        methods["validate_inputs"] = classmethod(validator(node.check))
    return type(node.id, (io.ComfyNode,), methods)


class Extension(ComfyExtension):
    async def on_load(self) -> None:
        routes.register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [node_class(node) for node in NODES]
