"""The page's maps: which runs predict one, what a prediction shows and writes, and the relief of a depth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the interface's own extra is not installed")

import gradio as gr

from pixelkiln.extension import compare, maps, words
from pixelkiln.extension.page import Context
from pixelkiln.trainer.runs import control


def made_run(context: Context, name: str, config: str) -> Path:
    folder = context.home.runs / name
    folder.mkdir()
    (folder / "config.toml").write_text(config, encoding="utf-8")
    (folder / f"{name}.safetensors").write_bytes(b"an adapter")
    (folder / "status.json").write_text('{"v": 1, "state": "done", "step": 1, "total": 1}', encoding="utf-8")
    return folder


def built(context: Context) -> maps.Maps:
    with gr.Blocks():
        return maps.Maps(context)


def test_only_runs_with_dense_predict_maps(context: Context):
    screen = built(context)
    assert words.NO_MAPS in screen.show(None)[1]
    made_run(context, "style", "[run]\nsteps = 1\n")
    assert maps.names(context.home) == []
    made_run(context, "deep", '[dense]\ntask = "depth"\n')
    made_run(context, "broken", "[dense\n")
    assert maps.names(context.home) == ["deep"] and maps.task_of(context.home.runs / "deep") == "depth"
    assert screen.show(None)[0]["value"] == "deep"
    with gr.Blocks():
        both = compare.build(context)
    assert len(both.show(None, "", None, [], None, "", "", None)) == len(both.outputs)


@pytest.mark.parametrize("task", ["depth", "normal"])
def test_a_prediction_is_shown_beside_its_picture_and_saved(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
):
    run = made_run(context, "deep", f'[dense]\ntask = "{task}"\n')
    picture = tmp_path / "in.png"
    Image.new("RGB", (40, 24), "red").save(picture)
    asked: list[list[str]] = []

    def ask(arguments: list[str], **more: Any) -> dict[str, Any]:
        asked.append(list(arguments))
        out = Path(arguments[3])
        out.mkdir(parents=True)
        Image.new("RGB", (40, 24), "blue").save(out / "in_preview.png")
        Image.new("I;16", (40, 24)).save(out / "in.png")
        np.save(out / "in.npy", np.linspace(0, 1, 24 * 40, dtype=np.float32).reshape(24, 40))
        return {"maps": [str(out / name) for name in ("in.png", "in.npy", "in_preview.png")], "task": task}

    monkeypatch.setattr(control, "ask", ask)
    line, (before, after), solid = built(context).draw("deep", str(picture), True)
    assert before.getpixel((0, 0)) == (255, 0, 0) and after.getpixel((0, 0)) == (0, 0, 255)
    assert str(run / "maps") in line and (words.NEAR_IS in line) == (task == "depth")
    assert bool(solid) == (task == "depth") and (solid is None or Path(solid).is_file())
    assert asked[0][:3] == ["dense", "predict", str(picture)] and asked[0][-1] == "--tiles"
    assert asked[0][5] == str(run / "deep.safetensors")


def test_what_the_prediction_needs(context: Context, tmp_path: Path):
    screen = built(context)
    made_run(context, "deep", "[dense]\n")
    broken = tmp_path / "no.png"
    broken.write_bytes(b"none")
    for name, given, line in (
        ("deep", None, "drop a picture"), ("gone", str(broken), "there is no .*gone"), ("deep", str(broken), "read"),
    ):  # fmt: skip
        with pytest.raises(gr.Error, match=line):
            screen.draw(name, given, False)


@pytest.mark.parametrize("near_is_large", [True, False])
def test_the_relief_is_high_where_it_is_near(tmp_path: Path, near_is_large: bool):
    depth = np.tile(np.linspace(0, 1, 400, dtype=np.float32), (300, 1))
    picture = Image.new("RGB", (400, 300), (255, 0, 128))
    raw = maps.relief(depth, picture, near_is_large, tmp_path / "one.glb").read_bytes()
    length = int.from_bytes(raw[12:16], "little")
    about, body = json.loads(raw[20 : 20 + length]), raw[28 + length :]
    assert raw[:4] == b"glTF" and len(raw) == int.from_bytes(raw[8:12], "little")
    types = (np.float32, np.float32, np.uint32)
    views = [body[v["byteOffset"] : v["byteOffset"] + v["byteLength"]] for v in about["bufferViews"]]
    arrays = [np.frombuffer(view, kind).reshape(-1, 3) for view, kind in zip(views, types, strict=True)]
    points, colours, faces = arrays[0], arrays[1], arrays[2].astype(np.int64)
    left, right = points[points[:, 0] < -0.49, 2].mean(), points[points[:, 0] > 0.49, 2].mean()
    assert (right > left) == near_is_large and points[:, 2].max() == pytest.approx(maps.RELIEF, abs=1e-3)
    assert np.allclose(colours ** (1 / 2.2), [1.0, 0.0, 0.502], atol=1e-3) and len(points) <= maps.MOST_POINTS**2
    assert faces.min() == 0 and faces.max() == len(points) - 1
    corners = points[faces]
    facing = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (facing[:, 2] > 0).all()  # every face looks at the viewer
