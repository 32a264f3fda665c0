"""What ComfyUI draws with our loader, on an SD1.5 of public size: COMFYUI_CHECKPOINT names a single file.

Random weights will do. COMFYUI_PATH and COMFYUI_PYTHON as in test_nodes_host.py; about 7 GB of memory.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfy_server import ROOT, Server, comfyui, server
from PIL import Image
from safetensors.torch import load_file, save_file

from pixelkiln.trainer.adapters import files, keys
from pixelkiln.trainer.families.load import meta

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(not os.environ.get("COMFYUI_CHECKPOINT"), reason="COMFYUI_CHECKPOINT names no SD1.5 file"),
]
FIXTURES = (comfyui, server)
SIZE, STEPS, CFG, SEED = 128, 4, 4.0, 7
PROMPT, NEGATIVE = "a photograph of an astronaut riding a horse", "blurry"


def adapter(path: Path, family: str, seed: int) -> Path:
    """A file of random numbers with every module of the family, of an effect that can be seen."""
    denoiser, encoders = meta(family)
    encoders.pop("te3", None)
    random = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.tensor(4.0) if name.endswith("alpha") else torch.randn(shape, generator=random) * 0.05
        for name, shape in keys.file_keys(family, {"unet": denoiser, **encoders}, 4)
    }
    half = {name: value.half() for name, value in tensors.items()}
    files.save(path, half, files.metadata(family, "lora", {"output_name": path.stem}, rank=4, alpha=4.0))
    return path


@pytest.fixture(scope="module")
def adapters(server: Server) -> dict[str, Path]:
    loras = server.base / "models" / "loras"
    made = {name: adapter(loras / f"{name}.safetensors", "sd15", seed) for seed, name in enumerate(("one", "two"))}
    return {**made, "xl": adapter(loras / "xl.safetensors", "sdxl", 2)}


def workflow(loader: str, file: str, **more: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    """Text to image with the file loaded by ``loader``."""
    names = {"PixelkilnLoadAdapter": "adapter", "LoraLoader": "lora_name"}
    load = {"model": ["c", 0], "clip": ["c", 1], names[loader]: file, "strength_model": 1.0, "strength_clip": 1.0}
    if loader == "PixelkilnLoadAdapter":
        load |= {"check": "error", "blocks": "", **more}
    return {
        "c": ("CheckpointLoaderSimple", {"ckpt_name": Path(os.environ["COMFYUI_CHECKPOINT"]).name}),
        "a": (loader, load),
        "p": ("CLIPTextEncode", {"clip": ["a", 1], "text": PROMPT}),
        "n": ("CLIPTextEncode", {"clip": ["a", 1], "text": NEGATIVE}),
        "e": ("EmptyLatentImage", {"width": SIZE, "height": SIZE, "batch_size": 1}),
        "k": ("KSampler", {"model": ["a", 0], "positive": ["p", 0], "negative": ["n", 0], "latent_image": ["e", 0],
                           "seed": SEED, "steps": STEPS, "cfg": CFG, "sampler_name": "euler", "scheduler": "normal",
                           "denoise": 1.0}),
        "d": ("VAEDecode", {"samples": ["k", 0], "vae": ["c", 2]}),
        "s": ("SaveImage", {"images": ["d", 0], "filename_prefix": "seen"}),
    }  # fmt: skip


def picture(server: Server, loader: str, file: str, **more: Any) -> np.ndarray:
    return drawn(server, workflow(loader, file, **more))


def drawn(server: Server, nodes: dict[str, tuple[str, dict[str, Any]]]) -> np.ndarray:
    done = server.run(**nodes)
    assert done["error"] == ""
    (shown,) = done["outputs"]["s"]["images"]
    return pixels(server.base / "output" / shown["subfolder"] / shown["filename"])


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"), dtype=np.float64)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = float(((one - other) ** 2).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def preview(folder: Path, checkpoint: str, file: Path | None) -> np.ndarray:
    """The trainer's own preview, by its command line."""
    config = folder / "preview.toml"
    config.write_text(
        f"""config_version = 1
run = {{device = "cpu", precision = "fp32"}}
model = {{path = {json.dumps(checkpoint)}}}
sample = {{prompts = [{json.dumps(PROMPT)}], negative = "{NEGATIVE}", sampler = "euler", scheduler = "normal",
          steps = {STEPS}, guidance = {CFG}, width = {SIZE}, height = {SIZE}, seed = {SEED}}}
""".replace(",\n ", ","),
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "trainer", "sample", str(config), "-o", str(folder / "drawn"), "--json"]
    command += ["--adapter", str(file)] if file else []
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return pixels(next((folder / "drawn").glob("*.png")))


