"""The measures of a study of dense runs: an adapter's maps of held-out pictures against the true ones.

They are those of ``dense score`` (``dense.metrics``), at the size that is trained, and need neither noise nor prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..adapters import files
from ..config import Config
from ..dense import colours, header, maps
from ..dense.options import DenseOptions
from ..errors import UserError
from ..training.build import build_model, scan
from ..training.dense import DensePrediction
from .plan import item_id
from .values import Measure, Value

MEASURES = (
    Measure("absrel", "absolute relative error of depth", "lower",
            "Mean of |d - t| / t over valid pixels of held-out pictures, after alignment by scale and shift "
            "(arXiv 1907.01341)."),
    Measure("delta1", "depth within a quarter", "higher",
            "Share of valid pixels where max(d / t, t / d) < 1.25."),
    Measure("edge_f1", "F1 of depth edges", "higher",
            "Edges of aligned depth against the true ones (after arXiv 2410.02073); pictures without "
            "edges are left out."),
    Measure("degrees", "angular error of normals (degrees)", "lower", "Mean angle to the true normals."),
    Measure("within_11", "normals within 11.25 degrees", "higher", "Share of valid pixels."),
    Measure("difference", "absolute difference", "lower", "Mean absolute difference to the true images in [0, 1]."),
)  # fmt: skip
KINDS = ("prior", "floor")
"""Beside an arm's own figures: the mean map of the training pictures, and the true maps after the autoencoder."""


def measured(
    config: Config, adapter: Path, held: Sequence[str], shown: Sequence[int], folder: Path, truth: Path,
    log: Callable[[str], None],
) -> list[tuple[str, str, float]]:  # fmt: skip
    """(measure, picture, value) of each held-out picture.

    ``shown``: numbers of those whose maps become pictures, in ``folder``, and in ``truth`` the true ones.

    :raises UserError: the file is of no dense run, or its maps are not finite.
    """
    options = predicted_by(adapter, config)
    config = config.model_copy(
        update={"dense": options, "adapter": config.adapter.model_copy(update={"init_from": None})}
    )
    found, dataset = scan(config)
    model, _ = build_model(config.model_copy(update={"dense": None}), log, str(adapter), found)
    family, system = model.family, DensePrediction(options, model.process, model.family.name)
    family.vae.to(model.device)
    dataset.attach(family.encode_pixels, family.encode_text, family.fingerprints)
    rows: list[tuple[str, str, float]] = []
    by_name = {item_id(item): item for item in dataset.held}
    for number, name in enumerate(held):
        (batch,) = dataset.plain_batches([by_name[name]], 1)
        figures, pixels = system.figures(model, dataset, batch)
        if not bool(pixels.isfinite().all()):
            raise UserError(f"{name}: its map is not finite; the adapter has diverged, or the precision is too low")
        known = {key: float(values[0]) for key, values in figures.items()}
        rows += [(key.replace("_", " ", 1) if key.startswith(KINDS) else key, name, value)
                 for key, value in known.items() if value == value]  # fmt: skip
        if number in shown:
            assert batch.maps is not None
            true = batch.maps.truth[0]
            _save(colours.colour(maps.decode(pixels, options.task)[0], options.task, options.space), folder, number)
            true = true[0] if len(true) == 1 else true
            _save(colours.colour(true, options.task, options.space, batch.maps.valid[0, 0]), truth, number)
    return rows


def predicted_by(adapter: Path, config: Config) -> DenseOptions:
    """What a file's header says it predicts, as options; the map's task is that of ``config``."""
    metadata, _ = files.read_header(adapter)
    found = header.read(metadata, str(adapter))
    assert config.dense is not None
    if found is None or found.task != config.dense.task:
        what = f"predicts {found.shown}" if found else "says of no map that it predicts"
        raise UserError(f"{adapter}: it {what}, and the study is of {config.dense.task}; give another adapter")
    made = {"task": found.task, "task_switch": found.task_switch, "detail": 0.0}
    made |= {"space": found.space, "quantiles": list(found.quantiles)} if found.task == "depth" else {}
    return DenseOptions.model_validate(made)


def _save(pixels: np.ndarray, folder: Path, number: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / f"{number:04d}.png")


def note(values: Sequence[Value], arm: str) -> str | None:
    """What a prior that knows nothing of the picture and the autoencoder alone reach, as means over pictures."""
    parts = []
    for measure in MEASURES:
        means = []
        for kind in KINDS:
            some = [v.value for v in values if v.arm == arm and v.measure == f"{kind} {measure.name}"]
            means += [f"{kind} {float(np.mean(some)):.3g}"] if some else []
        parts += [f"{measure.name} {', '.join(means)}"] if means else []
    if not parts:
        return None
    return (
        f"Mean map of the training pictures (prior), and true maps after the autoencoder (floor): {'; '.join(parts)}."
    )
