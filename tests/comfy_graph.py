"""A saved workflow as the page would send it to be executed, by the server's own description of its nodes."""

from __future__ import annotations

from typing import Any

_WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
_ONLY_SHOWN = ("Note", "MarkdownNote")


def to_prompt(workflow: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """Node id -> {class_type, inputs}. AssertionError where the file and the nodes do not agree."""
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in _ONLY_SHOWN:
            continue
        known = info[node["type"]]
        spec = {**known["input"].get("required", {}), **known["input"].get("optional", {})}
        linked = {one["name"]: links[one["link"]] for one in node["inputs"] if one["link"] is not None}
        assert linked.keys() <= spec.keys(), (node["type"], linked.keys() - spec.keys())
        values, inputs = list(node["widgets_values"]), {}
        for name in [*known["input_order"]["required"], *known["input_order"].get("optional", [])]:
            kind, options = spec[name][0], spec[name][1] if len(spec[name]) > 1 else {}
            kind = options.get("widgetType") or kind
            is_widget = (isinstance(kind, list) or kind in _WIDGETS) and not options.get("forceInput")
            if is_widget:
                inputs[name] = values.pop(0)
                if name in ("seed", "noise_seed") or options.get("control_after_generate"):
                    values.pop(0)
                if options.get("image_upload"):  # the button below it is a widget too
                    values.pop(0)
            if name in linked:
                inputs[name] = linked[name]
        assert not values, (node["type"], values)
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt
