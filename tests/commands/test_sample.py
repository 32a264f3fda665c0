"""Pictures without training: cells of ``draw``, and candidates of ``pairs generate``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import short_runs as runs
from PIL import Image

from pixelkiln.trainer.cli import main


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A trained adapter, and a configuration that draws a prompt with one step."""
    root = tmp_path_factory.mktemp("drawing")
    runs.pictures(root / "pictures")
    model = runs.model(root / "sd15")
    (root / "c.toml").write_text(
        f"""
        model.path = '{model}'
        data = {{ path = '{root / "pictures"}', resolution = 64 }}
        run = {{ out = '{root / "runs"}', name = 't', steps = 2, device = 'cpu' }}
        adapter.rank = 2
        optimizer.learning_rate = 0.1
        sample = {{ steps = 1 }}
        """,
        "utf-8",
    )
    assert main(["train", str(root / "c.toml")]) == 0
    return root


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


def test_cells_draw_every_adapter_at_every_strength_and_keep_what_is_drawn(home, tmp_path, capsys):
    adapter = str(home / "runs" / "t" / "t.safetensors")
    wanted = {"base": (None, 1), "none": (adapter, 0), "half": (adapter, 0.5), "whole": (adapter, 1)}
    cells = [{"adapter": a, "strength": s, "folder": str(tmp_path / name)} for name, (a, s) in wanted.items()]
    (tmp_path / "cells.json").write_text(json.dumps(cells), "utf-8")
    words = ["draw", str(home / "c.toml"), "--cells", str(tmp_path / "cells.json"), '--sample.prompts=["a cat"]']
    capsys.readouterr()
    assert main(words) == 0
    drawn = [Path(path) for path in json.loads(capsys.readouterr().out)["pictures"]]
    assert [path.parent.name for path in drawn] == list(wanted)
    base, none, half, whole = map(pixels, drawn)
    assert (base == none).all() and (half != base).any() and (whole != half).any()
    drawn[2].write_bytes(b"kept")
    drawn[3].unlink()
    assert main(words) == 0
    assert drawn[2].read_bytes() == b"kept" and (pixels(drawn[3]) == whole).all()
    assert main(["sample", *words[1:2], "--adapter", adapter, "-o", str(tmp_path / "same"), words[-1]]) == 0
    assert (pixels(tmp_path / "same" / drawn[3].name) == whole).all()


def test_candidates_are_drawn_with_kohyas_flags_and_only_for_the_given_prompts(home, tmp_path):
    runs.pictures(tmp_path / "data" / "1_cat")
    (tmp_path / "previews.txt").write_text("a house\n", "utf-8")
    (tmp_path / "prompts.txt").write_text("a cat --s 1\n# none\n", "utf-8")
    kohya = ["--pretrained_model_name_or_path", str(home / "sd15"), "--train_data_dir", str(tmp_path / "data"),
             "--resolution=64", "--sample_prompts", str(tmp_path / "previews.txt"), "--run.device=cpu"]  # fmt: skip
    own = ["--prompts", str(tmp_path / "prompts.txt"), "-n", "2", "-o", str(tmp_path / "out")]
    assert main(["pairs", "generate", *kohya, *own]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "candidates.jsonl").read_text("utf-8").splitlines()]
    assert [row["prompt"] for row in rows] == ["a cat", "a cat"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == [row["image"] for row in rows]
