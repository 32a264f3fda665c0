"""Run in a process of its own (see test_golden.py): the pack's entry points for ComfyUI, loaded beside small stand-ins
for ComfyUI's modules. Prints one JSON object: the V1 classes, the V3 schemas, the route and its answers.

    python golden_faces.py FOLDER
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

ROOT, BASE = Path(__file__).resolve().parents[1], Path(sys.argv[1])
ROUTES: dict[str, Any] = {}


def module(name: str, **members: Any) -> None:
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(members)


def comfyui() -> None:
    """The folder list, the server and the web library."""
    known = {"loras": [], "checkpoints": []}
    module(
        "folder_paths",
        get_output_directory=lambda: str(BASE / "output"), get_input_directory=lambda: str(BASE / "input"),
        get_temp_directory=lambda: str(BASE / "temp"),
        get_folder_paths=lambda kind: [folder for folder in known[kind] if folder.startswith(str(BASE))],
        add_model_folder_path=lambda kind, folder, is_default=False: known.setdefault(kind, []).append(folder),
        get_filename_list=lambda kind: [], get_full_path=lambda kind, name: None,
    )  # fmt: skip
    table = types.SimpleNamespace(post=lambda path: lambda handler: ROUTES.setdefault(f"POST {path}", handler))
    module("server", PromptServer=types.SimpleNamespace(instance=types.SimpleNamespace(routes=table)))
    answer = types.SimpleNamespace(json_response=lambda body, status=200: [status, body], Request=None, Response=None)
    module("aiohttp", web=answer)


def pack(name: str) -> types.ModuleType:
    """The pack as ComfyUI imports it: by the path of its folder."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py")
    assert spec and spec.loader
    sys.modules[name] = loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def input_record(name: str, kind: str, options: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in options.items() if key != "tooltip" and value is not None}
    return {"name": name, "kind": kind, **kept}


def v1_record(node: Any) -> dict[str, Any]:
    def inputs(group: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            input_record(name, "COMBO", {"options": kind, **more})
            if isinstance(kind, list)
            else input_record(name, kind, more)
            for name, (kind, more) in group.items()
        ]

    spec = node.INPUT_TYPES()
    outputs = zip(node.RETURN_NAMES, node.RETURN_TYPES, node.OUTPUT_IS_LIST, strict=True)
    return {
        "required": inputs(spec["required"]), "optional": inputs(spec["optional"]), "hidden": spec.get("hidden", {}),
        "outputs": [{"name": n, "kind": k, "list": many} for n, k, many in outputs],
        "output_node": node.OUTPUT_NODE, "input_is_list": node.INPUT_IS_LIST,
    }  # fmt: skip


class Kind:
    """A socket type of ``comfy_api.latest.io``."""

    def __init__(self, kind: str):
        self.kind = kind

    def Input(self, id: str, *, optional: bool = False, advanced: bool = False, **options: Any) -> dict[str, Any]:
        return input_record(id, self.kind, {**options, "optional": optional or None, "advanced": advanced or None})

    def Output(self, display_name: str, is_output_list: bool = False, **_: Any) -> dict[str, Any]:
        return {"name": display_name, "kind": self.kind, "list": is_output_list}


class Autogrow:
    @staticmethod
    def TemplateNames(one: dict[str, Any], names: list[str], min: int) -> dict[str, Any]:
        return {"input": one, "names": names, "min": min}

    @staticmethod
    def Input(id: str, template: dict[str, Any], optional: bool, **_: Any) -> dict[str, Any]:
        return {"name": id, "kind": "AUTOGROW", "template": template}


def schema(node_id: str, inputs: list, outputs: list, hidden: list, search_aliases: list, **flags: Any) -> dict:
    kept = {key: flags[key] for key in ("is_output_node", "is_input_list")}
    return {"id": node_id, "inputs": inputs, "outputs": outputs, "hidden": hidden, **kept}


def v3_records(loaded: types.ModuleType, autogrow: bool) -> dict[str, Any]:
    io = types.SimpleNamespace(
        ComfyNode=object, NodeOutput=tuple, Schema=schema, Custom=Kind, String=Kind("STRING"), Int=Kind("INT"),
        Float=Kind("FLOAT"), Boolean=Kind("BOOLEAN"), Combo=Kind("COMBO"),
        Hidden=types.SimpleNamespace(prompt="PROMPT", unique_id="UNIQUE_ID"),
    )  # fmt: skip
    if autogrow:
        io.Autogrow = Autogrow
    vars(sys.modules["comfy_api.latest"])["io"] = io

    async def nodes() -> list[Any]:
        extension = await loaded.comfy_entrypoint()
        await extension.on_load()
        return await extension.get_node_list()

    found = [node.define_schema() for node in asyncio.run(nodes())]
    return {one.pop("id"): one for one in found}


def preference(classes: dict[str, Any]) -> dict[str, Any]:
    """A question on a node, and what the page's route answers to it."""
    import torch

    def ask(body: Any, content_type: str = "application/json") -> Any:
        async def read() -> Any:
            return body

        return asyncio.run(
            ROUTES["POST /pixelkiln/choose"](types.SimpleNamespace(content_type=content_type, json=read))
        )

    pictures = torch.rand(2, 16, 16, 3)
    inputs = {"images": pictures, "dataset": "likes", "prompt": "a cat", "picture_seed": 5}
    shown = classes["PixelkilnPreference"]().run(**inputs, winner=-1)["ui"]
    rated = classes["PixelkilnRate"]().run(**inputs, liked="ask")["ui"]
    token, other = (one["pixelkiln_choice"][0]["token"] for one in (shown, rated))
    answers = {
        "winner": ask({"token": token, "winner": 1}), "liked": ask({"token": other, "liked": [True, False]}),
        "no token": ask({}), "no JSON": ask({}, "text/plain"),
    }  # fmt: skip
    folder = BASE / "output" / "pixelkiln" / "data" / "likes"
    files = {
        path.name: [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for path in folder.rglob("*.jsonl")
    }
    return {"ui": {"preference": shown, "rate": rated}, "answers": answers, "files": files}


def main() -> dict[str, Any]:
    comfyui()
    old = pack("pixelkiln_v1")
    classes = old.NODE_CLASS_MAPPINGS
    found = {
        "v1": {name: v1_record(node) for name, node in classes.items()},
        "display_names": sorted(old.NODE_DISPLAY_NAME_MAPPINGS) == sorted(classes),
        "info": {name: node.INPUT_TYPES() for name, node in classes.items()},
        "routes": sorted(ROUTES),
        "preference": preference(classes),
        "web": (ROOT / old.WEB_DIRECTORY).is_dir(),
    }
    module("comfy_api")
    module("comfy_api.latest", ComfyExtension=object, io=None)
    for name in ("comfy_api", "comfy_api.latest"):
        sys.modules[name].__spec__ = importlib.util.spec_from_loader(name, None)
    sys.modules["comfy_api"].__path__ = []
    for autogrow in (False, True):
        new = pack(f"pixelkiln_v3_{autogrow}")
        found["v3, Autogrow" if autogrow else "v3"] = v3_records(new, autogrow)
        found["v1 hidden by v3"] = not hasattr(new, "NODE_CLASS_MAPPINGS")
    return found


if __name__ == "__main__":
    print("FOUND " + json.dumps(main()))
