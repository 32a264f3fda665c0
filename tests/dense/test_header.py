"""What a file's header says of its map: written and read back, and one line where it cannot be read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pixelkiln.trainer.dense import header
from pixelkiln.trainer.dense.header import DenseHeader
from pixelkiln.trainer.errors import UserError


@pytest.mark.parametrize(
    "made",
    [
        DenseHeader("depth", "log", (0.1, 0.9), (640, 480), 77, "timestep"),
        DenseHeader("normal", resolution=(64, 128), tokens=2),
        DenseHeader("image"),
    ],
)
def test_what_is_written_is_read(made: DenseHeader):
    assert header.read(made.metadata()) == made
    assert header.read({"ss_tag": "cat"} | made.metadata(), "x") == made


def test_only_depth_has_a_space():
    assert "space" not in json.loads(DenseHeader("normal").metadata()[header.KEY])
    assert DenseHeader("depth", "log").shown == "depth (log)" and DenseHeader("normal", "log").shown == "normals"


def test_a_size_is_height_and_width():
    found = header.read({header.KEY: '{"task": "depth", "resolution": [128, 64]}'})
    assert found is not None and found.size == (64, 128) and (found.tokens, found.space) == (77, "disparity")


def test_other_adapters_say_nothing():
    assert header.read({}) is None and header.read(None) is None and header.read({"ss_tag": "cat"}) is None


@pytest.mark.parametrize(
    "facts",
    ["", "[]", "{}", {"task": 3}, {"task": ["depth"]}, {"task": "flow"}, {"space": "far"}, {"resolution": 5},
     {"resolution": [1, 2, 3]}, {"resolution": [-64, 64]}, {"tokens": "many"}, {"quantiles": [0.1]}],
)  # fmt: skip
def test_a_header_that_cannot_be_read_is_one_line(facts: Any):
    text = facts if isinstance(facts, str) else json.dumps({"task": "depth"} | facts)
    with pytest.raises(UserError, match=r"^a\.safetensors: its header 'pixelkiln\.dense' cannot be read") as found:
        header.read({header.KEY: text}, "a.safetensors")
    assert "\n" not in str(found.value)
