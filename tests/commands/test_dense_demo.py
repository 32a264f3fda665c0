"""``demo dense``, made short: it renders, trains on the bundled base, and ends in a picture and scores."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from pixelkiln.trainer.commands import dense_demo
from pixelkiln.trainer.config import load
from pixelkiln.trainer.dense import files


@pytest.mark.slow
def test_the_demo_ends_in_a_picture_and_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    def short(preset: str, flags: dict):
        return load(preset=preset, flags={**flags, "run.steps": 2, "run.batch": 2})

    monkeypatch.setattr(dense_demo, "load", short)
    monkeypatch.setattr(dense_demo, "TRAINED", 4)
    monkeypatch.setattr(dense_demo, "HELD_OUT", 2)
    assert dense_demo.demo(tmp_path) == 0
    out = capsys.readouterr().out
    assert "absrel" in out and "edge_f1" in out and "2 pictures" in out
    run = tmp_path / "demo_dense"
    assert files.read(run / "depth.png").shape == (128, 2 * (3 * 128 + 8) + 16, 3)
    rows = list(csv.DictReader((run / "depth.csv").open()))
    assert [row["picture"] for row in rows] == ["100000.png", "100001.png"]
    assert all(0 < float(row["floor_absrel"]) < float(row["prior_absrel"]) for row in rows)
