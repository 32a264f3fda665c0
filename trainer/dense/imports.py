"""Data sets of depth and normals in the layouts they are published in, converted to folders that a dense run reads.

The layouts, as their authors document them:

- Hypersim: ``*_geometry_hdf5/frame.0000.depth_meters.hdf5`` is the distance to the camera's centre in metres, not depth
  (width 1024: focal length 886.81 pixels, apple/ml-hypersim issue 9); ``normal_cam.hdf5`` in camera space, not turned
  to the camera everywhere; ``*_final_preview/frame.0000.tonemap.jpg`` the picture.
- Virtual KITTI 2: ``frames/depth/Camera_0/depth_00000.png`` in centimetres, the sky 65535; ``frames/rgb``.
- NYUv2: ``nyu_depth_v2_labeled.mat`` (``images``, ``depths`` in metres), or folders of ``rgb_0001.png`` and
  ``depth_0001.png`` in millimetres.
- Middlebury: 2014 and 2021 with ``im0.png``, ``disp0.pfm`` and ``calib.txt``; 2005 and 2006 with ``view1.png``,
  ``disp1.png`` (0 unknown) and ``dmin.txt`` (focal length 3740 pixels of the full size, base line 160 mm).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError
from .files import read, sixteen_bit, write

HYPERSIM_FOCAL = 886.81 / 1024
"""As a share of the width."""
MIDDLEBURY_FOCAL_BASELINE = 3740 * 0.16
VALID = {"hypersim": (0.1, 65.0), "vkitti2": (0.1, 655.35), "nyuv2": (0.1, 10.0), "middlebury": (0.1, 65.0)}
UNIT = {"vkitti2": 0.01}
"""Metres a step of the PNG files that are written: 0.001 but where the file itself is kept."""


@dataclass
class Item:
    """One picture with its maps."""

    name: str
    picture: Path | np.ndarray
    depth: Path | np.ndarray | None = None
    """A 16-bit PNG to copy, or metres float [H, W], invalid where not positive or not finite."""
    normal: np.ndarray | None = None
    """[H, W, 3], x right, y up, z towards the camera; (0, 0, 0) where invalid."""


@dataclass
class Imported:
    layout: str
    count: int = 0
    tasks: set[str] = field(default_factory=set)
    rejects: list[str] = field(default_factory=list)
    """Files that were left out, and why."""

    @property
    def unit(self) -> float:
        return UNIT.get(self.layout, 0.001)

    def options(self, folder: Path) -> list[str]:
        """The table of a configuration that reads the folder."""
        task = "depth" if "depth" in self.tasks else "normal"
        lines = ["[dense]", f'task = "{task}"', "[[data.sets]]", f'path = "{(folder / "pictures").as_posix()}"']
        lines.append(f'targets = "{(folder / task).as_posix()}"')
        if task == "depth":
            low, high = VALID[self.layout]
            lines += [f"unit = {self.unit}", f"valid = [{low}, {high}]"]
        return lines


def convert(source: Path, output: Path) -> Imported:
    """Convert a data set of a known layout to ``pictures``, ``depth`` and ``normal`` within ``output``.

    :raises UserError: a layout that is not known, a reader that is missing, or nothing that could be converted.
    """
    if not source.exists():
        raise UserError(f"{source}: there is no such file or folder; give where the data set lies")
    layout, items = _detect(source)
    found = Imported(layout)
    for item in items:
        if isinstance(item, str):
            found.rejects.append(item)
            continue
        try:
            _write(output, item)
        except UserError as error:
            found.rejects.append(str(error))
            continue
        found.count += 1
        found.tasks |= {task for task in ("depth", "normal") if getattr(item, task) is not None}
    if not found.count:
        why = found.rejects[0] if found.rejects else "it holds no picture with its map"
        raise UserError(f"{source}: nothing of this {layout} data could be converted; {why}")
    return found


def _detect(source: Path) -> tuple[str, Iterator[Item | str]]:
    looks: list[tuple[str, Callable[[Path], list[Path]], Callable[[list[Path]], Iterator[Item | str]]]] = [
        ("hypersim", lambda p: sorted(p.rglob("*_geometry_hdf5/frame.*.depth_meters.hdf5")), _hypersim),
        ("vkitti2", lambda p: sorted(p.rglob("frames/depth/Camera_*/depth_*.png")), _vkitti),
        ("nyuv2", lambda p: sorted(p.rglob("*.mat")) if p.is_dir() else [p] * (p.suffix == ".mat"), _nyu_mat),
        ("middlebury", lambda p: sorted(p.rglob("disp0.pfm")), _middlebury_new),
        ("middlebury", lambda p: sorted(p.rglob("disp1.png")), _middlebury_old),
        ("nyuv2", lambda p: sorted(p.rglob("depth_*.png")), _nyu_folder),
    ]
    for layout, look, items in looks:
        if files := look(source):
            return layout, items(files)
    raise UserError(
        f"{source}: not a layout that is known here (Hypersim, Virtual KITTI 2, NYUv2, Middlebury); "
        "put pictures and targets of the same names in two folders instead"
    )


# ------------------------------------------------------------------------------------------------------------ layouts


def _hypersim(files: list[Path]) -> Iterator[Item | str]:
    for path in files:
        frame = path.name.split(".")[1]
        scene, camera = path.parents[2].name, path.parent.name.removesuffix("_geometry_hdf5")
        preview = path.parents[1] / f"{camera}_final_preview"
        pictures = [preview / f"frame.{frame}.{kind}.jpg" for kind in ("tonemap", "color")]
        picture = next((one for one in pictures if one.is_file()), None)
        if picture is None:
            yield f"{path}: its picture {pictures[0].name} is missing from {preview.name}"
            continue
        depth = planar(_hdf5(path)["dataset"])
        normals = path.with_name(f"frame.{frame}.normal_cam.hdf5")
        normal = facing(_hdf5(normals)["dataset"]) if normals.is_file() else None
        yield Item(f"{scene}_{camera}_{frame}", picture, depth, normal)


def planar(distance: np.ndarray, focal: float = HYPERSIM_FOCAL) -> np.ndarray:
    """Depth along the view axis from the distance to the camera's centre, both [H, W]."""
    height, width = distance.shape
    x = (np.arange(width) + 0.5 - width / 2) / (focal * width)
    y = (np.arange(height) + 0.5 - height / 2) / (focal * width)
    return distance.astype(np.float64) / np.sqrt(1 + x[None] ** 2 + y[:, None] ** 2)