def test_a_preview_is_the_picture_that_ksampler_draws(server, adapters, tmp_path):
    """euler, normal, the same seed and guidance, noise of the CPU; the rest is the rounding of float32."""
    ours = preview(tmp_path, os.environ["COMFYUI_CHECKPOINT"], adapters["one"])
    theirs = picture(server, "PixelkilnLoadAdapter", "one.safetensors")
    other = picture(server, "PixelkilnLoadAdapter", "two.safetensors")
    print(f"preview and KSampler: {psnr(ours, theirs):.1f} dB; two adapters: {psnr(theirs, other):.1f} dB")
    assert psnr(ours, theirs) > 45
    assert psnr(theirs, other) < 35


def test_our_loader_draws_what_core_draws(server, adapters):
    assert np.array_equal(
        picture(server, "PixelkilnLoadAdapter", "one.safetensors"), picture(server, "LoraLoader", "one.safetensors")
    )


@pytest.mark.parametrize("loader, notices", [("PixelkilnLoadAdapter", True), ("LoraLoader", False)])
def test_a_file_replaced_under_its_name_is_read_again(server, adapters, loader, notices):
    """Core's own loader goes by the path alone and keeps what it read, until other prompts push it out."""
    last = adapters["one"].with_name("last.safetensors")
    for name in ("one", "two"):
        shutil.copy(adapters[name], last.with_name("aside"))
        last.with_name("aside").replace(last)
        shown = picture(server, loader, last.name)
    wanted = picture(server, loader, "two.safetensors" if notices else "one.safetensors")
    assert np.array_equal(shown, wanted)


def test_another_family_raises_where_core_stays_silent(server, adapters):
    done = server.run(**workflow("PixelkilnLoadAdapter", "xl.safetensors"))
    words = "this adapter is for SDXL (cross-attention 2048), the model is SD1.5 (cross-attention 768)"
    assert words in done["error"]
    assert "execution_success" not in done["kinds"]
    assert server.run(**workflow("LoraLoader", "xl.safetensors"))["error"] == ""


def test_blocks_of_zero_are_the_bare_model(server, adapters):
    bare = picture(server, "PixelkilnLoadAdapter", "none")
    assert np.array_equal(picture(server, "PixelkilnLoadAdapter", "one.safetensors", blocks="all=0"), bare)
    assert not np.array_equal(picture(server, "PixelkilnLoadAdapter", "one.safetensors", blocks="te=0 in=0.5"), bare)


def test_rows_are_adapters_with_two_strengths_in_their_order(server, adapters):
    """Rows that are on, in order, are core's loaders in a row; one that is off is none."""
    nodes = workflow("LoraLoader", "two.safetensors")
    first = {**nodes["a"][1], "lora_name": "one.safetensors", "strength_model": 0.5, "strength_clip": 0.25}
    second = {**nodes["a"][1], "model": ["b", 0], "clip": ["b", 1], "strength_model": 0.5, "strength_clip": 0.0}
    row = drawn(server, {**nodes, "b": ("LoraLoader", first), "a": ("LoraLoader", second)})
    rows = "one.safetensors | 0.5 | 0.25\n# xl.safetensors\ntwo.safetensors | 0.5 | 0"
    stack = {
        "model": ["c", 0],
        "clip": ["c", 1],
        "check": "error",
        "adapter_1": "none",
        "strength_1": 1.0,
        "rows": rows,
    }
    assert np.array_equal(drawn(server, {**nodes, "a": ("PixelkilnAdapterStack", {**stack, "rows": rows})}), row)


