"""``demo dense``: depth from pictures, on scenes that are rendered here and on the bundled base model."""

from __future__ import annotations

from pathlib import Path

from ..config import load
from ..dense.files import write
from ..dense.scenes import write_scenes
from ..runs.control import DONE
from ..runs.folder import RunFolder
from ..training.loop import train
from .common import print_lines, print_note
from .dense_predict import load_adapter, score, sheet

TRAINED, HELD_OUT = 800, 100
FIRST_HELD_OUT = 100_000
"""Seeds of the scenes that are scored; those that are trained on begin at 0."""


def demo(runs: Path) -> int:
    """Render scenes, train on them, and score others: a picture, and figures beside those of prior and floor."""
    folder = runs / "demo_dense-scenes"
    print_note(f"rendering {TRAINED} scenes to train on and {HELD_OUT} others into {folder}")
    write_scenes(folder, TRAINED)
    write_scenes(folder / "others", HELD_OUT, first=FIRST_HELD_OUT)
    data = {"data.path": str(folder / "pictures"), "data.targets": str(folder / "depth")}
    config = load(preset="demo_dense", flags={"run.out": str(runs), **data})
    if (code := train(config)) != DONE:
        return code
    run = RunFolder(runs / config.run.name)
    model = load_adapter(run.final, None, lambda line: None)
    others = folder / "others"
    found = score(model, others / "pictures", others / "depth", 0.001, (0.1, 20.0), show=12)
    picture = run.path / "depth.png"
    write(picture, sheet(found.shown))
    found.write_csv(run.path / "depth.csv")
    rows = [f"picture:  {picture} (picture | prediction | truth; near is bright)", f"adapter:  {run.final}"]
    return print_lines(["", *found.lines(), "", *rows])