def facing(normal: np.ndarray, focal: float = HYPERSIM_FOCAL) -> np.ndarray:
    """Normals [H, W, 3], those that point away from the camera turned round."""
    height, width = normal.shape[:2]
    x = (np.arange(width) + 0.5 - width / 2) / (focal * width)
    y = (height / 2 - np.arange(height) - 0.5) / (focal * width)
    values = normal.astype(np.float32)
    away = values[..., 0] * x[None] + values[..., 1] * y[:, None] - values[..., 2] > 0
    return np.where(away[..., None], -values, values)


def _picture_of(folder: Path, name: str) -> Path | None:
    """The picture ``name`` in a folder, as JPEG or PNG."""
    return next((one for ext in ("jpg", "png") if (one := folder / f"{name}.{ext}").is_file()), None)


def _vkitti(files: list[Path]) -> Iterator[Item | str]:
    for path in files:
        number = path.stem.removeprefix("depth_")
        scene, variation = path.parents[4].name, path.parents[3].name
        folder = path.parents[2] / "rgb" / path.parent.name
        picture = _picture_of(folder, f"rgb_{number}")
        if picture is None:
            yield f"{path}: its picture rgb_{number}.jpg is missing from {folder}"
            continue
        yield Item(f"{scene}_{variation}_{path.parent.name}_{number}", picture, path)


def _nyu_mat(files: list[Path]) -> Iterator[Item | str]:
    for path in files:
        tables = _hdf5(path, ("images", "depths"))
        for number, (image, depth) in enumerate(zip(tables["images"], tables["depths"], strict=True), 1):
            # MATLAB's order: [number, channel, column, row]
            yield Item(f"nyu_{number:04d}", np.ascontiguousarray(image.transpose(2, 1, 0)), depth.T)


def _nyu_folder(files: list[Path]) -> Iterator[Item | str]:
    for path in files:
        number = path.stem.removeprefix("depth_")
        picture = _picture_of(path.parent, f"rgb_{number}")
        if picture is None:
            yield f"{path}: its picture rgb_{number}.png is missing"
            continue
        yield Item(f"{path.parent.name}_{number}", picture, path)


