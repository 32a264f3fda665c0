"""Pixelkiln: LoRA training with a pixel-space loss and preferences, for consumer GPUs.

This folder is also a ComfyUI node pack. Nothing is imported before ComfyUI asks for the nodes.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """ComfyUI's V3 entry point."""
    from .nodes.v3 import Extension

    return Extension()


def __getattr__(name: str):
    """The V1 tables, for a ComfyUI that has no V3 schema; where there is one they must be absent."""
    if name in ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"):
        import sys
        from importlib.util import find_spec

        if "folder_paths" in sys.modules and not (find_spec("comfy_api") and find_spec("comfy_api.latest")):
            from .nodes import v1

            return getattr(v1, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
