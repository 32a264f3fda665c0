"""A dense adapter in a real ComfyUI; COMFYUI_PATH, COMFYUI_PYTHON, COMFYUI_CHECKPOINT as in test_nodes_pictures.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from comfy_graph import to_prompt
from comfy_server import ROOT, Server, comfyui, server
from PIL import Image

from pixelkiln.trainer.adapters import files, keys
from pixelkiln.trainer.families.load import meta

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(not os.environ.get("COMFYUI_CHECKPOINT"), reason="COMFYUI_CHECKPOINT names no SD1.5 file"),
]
FIXTURES = (comfyui, server)
SIDE = 64


def adapter(path: Path) -> Path:
    """Random numbers in every module of the denoiser, the time embedding and the first and last layers among them."""
    denoiser, _ = meta("sd15")
    random = torch.Generator().manual_seed(0)
    names = [*keys.file_keys("sd15", {"unet": denoiser}, 4)]
    tensors = {
        name: torch.tensor(4.0) if name.endswith("alpha") else torch.randn(shape, generator=random) * 0.03
        for name, shape in names
    }
    facts = {"task": "depth", "space": "disparity", "quantiles": [0.02, 0.98], "timestep": 999, "prediction": "sample",
             "prompt": "", "tokens": 77, "resolution": [SIDE, SIDE], "task_switch": "embedding"}  # fmt: skip
    about = files.metadata("sd15", "lora", {"output_name": path.stem}, rank=4, alpha=4.0)
    files.save(path, tensors, about | {"pixelkiln.dense": json.dumps(facts)})
    return path


@pytest.fixture(scope="module")
def maps(comfyui, tmp_path_factory) -> dict[str, np.ndarray]:
    """The same map by the trainer, by the node, and by core's own nodes."""
    folder = tmp_path_factory.mktemp("dense")
    file = adapter(folder / "depth.safetensors")
    picture = (np.random.default_rng(0).random((SIDE, SIDE, 3)) * 255).round().astype(np.uint8)
    Image.fromarray(picture).save(folder / "picture.png")
    np.save(folder / "picture.npy", picture.astype(np.float32) / 255)
    command = [sys.executable, "-m", "trainer", "dense", "predict", str(folder / "picture.png")]
    command += [str(folder / "ours.npy"), "--adapter", str(file)]
    command += ["--model", os.environ["COMFYUI_CHECKPOINT"], "--precision", "fp32"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    path, python = comfyui
    command = [
        python,
        str(ROOT / "tests" / "comfy_dense_node.py"),
        str(path),
        os.environ["COMFYUI_CHECKPOINT"],
        str(file),
    ]
    command += [str(folder / "picture.npy"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "it predicts depth (disparity)" in done.stdout and "problem" not in done.stdout
    return {name: np.load(folder / f"{name}.npy") for name in ("ours", "node", "node_core_loader", "core")}


def test_the_node_gives_the_trainers_map(maps):
    assert maps["node"].std() > 0.01
    difference = np.abs(maps["node"] - maps["ours"]).max()
    print(f"node and trainer differ by {difference:.1e}, the map's spread is {maps['node'].std():.2f}")
    assert difference < 1e-4


def test_a_loader_of_core_and_ours_give_the_same_map(maps):
    assert np.abs(maps["node"] - maps["node_core_loader"]).max() < 1e-6


def test_core_nodes_alone_give_the_same_picture(maps):
    """VAEDecode cuts off at 0 and 1; the mean of its channels is the map where nothing was cut off."""
    whole = ((maps["core"] > 0) & (maps["core"] < 1)).all(-1)
    assert whole.mean() > 0.1
    assert np.abs(maps["core"].mean(-1) - maps["node"])[whole].max() < 1e-5


def control_net(path: Path) -> Path:
    """One of SD1.5's size with random numbers, which changes the picture."""
    from diffusers import ControlNetModel
    from safetensors.torch import save_file

    torch.manual_seed(0)
    with torch.device("meta"):
        made = ControlNetModel(cross_attention_dim=768)
    tensors = {name: (torch.randn(one.shape) * 0.02).half() for name, one in made.state_dict().items()}
    save_file(tensors, str(path))
    return path


def run_flow(server: Server, name: str, **files: str) -> dict[str, np.ndarray]:
    """The pictures of an example workflow at 64 pixels and two steps, by the node that saved them."""
    saved = json.loads((ROOT / f"example_workflows/{name}.json").read_text(encoding="utf-8"))
    prompt = to_prompt(saved, server.get("/object_info"))
    for node in prompt.values():
        given = {key for key, value in node["inputs"].items() if not isinstance(value, list)}
        node["inputs"] |= {key: value for key, value in files.items() if key in given}
        if node["class_type"] == "EmptyLatentImage":
            node["inputs"] |= {"width": SIDE, "height": SIDE}
        if node["class_type"] == "KSampler":
            node["inputs"] |= {"steps": 2}
    done = server.ended(server.queue(prompt))
    assert done["error"] == "", done["error"]
    found = {}
    for number, outputs in done["outputs"].items():
        for one in outputs.get("images", []):
            folder = server.base / ("temp" if one["type"] == "temp" else "output") / one["subfolder"]
            with Image.open(folder / one["filename"]) as opened:
                found[prompt[number]["class_type"]] = np.asarray(opened.convert("RGB"), np.float32) / 255
    return found


def test_the_example_workflows_run(server, maps, tmp_path):
    """Core's nodes save the map that the trainer predicts; ours feeds a depth ControlNet."""
    loras, nets = server.base / "models" / "loras", server.base / "models" / "controlnet"
    nets.mkdir(parents=True, exist_ok=True)
    adapter(loras / "depth.safetensors")
    control_net(nets / "net.safetensors")
    picture = (np.random.default_rng(0).random((SIDE, SIDE, 3)) * 255).round().astype(np.uint8)
    Image.fromarray(picture).save(server.base / "input" / "picture.png")
    checkpoint = Path(os.environ["COMFYUI_CHECKPOINT"]).name
    files_ = {"ckpt_name": checkpoint, "image": "picture.png", "lora_name": "depth.safetensors"}
    core = run_flow(server, "dense_core_nodes", **files_)["SaveImage"]
    assert np.abs(core - maps["core"].clip(0, 1)).max() < 1.5 / 255
    files_ |= {"adapter": "depth.safetensors", "control_net_name": "net.safetensors"}
    ours = run_flow(server, "dense_prediction", **files_)
    assert ours["PreviewImage"].std() > 0.05 and ours["SaveImage"].shape == (SIDE, SIDE, 3)
