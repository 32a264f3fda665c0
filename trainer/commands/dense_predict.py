"""``dense predict`` and ``dense score``: maps from a saved adapter, into files or against the truth."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..adapters import files as adapter_files
from ..config import Config, load
from ..data import pictures
from ..data.pictures import Unreadable
from ..dense import colours, files, maps, metrics, tiles
from ..dense import header as headers
from ..dense.check import named
from ..dense.header import DenseHeader, Task
from ..dense.options import DenseOptions
from ..dense.targets import Target, check_shape, find_target, read_target
from ..errors import UserError
from ..families.options import ModelOptions
from ..training.build import build_model
from ..training.dense import Predictor

FORMATS = ("png", "npy", "exr", "preview")
BRIGHT = {"disparity": "near is bright", "depth": "far is bright", "log": "far is bright"}
WRITTEN = (".png", ".npy", ".exr")
NOT_WRITTEN = (*files.EXTENSIONS, *pictures.EXTENSIONS, *pictures.OTHER_EXTENSIONS)
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif")
RESAMPLES = 2000


@dataclass
class Loaded:
    """A model with an adapter on it that turns pictures into maps."""

    predictor: Predictor
    options: DenseOptions
    trained: tuple[int, int]
    """(height, width)"""
    multiple: int

    def pixels(self, picture: Tensor) -> Tensor:
        """[3, H, W] in [-1, 1] -> decoded map: depth [H, W] about [0, 1], normal or image [3, H, W]."""
        return maps.decode(self.predictor(picture[None]), self.options.task)[0]

    def map(self, picture: Tensor, in_tiles: bool = False) -> Tensor:
        """The map of a picture of any size [3, H, W] in [-1, 1], at that size."""
        predict = tiles.tiled if in_tiles else tiles.whole
        found = predict(self.pixels, picture, self.trained, self.options.task, self.multiple)
        if not found.isfinite().all():
            raise UserError("the map is not finite; the adapter has diverged, or the precision is too low: try fp32")
        return found

    def through_autoencoder(self, encoded: Tensor) -> Tensor:
        """What is left of a true map [3, H, W] in [-1, 1] after the autoencoder: the best that can be predicted."""
        family = self.predictor.model.family

        @torch.no_grad()
        def back(picture: Tensor) -> Tensor:
            return maps.decode(family.decode(family.encode_pixels(picture[None])).cpu(), self.options.task)[0]

        return tiles.whole(back, encoded, self.trained, self.options.task, self.multiple)


def load_adapter(
    adapter: Path, model: str | None, log: Callable[[str], None], flags: dict[str, Any] | None = None
) -> Loaded:
    """The predictor of an adapter file. Its run's own configuration beside it, if any, names the model.

    :raises UserError: no file of a dense run, or a model that is neither given nor known.
    """
    found = header(adapter)
    config = _configuration(adapter, model, flags or {})
    made, _ = build_model(config.model_copy(update={"dense": None}), log, str(adapter))
    options = DenseOptions.model_validate(
        {"task": found.task, "space": found.space, "quantiles": list(found.quantiles), "task_switch": found.task_switch}
    )
    return Loaded(Predictor(made, options), options, found.size, made.family.spec.multiple)


def header(adapter: Path) -> DenseHeader:
    """What a file's header says of the map that it predicts. UserError where it is of no dense run."""
    metadata, _ = adapter_files.read_header(adapter)
    found = headers.read(metadata, str(adapter))
    if found is None or not all(found.resolution):
        raise UserError(
            f"{adapter}: it says of no map that it predicts; give an adapter that a run with [dense] has saved"
        )
    return found


def _configuration(adapter: Path, model: str | None, flags: dict[str, Any]) -> Config:
    beside = [folder / "config.toml" for folder in adapter.resolve().parents[:2]]
    own = next((path for path in beside if path.is_file()), None)
    if own is None and model is None:
        raise UserError("--model: the base model is not known; give its path (a run's own adapter knows it)")
    given = {**flags, **({"model.path": model} if model else {})}
    if own is None:
        given |= {"data.path": str(adapter.parent), "loss.mse": {}}
    return load(str(own) if own else None, given)


def base_model(adapter: Path, model: str | None) -> ModelOptions:
    """The base model of an adapter: the one given, or its run's."""
    return _configuration(adapter, model, {}).model


# ------------------------------------------------------------------------------------------------------------- predict