def _middlebury_new(files: list[Path]) -> Iterator[Item | str]:
    for path in files:
        picture, calibration = path.with_name("im0.png"), path.with_name("calib.txt")
        if not picture.is_file() or not calibration.is_file():
            yield f"{path}: im0.png and calib.txt belong beside it"
            continue
        text = calibration.read_text(encoding="utf-8", errors="replace")
        numbers = {name: re.search(rf"^{name}=\[?([\d.eE+-]+)", text, re.MULTILINE) for name in
                   ("cam0", "baseline", "doffs")}  # fmt: skip
        if any(found is None for found in numbers.values()):
            yield f"{calibration}: cam0, baseline or doffs is missing"
            continue
        focal, baseline, offset = (float(found[1]) for found in numbers.values() if found)
        with np.errstate(divide="ignore", invalid="ignore"):
            depth = baseline * focal / (read(path).astype(np.float64) + offset) / 1000
        yield Item(path.parent.name, picture, depth)


def _middlebury_old(files: list[Path]) -> Iterator[Item | str]:
    for path in files:
        picture, least = path.with_name("view1.png"), path.with_name("dmin.txt")
        if not picture.is_file() or not least.is_file():
            yield f"{path}: view1.png and dmin.txt belong beside it; without dmin.txt its depth is not known"
            continue
        disparity = read(path).astype(np.float64)
        known = disparity > 0
        depth = MIDDLEBURY_FOCAL_BASELINE / np.where(known, disparity + float(least.read_text().split()[0]), 1)
        yield Item(path.parent.name, picture, np.where(known, depth, 0))


def _hdf5(path: Path, names: tuple[str, ...] = ("dataset",)) -> dict[str, Any]:
    """Data sets of an HDF5 file, read lazily by row when there are several."""
    try:
        import h5py  # pyright: ignore[reportMissingImports]  # optional
    except ImportError:
        raise UserError(
            f"{path}: HDF5 files need the package h5py; install it (pip install h5py) and import again"
        ) from None
    try:
        file: Any = h5py.File(path, "r")
        return {name: file[name][()] if len(names) == 1 else file[name] for name in names}
    except (OSError, KeyError) as error:
        raise UserError(
            f"{path}: it cannot be read as HDF5 with {' and '.join(names)} ({error}); download it again"
        ) from error


# ------------------------------------------------------------------------------------------------------------ writing


def _write(output: Path, item: Item) -> None:
    sizes = {}
    if isinstance(item.depth, np.ndarray):
        sizes["depth"] = item.depth.shape
    if item.normal is not None:
        sizes["normal"] = item.normal.shape[:2]
    size = _size(item.picture)
    for task, found in sizes.items():
        if abs(found[1] * size[0] - found[0] * size[1]) > max(size):
            raise UserError(
                f"{item.name}: {task} of {found[1]}x{found[0]} for a picture of {size[1]}x{size[0]}; "
                "both must have one shape"
            )
    for task in (
        "pictures",
        *(["depth"] if item.depth is not None else []),
        *(["normal"] if "normal" in sizes else []),
    ):
        (output / task).mkdir(parents=True, exist_ok=True)
    if isinstance(item.depth, Path):
        shutil.copyfile(item.depth, output / "depth" / f"{item.name}.png")
    elif item.depth is not None:
        steps = np.nan_to_num(item.depth * 1000, nan=0, posinf=0, neginf=0)
        write(
            output / "depth" / f"{item.name}.png", np.where(steps < 65535, steps.clip(0), 0).round().astype(np.uint16)
        )
    if item.normal is not None:
        known = np.isfinite(item.normal).all(-1) & (np.abs(item.normal).max(-1) > 0.1)
        values = np.where(known[..., None], sixteen_bit((np.nan_to_num(item.normal) + 1) / 2), 0)
        write(output / "normal" / f"{item.name}.png", values.astype(np.uint16))
    if isinstance(item.picture, Path):
        shutil.copyfile(item.picture, output / "pictures" / f"{item.name}{item.picture.suffix.lower()}")
    else:
        Image.fromarray(item.picture).save(output / "pictures" / f"{item.name}.png")


def _size(picture: Path | np.ndarray) -> tuple[int, int]:
    if isinstance(picture, np.ndarray):
        return picture.shape[0], picture.shape[1]
    try:
        with Image.open(picture) as image:
            return image.height, image.width
    except (OSError, ValueError) as error:
        raise UserError(f"{picture}: it cannot be read ({error}); download it again") from error