def test_a_block_vector_is_its_words(server, adapters):
    words = "all=0 te=1 base=1 mid=0.5 in.1=1 out.3-11=1"
    vector = "1,1,0,0,0,0,0,0.5" + ",1" * 9
    shown = [picture(server, "PixelkilnLoadAdapter", "one.safetensors", blocks=text) for text in (words, vector)]
    assert np.array_equal(*shown)
    assert not np.array_equal(shown[0], picture(server, "PixelkilnLoadAdapter", "one.safetensors"))


def scheduled(schedule: str, between: str = "in steps") -> dict[str, tuple[str, dict[str, Any]]]:
    """Text to image with the denoiser's part of ``one`` by the schedule."""
    nodes = workflow("PixelkilnLoadAdapter", "none")
    node = {"model": ["c", 0], "positive": ["p", 0], "negative": ["n", 0], "adapter": "one.safetensors",
            "schedule": schedule, "between": between, "check": "warn"}  # fmt: skip
    sampler = {**nodes["k"][1], "positive": ["h", 0], "negative": ["h", 1]}
    return {**nodes, "h": ("PixelkilnAdapterSchedule", node), "k": ("KSampler", sampler)}


def test_strength_over_steps_is_cores_loader_where_it_stands_still(server, adapters):
    """At 20 throughout it is the model with the adapter, at 0 the bare one; what changes is neither."""
    always = drawn(server, scheduled("0: 20"))
    core = workflow("LoraLoader", "one.safetensors")
    core["a"] = ("LoraLoaderModelOnly", {"model": ["c", 0], "lora_name": "one.safetensors", "strength_model": 20.0})
    for name in "pn":
        core[name] = (core[name][0], {**core[name][1], "clip": ["c", 1]})
    assert psnr(always, drawn(server, core)) > 45
    bare = picture(server, "PixelkilnLoadAdapter", "none")
    assert psnr(drawn(server, scheduled("0: 0")), bare) > 45
    late, line = drawn(server, scheduled("0: 0, 0.5: 20")), drawn(server, scheduled("0: 0, 1: 20", "linear"))
    for one, other in ((late, always), (late, bare), (line, late), (line, bare)):
        assert psnr(one, other) < 45


def test_trigger_words_go_into_a_prompt(server, adapters):
    tags = json.dumps({"1_x": {"sks": 3, "wet": 2}})
    save_file(load_file(adapters["one"]), adapters["one"].with_name("tagged.safetensors"), {"ss_tag_frequency": tags})
    nodes = workflow("LoraLoader", "one.safetensors")
    words = {"adapter": "tagged.safetensors", "source": "training tags", "which": "2, sks", "most": 5}
    nodes |= {"w": ("PixelkilnTriggerWords", words), "p": ("CLIPTextEncode", {"clip": ["a", 1], "text": ["w", 0]})}
    linked = drawn(server, nodes)
    nodes["p"] = ("CLIPTextEncode", {"clip": ["a", 1], "text": "wet, sks"})
    assert np.array_equal(linked, drawn(server, nodes))


@pytest.mark.parametrize("socket", ["paths.path_1", "path_1"])
def test_a_stack_is_its_adapters_in_a_row(server, adapters, socket):
    """By the socket that grows, and by its name in workflows saved where none grows."""
    nodes = workflow("LoraLoader", "two.safetensors")
    first = {**nodes["a"][1], "lora_name": "one.safetensors"}
    second = {**nodes["a"][1], "model": ["b", 0], "clip": ["b", 1], "strength_model": 0.5, "strength_clip": 0.5}
    row = drawn(server, {**nodes, "b": ("LoraLoader", first), "a": ("LoraLoader", second)})
    stack = {
        "model": ["c", 0], "clip": ["c", 1], "check": "error", "adapter_1": "none", "strength_1": 1.0,
        "adapter_2": "two.safetensors", "strength_2": 0.5, socket: ["f", 0],
    }  # fmt: skip
    file = ("PrimitiveString", {"value": str(adapters["one"])})
    assert np.array_equal(drawn(server, {**nodes, "f": file, "a": ("PixelkilnAdapterStack", stack)}), row)
