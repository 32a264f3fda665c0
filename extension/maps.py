"""A map of any picture by a run that has learned depth, normals or images: beside it, as a relief, and as files."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image, ImageOps

from ..trainer.errors import UserError
from ..trainer.runs import control
from . import draft, images, words
from .page import SLOW, Context, changing, folder_of, in_place, kindly, note, success
from .store import read_text

MOST_POINTS = 160
"""Points of a side of the relief."""
RELIEF = 0.35
"""Its depth, in parts of its width."""


def task_of(run_dir: Path) -> str | None:
    """What a run has learned to predict: depth, normal, image; None where it is no dense run."""
    try:
        dense = draft.values_of(read_text(run_dir / "config.toml")).get("dense")
    except (OSError, UserError):
        return None
    return str(dense.get("task", "depth")) if isinstance(dense, dict) else None


def names(home: Any) -> list[str]:
    """The runs whose adapter predicts maps, newest first."""
    runs = control.list_runs(home.runs)
    return [one.name for one in runs if control.checkpoints(one.path) and task_of(one.path)]


class Maps:
    """The tab: a picture goes in, its map comes out."""

    def __init__(self, context: Context):
        self.context, self.home, self.address = context, context.home, context.addresses
        with gr.Row(elem_classes="align-end"):
            self.run = changing(gr.Dropdown([], label=words.MAP_RUN, elem_id="map-run", scale=2))
            self.tiles = gr.Checkbox(label=words.MAP_TILES, info=words.MAP_TILES_INFO, scale=2)
            self.predict = gr.Button(
                words.PREDICT, variant="primary", elem_id="predict", scale=1, min_width=150, interactive=False
            )
        self.message = gr.HTML(elem_id="map-message")
        with gr.Row():
            self.picture = gr.Image(
                type="filepath",
                label=words.MAP_PICTURE,
                height=420,
                elem_id="map-picture",
                sources=["upload", "clipboard"],
            )
            self.slider = gr.ImageSlider(
                show_label=False, label=words.MAP_RESULT, interactive=False, max_height=2000,
                elem_id="map-result", elem_classes="two", format="png", buttons=["fullscreen"],
            )  # fmt: skip
        self.relief = gr.Model3D(label=words.RELIEF, height=420, elem_id="map-relief")
        self.outputs = [self.run, self.message, self.predict]
        result = [self.message, self.slider, self.relief]
        asked = [self.run, self.picture, self.tiles]
        self.predict.click(in_place(self.draw, result, at=0), asked, result, **SLOW)

    def show(self, chosen: str | None) -> list[Any]:
        """The runs to choose from; what was predicted stays."""
        known = names(self.home)
        if not known:
            return [gr.update(choices=[], value=None), note(words.NO_MAPS), gr.update(interactive=False)]
        run = gr.update(choices=known, value=chosen if chosen in known else known[0])
        return [run, gr.skip(), gr.update(interactive=True)]

    @kindly
    def draw(self, name: str | None, given: str | None, in_tiles: bool) -> list[Any]:
        """The picture and its map, the relief of a depth, and where the files are."""
        run_dir = folder_of(self.home, name)
        adapters = control.checkpoints(run_dir)
        if not given or not adapters:
            raise UserError(words.MAP_NEEDS)
        if images.size(Path(given)) is None:
            raise UserError(words.MAP_UNREADABLE)
        out = run_dir / "maps" / time.strftime("%Y%m%d-%H%M%S")
        asked = ["dense", "predict", given, str(out), "--adapter", str(adapters[-1].path)]
        asked += ["--formats", "png,npy,preview", *(["--tiles"] if in_tiles else [])]
        answer = control.ask(asked, timeout=1800)
        written = {_kind(Path(one)): Path(one) for one in answer["maps"]}
        with Image.open(given) as opened, Image.open(written["preview"]) as shown:
            pair = (ImageOps.exif_transpose(opened).convert("RGB"), shown.convert("RGB"))
        solid = None
        if answer["task"] == "depth":
            solid = relief(np.load(written["npy"]), pair[0], answer.get("space") == "disparity", out / "relief.glb")
        near = words.NEAR_IS if answer["task"] == "depth" else ""
        line = success(words.MAP_DONE.format(answer["task"], out) + near)
        return [line, pair, str(solid) if solid else None]


def _kind(path: Path) -> str:
    return "preview" if path.name.endswith("_preview.png") else path.suffix.lstrip(".")


def relief(depth: np.ndarray, picture: Image.Image, near_is_large: bool, path: Path) -> Path:
    """The surface of a depth map [H, W] in the picture's colours, as a binary glTF file. Depth is relative: the relief
    has no true proportions."""
    step = max(1, -(-max(depth.shape) // MOST_POINTS))
    z = depth[::step, ::step].astype(np.float64)
    z = z if near_is_large else -z
    z = (z - z.min()) / max(float(z.max() - z.min()), 1e-6) * RELIEF
    height, width = z.shape
    colours = np.asarray(picture.resize((width, height)), np.float32).reshape(-1, 3) / 255
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, width), np.linspace(0.5, -0.5, height) * height / width)
    points = np.stack([x, y, z], 2).reshape(-1, 3).astype(np.float32)
    at = np.arange(height * width).reshape(height, width)
    a, b, c, d = at[:-1, :-1].ravel(), at[:-1, 1:].ravel(), at[1:, :-1].ravel(), at[1:, 1:].ravel()
    faces = np.stack([a, c, b, b, c, d], 1).reshape(-1).astype(np.uint32)
    path.write_bytes(_gltf(points, colours**2.2, faces))  # glTF's colours are linear
    return path


def _gltf(points: np.ndarray, colours: np.ndarray, faces: np.ndarray) -> bytes:
    """Points and colours [N, 3] float32, corners of triangles uint32, as GLB (glTF 2.0, sections 3.6 and 4.4)."""
    parts = [np.ascontiguousarray(one).tobytes() for one in (points, colours.astype(np.float32), faces)]
    starts = [0, len(parts[0]), len(parts[0]) + len(parts[1])]
    vector = {"componentType": 5126, "count": len(points), "type": "VEC3"}
    about = {
        "asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "COLOR_0": 1}, "indices": 2, "material": 0}]}],
        "materials": [{"doubleSided": True, "pbrMetallicRoughness": {"metallicFactor": 0, "roughnessFactor": 1}}],
        "accessors": [
            {"bufferView": 0, **vector, "min": points.min(0).tolist(), "max": points.max(0).tolist()},
            {"bufferView": 1, **vector},
            {"bufferView": 2, "componentType": 5125, "count": len(faces), "type": "SCALAR"},
        ],
        "bufferViews": [{"buffer": 0, "byteOffset": start, "byteLength": len(part)} for start, part in
                        zip(starts, parts, strict=True)],
        "buffers": [{"byteLength": sum(map(len, parts))}],
    }  # fmt: skip
    text = json.dumps(about).encode()
    text += b" " * (-len(text) % 4)
    body = b"".join(parts)
    head = struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + len(body))
    return head + struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(body), b"BIN\0") + body
