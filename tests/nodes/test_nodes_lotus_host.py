"""``dense export --comfy-lotus`` in a real ComfyUI: core's blueprint *Image Depth Estimation (Lotus Depth)*, executed.

COMFYUI_PATH and COMFYUI_PYTHON as in test_nodes_host.py. A run of SD 2.x's public size with random weights is exported;
core takes such files for LotusD by their widths, so nothing smaller will do: about 12 GB of memory and 10 of disk.
"""

from __future__ import annotations

import ast
import copy
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ldm
import numpy as np
import pytest
import torch
from comfy_graph import to_prompt
from comfy_server import ROOT, Server, comfyui, server
from PIL import Image
from public_models import random_file
from safetensors.torch import load_file

from pixelkiln.trainer.cli import main
from pixelkiln.trainer.commands.dense_predict import load_adapter
from pixelkiln.trainer.config import load
from pixelkiln.trainer.dense import scenes
from pixelkiln.trainer.registry import families
from pixelkiln.trainer.training.dense import predict_latents
from pixelkiln.trainer.training.loop import train

pytestmark = pytest.mark.host
FIXTURES = (comfyui, server)
SIDE = 64
BLUEPRINT = "blueprints/Image Depth Estimation (Lotus Depth).json"


def prompt_of(folder: Path, server: Server, **files: str) -> dict[str, Any]:
    """The blueprint as a prompt: the nodes inside its subgraph, with what comes from outside filled in."""
    (inside,) = json.loads((folder / BLUEPRINT).read_text("utf-8"))["definitions"]["subgraphs"]
    inner = {node["id"] for node in inside["nodes"]}
    links = [[link[key] for key in ("id", "origin_id", "origin_slot")] for link in inside["links"]]
    links = [link for link in links if link[1] in inner]
    nodes, kept = copy.deepcopy(inside["nodes"]), {link[0] for link in links}
    for node in nodes:
        node["widgets_values"] = node.get("widgets_values") or []
        for one in node["inputs"]:
            one["link"] = one["link"] if one["link"] in kept else None
    prompt = to_prompt({"nodes": nodes, "links": links}, server.get("/object_info"))
    by_type = {node["class_type"]: (number, node["inputs"]) for number, node in prompt.items()}
    for name, value in files.items():
        (holder,) = (inputs for _, inputs in by_type.values() if name in inputs)
        holder[name] = value
    prompt["picture"] = {"class_type": "LoadImage", "inputs": {"image": "picture.png"}}
    by_type["VAEEncode"][1]["pixels"] = ["picture", 0]
    number, _ = by_type["SamplerCustomAdvanced"]
    prompt["latents"] = {"class_type": "SaveLatent", "inputs": {"samples": [number, 0], "filename_prefix": "latents"}}
    number, _ = by_type["ImageInvert"]
    prompt["saved"] = {"class_type": "SaveImage", "inputs": {"images": [number, 0], "filename_prefix": "map"}}
    return prompt


def conditioning(folder: Path) -> torch.Tensor:
    """[1, 2, 1024]: the two tokens of SD 2's own text encoder that core's LotusConditioning holds as numbers."""
    text = (folder / "comfy_extras/nodes_lotus.py").read_text("utf-8")
    found = re.search(r"torch\.tensor\((\[\[\[.*?\]\]\])\)", text, re.DOTALL)
    assert found
    return torch.tensor(ast.literal_eval(found[1]))


def trained(root: Path) -> Path:
    """An adapter of a short run on an SD 2.x of public size with random weights."""
    model = random_file(families["sd2"].build(), root / "sd2.safetensors")
    scenes.write_scenes(root, 4, (SIDE, SIDE))
    flags = {
        "model.path": str(model), "model.prediction": "v", "run.out": str(root / "runs"), "run.name": "t",
        "run.steps": 2, "run.batch": 1, "run.precision": "fp32", "run.device": "cpu", "save.precision": "fp32",
        "save.state_every": 0, "data.path": str(root / "pictures"), "data.targets": str(root / "depth"),
        "data.unit": 0.001, "data.resolution": SIDE, "dense.task": "depth", "dense.detail": 0, "loss.mse.weight": 1,
        "adapter.rank": 4, "optimizer.learning_rate": 3e-3, "sample.at_start": False,
    }  # fmt: skip
    assert train(load(flags=flags)) == 0
    return root / "runs/t/t.safetensors"


@dataclass
class Made:
    model: Path
    adapter: Path
    latents: torch.Tensor
    """That the trainer predicts, as an autoencoder node gives them."""
    colours: np.ndarray
    """[H, W, 3] from 0 to 1, the map after the autoencoder."""