def listed(source: Path) -> list[Path]:
    """The pictures of a file or of a folder and those in it, numbers in their names in order: frames of a video."""
    if source.is_file():
        if source.suffix.lower() in VIDEOS:
            raise UserError(
                f"{source}: videos are not read; give a folder of its frames (ffmpeg -i {source.name} frames/%05d.png)"
            )
        return [source]
    if not source.is_dir():
        raise UserError(f"{source}: there is no such file or folder; give a picture or a folder of pictures")
    found = [path for path in source.rglob("*") if path.suffix.lower() in pictures.EXTENSIONS and path.is_file()]
    if not found:
        raise UserError(f"{source}: it holds no pictures ({', '.join(pictures.EXTENSIONS)}); give another")
    return sorted(found, key=lambda path: [int(part) if part.isdigit() else part.lower() for part in
                                           re.split(r"(\d+)", path.relative_to(source).as_posix())])  # fmt: skip


def predict(
    source: Path, output: Path, loaded: Callable[[], Loaded], formats: Sequence[str], in_tiles: bool = False
) -> list[Path]:
    """Write the map of each picture of ``source`` and give the files, in the order of the pictures.

    :param output: a folder, in which maps have the pictures' names; or one file, of the format that its name says.
    """
    single, found = output.suffix.lower() in WRITTEN, listed(source)
    if not single and output.suffix.lower() in NOT_WRITTEN:
        raise UserError(f"{output}: maps are written as {', '.join(WRITTEN)}; name the file so, or give a folder")
    if single and len(found) > 1:
        raise UserError(f"{output}: one file for {len(found)} pictures; give a folder")
    if output.resolve() in (source.resolve(), source.resolve().parent):
        raise UserError(f"{output}: maps would replace pictures of the same names; give another folder")
    if ".exr" in output.suffix.lower() or "exr" in formats:
        files.require_exr(output)
    root, plan, owner = source if source.is_dir() else source.parent, dict[Path, dict[str, Path]](), dict[Path, Path]()
    for path in found:
        base = output / path.relative_to(root).with_suffix("")
        named = {form: base.with_name(f"{base.name}{_ending(form)}") for form in formats}
        plan[path] = {output.suffix.lower().lstrip("."): output} if single else named
        for target in plan[path].values():
            if (other := owner.setdefault(target, path)) is not path:
                raise UserError(f"{target}: {other.name} and {path.name} would both be written there; rename one")
    model = loaded()
    for path, targets in plan.items():
        values = model.map(_read(path), in_tiles).numpy()
        for form, target in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            files.write(target, as_written(values, form, model.options))
    return list(owner)


def _ending(form: str) -> str:
    return "_preview.png" if form == "preview" else f".{form}"


def _read(path: Path) -> Tensor:
    try:
        colours, _ = pictures.pixels(path)
    except (Unreadable, OSError) as error:
        raise UserError(f"{path}: it cannot be read ({error}); give a picture") from error
    return torch.from_numpy(np.array(colours)).permute(2, 0, 1).float() / 127.5 - 1


def as_written(values: np.ndarray, form: str, options: DenseOptions) -> np.ndarray:
    """A map (depth [H, W], else [3, H, W]) as a file holds it: 16 bits of [0, 1], or of (n + 1) / 2; floats as they are
    predicted; or the colours of a preview."""
    if form == "preview":
        return colours.colour(values, options.task, options.space)
    moved = values if values.ndim == 2 else np.moveaxis(values, 0, 2)
    if form == "png":
        return files.sixteen_bit((moved + 1) / 2 if options.task == "normal" else moved)
    return moved


# --------------------------------------------------------------------------------------------------------------- score


MEASURES: dict[Task, dict[str, str]] = {
    "depth": {"absrel": "lower", "delta1": "higher", "edge_f1": "higher"},
    "normal": {"degrees": "lower", "within_11": "higher"},
    "image": {"difference": "lower"},
}
"""Names, and whether lower or higher is better."""
ROWS = ("", "prior_", "floor_")


