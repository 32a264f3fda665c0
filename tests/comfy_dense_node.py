"""Run by ComfyUI's own Python (see nodes/test_nodes_dense_host.py): Dense prediction, and the chain of core's nodes, on
a checkpoint with a dense adapter. Writes ``node.npy``, ``node_core_loader.npy``, ``core.npy`` into a folder.

    comfy_dense_node.py COMFYUI CHECKPOINT ADAPTER PICTURE.npy FOLDER
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COMFYUI, CHECKPOINT, ADAPTER, PICTURE, OUT = sys.argv[1:]
sys.path.insert(0, COMFYUI)
sys.argv = [sys.argv[0], "--cpu", "--force-fp32", "--fp32-vae"]
import comfy.options

comfy.options.enable_args_parsing()
import comfy.sd
import comfy.utils
import numpy as np
import torch
from comfy_chain import sampled

import nodes as core

spec = importlib.util.spec_from_file_location("pixelkiln", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
pack = importlib.util.module_from_spec(spec)
sys.modules["pixelkiln"] = pack
spec.loader.exec_module(pack)
from pixelkiln.nodes import dense, load


def by_core(model: Any, clip: Any, vae: Any, image: torch.Tensor) -> torch.Tensor:
    """What a workflow of core nodes alone computes: the picture, decoded."""
    (prompt,) = core.CLIPTextEncode().encode(clip, "")
    (latents,) = core.VAEEncode().encode(vae, image)
    return core.VAEDecode().decode(vae, sampled(model, latents, prompt))[0]


with torch.no_grad():
    model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(CHECKPOINT, output_vae=True, output_clip=True)
    image = torch.from_numpy(np.load(PICTURE))[None]
    asked = {"how": dense.WHOLE, "side": 0, "near_is": dense.BRIGHT}
    ours = load.apply(model, clip, Path(ADAPTER), 1.0, 1.0, "", load.ERROR)
    print(ours.info)
    _, raw, trusted = dense.DENSE.run(ours.model, ours.clip, vae, image, task=dense.FROM_ADAPTER, **asked).values
    np.save(Path(OUT) / "node.npy", raw[0, ..., 0].numpy())
    with_lora, lora_clip = comfy.sd.load_lora_for_models(model, clip, comfy.utils.load_torch_file(ADAPTER), 1.0, 1.0)
    _, raw, _ = dense.DENSE.run(with_lora, lora_clip, vae, image, task="depth", **asked).values
    np.save(Path(OUT) / "node_core_loader.npy", raw[0, ..., 0].numpy())
    np.save(Path(OUT) / "core.npy", by_core(with_lora, lora_clip, vae, image)[0].numpy())