@pytest.fixture(scope="module")
def made(server, comfyui, tmp_path_factory) -> Made:
    """An adapter, and what the trainer predicts of ``picture.png`` with the prompt of core's LotusConditioning."""
    root = tmp_path_factory.mktemp("lotus")
    adapter = trained(root)
    loaded = load_adapter(adapter, None, lambda line: None, {"run.precision": "fp32"})
    predictor, family = loaded.predictor, loaded.predictor.model.family
    (server.base / "models/vae").mkdir(exist_ok=True)
    ldm.write(server.base / "models/vae/vae.safetensors", ldm.vae(family.vae.state_dict()))
    with Image.open(root / "pictures/00001.png") as picture:
        picture.save(server.base / "input/picture.png")
        pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        given = replace(predictor.prompt, hidden=conditioning(comfyui[0]))
        encoded = family.encode_pixels(pixels)
        mine = predict_latents(predictor.model, predictor.system, encoded, given)
        with predictor.model.adapter.off():
            bare = predict_latents(predictor.model, predictor.system, encoded, given)
        colours = ((family.decode(mine)[0].permute(1, 2, 0) + 1) / 2).clamp(0, 1).numpy()
    assert float((mine - bare).norm() / mine.norm()) > 1e-3, "the adapter has learned nothing"
    return Made(root / "sd2.safetensors", adapter, mine / family.spec.vae["scaling_factor"], colours)


def compare(server: Server, prompt: dict[str, Any], made: Made, inverted: bool) -> tuple[float, float]:
    """Run a prompt whose nodes ``latents`` and ``saved`` save; how far both are off: relative, and in steps of 255."""
    done = server.ended(server.queue(prompt))
    assert done["error"] == "", done["error"]
    (file,) = done["outputs"]["latents"]["latents"]
    theirs = load_file(server.base / "output" / file["subfolder"] / file["filename"])["latent_tensor"]
    (file,) = done["outputs"]["saved"]["images"]
    with Image.open(server.base / "output" / file["subfolder"] / file["filename"]) as opened:
        seen = np.asarray(opened.convert("RGB"), np.float32)
    colours = 1 - made.colours if inverted else made.colours
    return float((theirs - made.latents).norm() / made.latents.norm()), float(np.abs(seen - 255 * colours).max())


@pytest.mark.parametrize("precision, most, steps", [("fp32", 1e-5, 1.01), ("fp16", 2e-3, 4)])
def test_the_blueprint_shows_the_map_that_the_trainer_predicts(server, comfyui, made, precision, most, steps):
    out = server.base / f"models/diffusion_models/{precision}.safetensors"
    words = ["dense", "export", str(out), "--adapter", str(made.adapter), "--comfy-lotus", "--precision", precision]
    assert main(words) == 0
    prompt = prompt_of(comfyui[0], server, unet_name=f"{precision}.safetensors", vae_name="vae.safetensors")
    latents, picture = compare(server, prompt, made, inverted=True)
    print(f"{precision}: latents {latents:.1e} apart, the picture by {picture:.2f} of 255")
    assert latents < most and picture < steps
    assert "model_type IMG_TO_IMG" in (server.base / "server.log").read_text("utf-8")


def test_core_nodes_with_the_lora_and_lotus_prompt_show_the_same(server, made):
    """The example workflow of core's nodes, with LotusConditioning for the empty prompt, as adapters of SD 2.x need."""
    (server.base / "models/checkpoints/sd2.safetensors").symlink_to(made.model)
    (server.base / "models/loras/depth.safetensors").symlink_to(made.adapter)
    saved = json.loads((ROOT / "example_workflows/dense_core_nodes.json").read_text("utf-8"))
    prompt = to_prompt(saved, server.get("/object_info"))
    files = {"ckpt_name": "sd2.safetensors", "lora_name": "depth.safetensors", "image": "picture.png"}
    for number, node in list(prompt.items()):
        node["inputs"] |= {key: value for key, value in files.items() if key in node["inputs"]}
        if node["class_type"] == "CLIPTextEncode":
            prompt[number] = {"class_type": "LotusConditioning", "inputs": {}}
        elif node["class_type"] == "SamplerCustomAdvanced":
            prompt["latents"] = {"class_type": "SaveLatent", "inputs": {"samples": [number, 0], "filename_prefix": "l"}}
        elif node["class_type"] == "SaveImage":
            prompt["saved"] = prompt.pop(number)
    latents, picture = compare(server, prompt, made, inverted=False)
    print(f"core's nodes: latents {latents:.1e} apart, the picture by {picture:.2f} of 255")
    assert latents < 1e-5 and picture < 1.01
