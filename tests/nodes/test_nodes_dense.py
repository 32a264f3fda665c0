"""Dense prediction without ComfyUI: headers, sizes, tiles, which pixels are trusted, and what the loader remarks."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from pixelkiln.nodes import dense, host
from pixelkiln.nodes.dense import BRIGHT, DARK, FROM_ADAPTER, TILES, WHOLE
from pixelkiln.trainer.dense.header import DenseHeader
from pixelkiln.trainer.errors import UserError


def header(**facts: Any) -> dict[str, str]:
    return {"pixelkiln.dense": json.dumps({"task": "depth", "space": "disparity", "resolution": [128, 64]} | facts)}


def test_the_loader_remarks_what_such_an_adapter_is_for():
    assert dense.remark({"ss_tag": "cat"}, 0.5) == []
    (line,) = dense.remark(header(), 1.0)
    assert "depth (disparity)" in line and "Dense prediction" in line
    assert "exact at strength 1 only, and is at 0.5" in dense.remark(header(task="normal"), 0.5)[1]


def ramp(height: int, width: int) -> Tensor:
    """A picture whose brightness rises from left to right, from -1 to 1."""
    return torch.linspace(-1, 1, width).expand(3, height, width).contiguous()


@pytest.mark.parametrize("how", [WHOLE, TILES])
@pytest.mark.parametrize("size", [(64, 128), (50, 171), (200, 300)])
def test_a_map_has_the_pictures_own_size(how: str, size: tuple[int, int]):
    seen = []

    def network(part: Tensor) -> Tensor:
        seen.append(part.shape[-2:])
        return part

    found, trusted = dense.predict(network, ramp(*size), DenseHeader("depth", resolution=(64, 64)), how)
    assert found.shape == trusted.shape == size and trusted.all()
    assert all(side % 8 == 0 for one in seen for side in one)
    assert (found[:, 1:] > found[:, :-1] - 1e-3).all() and float(found.max() - found.min()) > 0.9


def test_depth_is_trusted_where_its_channels_agree_and_normals_where_they_are_long():
    def odd(part: Tensor) -> Tensor:
        pixels = part.clone()
        pixels[0, :, :32] += 1.0
        return pixels

    _, known = dense.predict(odd, ramp(64, 64), DenseHeader("depth", resolution=(64, 64)), WHOLE)
    assert not known[:, :32].any() and known[:, 32:].all()

    def short(part: Tensor) -> Tensor:
        pixels = torch.zeros_like(part)
        pixels[2] = torch.where(torch.arange(64) < 16, 0.1, 0.9)
        return pixels

    found, known = dense.predict(short, ramp(64, 64), DenseHeader("normal", resolution=(64, 64)), WHOLE)
    assert not known[:, :16].any() and known[:, 16:].all()
    assert torch.allclose(found.norm(dim=0), torch.ones(64, 64), atol=1e-5)


class Model:
    def __init__(self, metadata: dict[str, str] | None):
        self.metadata = metadata

    def get_attachment(self, name: str) -> Any:
        assert name == "lora_metadata"
        return self.metadata


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch):
    """The node with a network that returns the picture."""

    class Bar:
        def __init__(self, total: int):
            pass

        def update(self, value: int) -> bool:
            return False

    asked = []

    def network(model: Any, clip: Any, vae: Any, tokens: int) -> Any:
        asked.append(tokens)
        return lambda part: part

    monkeypatch.setattr(dense, "Network", network)
    monkeypatch.setattr(host, "Bar", Bar)

    def run(metadata: Any, pictures: Tensor, **more: Any):
        inputs = {"task": FROM_ADAPTER, "how": WHOLE, "side": 0, "near_is": BRIGHT} | more
        return (*dense.DENSE.run(Model(metadata), None, None, pictures, **inputs).values, asked)

    return run


def frames(count: int) -> Tensor:
    return ((ramp(64, 128) + 1) / 2).movedim(0, -1).expand(count, -1, -1, -1)


@pytest.mark.parametrize("space", ["disparity", "depth", "log"])
def test_near_is_bright_in_every_space(node, space: str):
    """What rises in the network's output is near for disparity and far for depth."""
    preview, bright, trusted, tokens = node(header(space=space, tokens=2), frames(2))
    _, dark, *_ = node(header(space=space, tokens=2), frames(2), near_is=DARK)
    assert preview.shape == bright.shape == (2, 64, 128, 3) and trusted.shape == (2, 64, 128)
    assert torch.equal(bright[0], bright[1]) and tokens == [2, 2]
    rises = float(bright[0, 0, -1, 0] - bright[0, 0, 0, 0])
    assert rises == pytest.approx(1.0 if space == "disparity" else -1.0, abs=0.02)
    assert torch.allclose(dark, 1 - bright, atol=1e-6)
    near, far = (preview[0, 0, -1], preview[0, 0, 0]) if space == "disparity" else (preview[0, 0, 0], preview[0, 0, -1])
    assert near.sum() > 2 > far.sum()  # pale yellow, dark blue


def test_what_the_node_refuses(node):
    with pytest.raises(UserError, match="no adapter that predicts maps is on it"):
        node(None, frames(1))
    with pytest.raises(UserError, match=r"the adapter predicts normals, not depth; set it to 'from the adapter'"):
        node(header(task="normal"), frames(1), task="depth")
    assert node(None, frames(1), task="depth")[1].shape == (1, 64, 128, 3)  # core's loader put it there