@dataclass
class Scored:
    """The scores of pictures: ``absrel`` of the adapter, ``prior_absrel`` of the mean map of the other pictures,
    ``floor_absrel`` of the true map after the autoencoder."""

    task: Task
    rows: list[dict[str, Any]]
    """One per picture, with its name as ``picture``."""
    shown: list[np.ndarray]
    """Panels picture | prediction | truth of the first pictures."""
    without_target: list[str]
    """Pictures that are left out."""

    def summary(self) -> dict[str, dict[str, float]]:
        """By measure: mean and its 95 % interval (bootstrap over pictures), prior and floor."""
        found = {}
        for name in MEASURES[self.task]:
            mean, low, high = interval([row[name] for row in self.rows])
            others = {kind: interval([row[f"{kind}_{name}"] for row in self.rows])[0] for kind in ("prior", "floor")}
            found[name] = {"mean": mean, "low": low, "high": high, **others}
        return found

    def lines(self) -> list[str]:
        head = f"{len(self.rows)} pictures; 95 % intervals over pictures; prior: mean map; floor: autoencoder alone"
        lacking = [f"left out, without a target: {named(self.without_target)}"] if self.without_target else []
        return [head, *lacking, *(
            f"{name:<10} {one['mean']:.3f} [{one['low']:.3f}, {one['high']:.3f}]   prior {one['prior']:.3f}   "
            f"floor {one['floor']:.3f}   {MEASURES[self.task][name]} is better"
            for name, one in self.summary().items()
        )]  # fmt: skip

    def write_csv(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """(mean, low, high): the mean and its 95 % bootstrap interval, percentiles of resampled means. NaN are left out."""
    known = np.asarray([value for value in values if value == value], np.float64)
    if not len(known):
        return float("nan"), float("nan"), float("nan")
    picks = np.random.default_rng(seed).integers(len(known), size=(RESAMPLES, len(known)))
    low, high = np.quantile(known[picks].mean(1), [0.025, 0.975])
    return float(known.mean()), float(low), float(high)


def score(
    model: Loaded,
    folder: Path,
    targets: Path,
    unit: float | None = None,
    valid: Sequence[float] | None = None,
    show: int = 0,
    in_tiles: bool = False,
) -> Scored:
    """Compare the maps of the pictures in a folder with their targets, at the targets' own size.

    Depth is aligned per picture by least squares in the space that was learned; with ``valid`` it is clipped to that
    range, as published evaluations do.
    """
    task, space = model.options.task, model.options.space
    every = [(path, find_target(targets / path.relative_to(folder).parent, path)) for path in listed(folder)]
    partners = [(path, target) for path, target in every if target is not None]
    lacking = [path.relative_to(folder).as_posix() for path, target in every if target is None]
    if len(partners) < 2:
        raise UserError(f"{targets}: {len(partners)} targets for the pictures of {folder}; give two or more")
    truths = [read_target(target, task, unit, list(valid) if valid else None) for _, target in partners]
    limits = (float(valid[0]), float(valid[1])) if valid and valid[0] > 0 else None
    quantiles = model.options.quantiles
    encoded = [maps.encode(truth, task, space, quantiles) for truth in truths]
    common = [tiles.resized(one, model.trained) for one in encoded]
    total = torch.stack(common).sum(0)
    rows, shown = [], []
    for (path, target), truth, own, small in zip(partners, truths, encoded, common, strict=True):
        size = truth.valid.shape
        picture = _read(path)
        check_shape(target, truth, (picture.shape[2], picture.shape[1]))
        predicted = tiles.resized(model.map(picture, in_tiles), (size[0], size[1]), task)
        mean = maps.decode(((total - small) / (len(common) - 1))[None], task)[0]
        seen = {
            "": predicted,
            "prior_": tiles.resized(mean, (size[0], size[1]), task),
            "floor_": model.through_autoencoder(own),
        }
        row: dict[str, Any] = {"picture": path.relative_to(folder).as_posix()}
        for kind, values in seen.items():
            figures = measured(values, truth, task, space, limits)
            row |= {kind + name: figure for name, figure in figures.items()}
        rows.append(row)
        if len(shown) < show:
            shown.append(_panels(picture, predicted, truth, model.options))
    return Scored(task, rows, shown, lacking)


def measured(
    values: Tensor, truth: Target, task: Task, space: maps.Space, limits: tuple[float, float] | None = None
) -> dict[str, float]:
    """The figures of one map (depth [H, W] in ``space`` up to scale and shift, else [3, H, W])."""
    true = torch.from_numpy(truth.values)
    true = true if task == "depth" else true.permute(2, 0, 1)
    found = metrics.scores(values[None], true[None], torch.from_numpy(truth.valid)[None], task, space, limits)
    return {name: float(figure) for name, figure in found.items()}


def _panels(picture: Tensor, predicted: Tensor, truth: Target, options: DenseOptions) -> np.ndarray:
    size = (truth.valid.shape[0], truth.valid.shape[1])
    given = colours.colour(tiles.resized((picture + 1) / 2, size), "image")
    true = colours.colour_target(truth, options.task, options.space, options.quantiles)
    return colours.panels(given, colours.colour(predicted, options.task, options.space), true)


def sheet(rows: Sequence[np.ndarray], columns: int = 2) -> np.ndarray:
    """Panels in columns on white, uint8 [H, W, 3]; those that leave a row incomplete are left out."""

    def groups() -> Iterator[np.ndarray]:
        for start in range(0, len(rows) - columns + 1, columns):
            yield colours.panels(*rows[start : start + columns], gap=16)

    return colours.grid(list(groups()))
