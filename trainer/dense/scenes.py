"""Rendered scenes with exact depth and normals, to try dense prediction on: solids on a floor before walls.

Rays are cast with numpy. All is in camera space: x right, y up, z towards the camera, so a ray has the direction
(x, y, -1) and the distance along it, t, is the depth in metres. A scene is a function of its seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .files import sixteen_bit, write

FAR = 1e6
Hit = tuple[np.ndarray, np.ndarray]
"""Depth [N] (FAR where nothing is hit) and outward normal [N, 3] of rays."""


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("ni,ni->n", a, b)


@dataclass(frozen=True)
class Scene:
    picture: np.ndarray
    """uint8 [H, W, 3]"""
    depth: np.ndarray
    """float32 [H, W], metres along the view axis"""
    normal: np.ndarray
    """float32 [H, W, 3], of length 1"""


@dataclass(frozen=True)
class Solid:
    shape: Callable[[np.ndarray, np.ndarray], Hit]
    """Hits of rays from one origin [3] or from origins [N, 3], in coordinates where the solid is within [-1, 1]^3."""
    centre: np.ndarray
    axes: np.ndarray
    """[3, 3]; its columns are the solid's own x, y, z."""
    half: np.ndarray
    """[3], half of its extent along each axis."""
    paint: Callable[[np.ndarray], np.ndarray]
    """Points [N, 3], in metres along the solid's axes, to colours [N, 3] in [0, 1]."""

    def local(self, points: np.ndarray) -> np.ndarray:
        return (points - self.centre) @ self.axes

    def hit(self, origin: np.ndarray, direction: np.ndarray) -> Hit:
        """The solid itself is asked only about rays that pass through the sphere around it."""
        if self.shape is plane:
            return self._hit(origin, direction)
        towards = np.broadcast_to(self.centre - origin, direction.shape)
        along, square, length = _dot(towards, direction), _dot(towards, towards), _dot(direction, direction)
        radius = (self.half**2).sum()
        near = np.flatnonzero((square * length - along**2 <= radius * length) & ((along > 0) | (square < radius)))
        depth, normal = np.full(len(direction), FAR), np.zeros_like(direction)
        depth[near], normal[near] = self._hit(origin if origin.ndim == 1 else origin[near], direction[near])
        return depth, normal

    def _hit(self, origin: np.ndarray, direction: np.ndarray) -> Hit:
        depth, normal = self.shape(self.local(origin) / self.half, direction @ self.axes / self.half)
        normal = normal / self.half @ self.axes.T
        return depth, normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-12)


# -------------------------------------------------------------------------------------------------------- unit shapes


def _first(roots: list[np.ndarray], valid: list[np.ndarray]) -> np.ndarray:
    """The nearest root in front of the origin that is valid, [N]."""
    found = [np.where(ok & (root > 1e-4), root, FAR) for root, ok in zip(roots, valid)]
    return np.minimum.reduce(found)


def _quadratic(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Roots of a t^2 + 2 b t + c, and where there are any."""
    inside = b * b - a * c
    root = np.sqrt(np.maximum(inside, 0))
    a = np.where(np.abs(a) < 1e-12, 1e-12, a)
    return [(-b - root) / a, (-b + root) / a], inside > 0


def sphere(origin: np.ndarray, direction: np.ndarray) -> Hit:
    origin = np.broadcast_to(origin, direction.shape)
    roots, some = _quadratic(_dot(direction, direction), _dot(origin, direction), _dot(origin, origin) - 1)
    depth = _first(roots, [some, some])
    return depth, origin + depth[:, None] * direction


def box(origin: np.ndarray, direction: np.ndarray) -> Hit:
    safe = np.where(np.abs(direction) < 1e-12, 1e-12, direction)
    one, two = (-1 - origin) / safe, (1 - origin) / safe
    enter, leave = np.minimum(one, two).max(-1), np.maximum(one, two).min(-1)
    depth = np.where((enter < leave) & (enter > 1e-4), enter, FAR)
    at = origin + depth[:, None] * direction
    side = np.abs(at).argmax(-1)[:, None]
    normal = np.zeros_like(at)
    np.put_along_axis(normal, side, np.sign(np.take_along_axis(at, side, -1)), -1)
    return depth, normal


def _tapered(origin: np.ndarray, direction: np.ndarray, slope: float, base: float) -> Hit:
    """A solid of revolution around y whose radius is base - slope * y, with flat ends at y = -1 and 1."""
    origin = np.broadcast_to(origin, direction.shape)
    (ox, oy, oz), (dx, dy, dz) = np.moveaxis(origin, -1, 0), np.moveaxis(direction, -1, 0)
    radius, change = base - slope * oy, -slope * dy
    a, b = dx * dx + dz * dz - change**2, ox * dx + oz * dz - radius * change
    roots, some = _quadratic(a, b, ox * ox + oz * oz - radius**2)
    on_side = [some & (np.abs(oy + root * dy) <= 1) for root in roots]
    safe = np.where(np.abs(dy) < 1e-12, 1e-12, dy)
    ends = [(end - oy) / safe for end in (-1, 1)]
    on_end = [(ox + t * dx) ** 2 + (oz + t * dz) ** 2 <= (base - slope * y) ** 2 for t, y in zip(ends, (-1, 1))]
    depth = _first([*roots, *ends], [*on_side, *on_end])
    x, y, z = np.moveaxis(origin + depth[:, None] * direction, -1, 0)
    side = np.stack([x, slope * (base - slope * y), z], -1)
    at_end = np.abs(np.abs(y) - 1) < 1e-6
    normal = np.where(at_end[:, None], np.stack([0 * y, np.sign(y), 0 * y], -1), side)
    return depth, normal


def cylinder(origin: np.ndarray, direction: np.ndarray) -> Hit:
    return _tapered(origin, direction, 0.0, 1.0)


def cone(origin: np.ndarray, direction: np.ndarray) -> Hit:
    return _tapered(origin, direction, 0.5, 0.5)


def plane(origin: np.ndarray, direction: np.ndarray) -> Hit:
    """y = 0, seen from above."""
    up = np.broadcast_to(origin, direction.shape)[:, 1]
    down = direction[:, 1]
    depth = np.where(down < -1e-9, up / -np.where(down < -1e-9, down, -1.0), FAR)
    normal = np.zeros_like(direction)
    normal[:, 1] = 1
    return np.where(depth > 1e-4, depth, FAR), normal


# -------------------------------------------------------------------------------------------------------------- scenes


def _paint(random: np.random.Generator, cell: float) -> Callable[[np.ndarray], np.ndarray]:
    """Of a solid: plain, or now and then checked or striped, in strong colours."""
    hue = random.random()
    one = _colour(hue, random.uniform(0.4, 0.95), random.uniform(0.35, 0.95))
    other = _colour(hue + random.uniform(-0.2, 0.2), random.uniform(0.2, 0.9), random.uniform(0.35, 1))
    kind, turn = random.choice(["plain", "checked", "striped"], p=[0.8, 0.1, 0.1]), random.integers(3)

    def paint(at: np.ndarray) -> np.ndarray:
        if kind == "plain":
            return np.broadcast_to(one, at.shape)
        steps = np.floor(at / cell + 1e-3).astype(int)
        odd = (steps.sum(-1) if kind == "checked" else steps[:, turn]) % 2 == 1
        return np.where(odd[:, None], other, one)

    return paint


def _light(random: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """Of the room: plain and nearly white."""
    one = _colour(random.random(), random.uniform(0, 0.12), random.uniform(0.88, 1))
    return lambda at: np.broadcast_to(one, at.shape)


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    shifted = np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
    return value * (1 - saturation + saturation * np.clip(shifted, 0, 1))


def _turned(up: np.ndarray, angle: float) -> np.ndarray:
    """Axes whose y is ``up``, turned about it."""
    right = np.array([1.0, 0, 0])
    towards = np.cross(right, up)
    x = np.cos(angle) * right + np.sin(angle) * towards
    return np.stack([x, up, np.cross(x, up)], -1)


def make_solids(random: np.random.Generator) -> list[Solid]:
    """A floor, a wall behind and sometimes one beside, and two to five solids that stand on the floor."""
    pitch, height = np.deg2rad(random.uniform(8, 30)), random.uniform(1.2, 2.2)
    up = np.array([0, np.cos(pitch), np.sin(pitch)])
    floor = -height * up
    ahead = np.array([0, np.sin(pitch), -np.cos(pitch)])
    level = _turned(up, 0)
    solids = [Solid(plane, floor, level, np.ones(3), _light(random))]
    back = floor + ahead * random.uniform(6, 11)
    turn = random.uniform(-0.5, 0.5)
    wall = np.stack([np.cross(-ahead, up), -ahead, up], -1) @ _turned(np.array([0.0, 1, 0]), 0)
    spin = np.array([[np.cos(turn), np.sin(turn), 0], [-np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    solids.append(Solid(plane, back, wall @ spin, np.ones(3), _light(random)))
    if random.random() < 0.6:
        side = random.choice([-1, 1])
        axes = np.stack([side * ahead, np.array([-side, 0.0, 0]), up], -1)
        solids.append(Solid(plane, np.array([side * random.uniform(2.2, 4), 0, 0]), axes, np.ones(3), _light(random)))
    for _ in range(random.integers(2, 6)):
        shape = (sphere, box, cylinder, cone)[random.integers(4)]
        half = random.uniform(0.4, 0.8, 3) if shape is box else np.full(3, random.uniform(0.4, 0.75))
        if shape in (cylinder, cone):
            half[1] = random.uniform(0.5, 1.1)
        distance = random.uniform(2.4, 6)
        across = random.uniform(-0.5, 0.5) * distance
        centre = floor + ahead * distance + np.array([across, 0, 0]) + up * half[1]
        axes = _turned(up, random.uniform(0, np.pi))
        solids.append(Solid(shape, centre, axes, half, _paint(random, random.uniform(0.2, 0.4))))
    return solids


def _rays(size: tuple[int, int], field: float) -> np.ndarray:
    """Directions (x, y, -1) [H W, 3] through the middles of pixels; ``field`` is the wider field of view."""
    width, height = size
    half = np.tan(field / 2) / max(width, height)
    x, y = (np.arange(width) * 2 + 1 - width) * half, (height - np.arange(height) * 2 - 1) * half
    grid = np.stack(np.broadcast_arrays(x[None], y[:, None], np.float64(-1)), -1)
    return grid.reshape(-1, 3)


def _nearest(solids: list[Solid], rays: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth [N], normal [N, 3] and the solid's number [N] of each ray from the camera."""
    hits = [solid.hit(np.zeros(3), rays) for solid in solids]
    depths = np.stack([depth for depth, _ in hits])
    which = depths.argmin(0)
    every = np.arange(len(rays))
    return depths[which, every], np.stack([normal for _, normal in hits])[which, every], which


def _shaded(solids: list[Solid], rays: np.ndarray, light: np.ndarray, ambient: float) -> np.ndarray:
    """Colours [N, 3] in [0, 1]: two-colour paint, one far light with shadows, and light from everywhere."""
    depth, normal, which = _nearest(solids, rays)
    at = depth[:, None] * rays
    paint = np.zeros_like(at)
    for number, solid in enumerate(solids):
        mine = which == number
        paint[mine] = solid.paint(solid.local(at[mine]))
    facing = np.maximum(normal @ light, 0)
    lit = np.flatnonzero(facing > 0)
    towards = np.broadcast_to(light, (len(lit), 3))
    start = at[lit] + 1e-3 * normal[lit]
    dark = np.zeros(len(lit), bool)
    for solid in solids:
        if solid.shape is not plane:  # walls and the floor cast no shadow
            dark |= solid.hit(start, towards)[0] < FAR
    facing[lit[dark]] = 0
    return np.clip(paint * (ambient + (1.1 - ambient) * facing)[:, None], 0, 1)


def render(seed: int, size: tuple[int, int] = (128, 128)) -> Scene:
    """The scene of ``seed`` at ``size`` (width, height): colours are the mean of 2x2 rays, geometry is exact in the
    middle of each pixel."""
    random = np.random.default_rng([seed, 0x5CE2E])
    while True:
        solids, field = make_solids(random), np.deg2rad(random.uniform(50, 70))
        light = np.array([random.uniform(-1, 1), random.uniform(0.6, 1.4), random.uniform(-0.1, 1)])
        ambient = random.uniform(0.4, 0.55)
        rays = _rays(size, field)
        depth, normal, _ = _nearest(solids, rays)
        if depth.min() > 1 and depth.max() < 20:  # not within a solid, and a wall wherever one looks
            break
    width, height = size
    fine = _shaded(solids, _rays((2 * width, 2 * height), field), light / np.linalg.norm(light), ambient)
    colours = fine.reshape(height, 2, width, 2, 3).mean((1, 3))
    return Scene(
        np.round(255 * colours).astype(np.uint8),
        depth.reshape(height, width).astype(np.float32),
        normal.reshape(height, width, 3).astype(np.float32),
    )


def write_scenes(folder: Path, count: int, size: tuple[int, int] = (128, 128), first: int = 0) -> None:
    """Write the scenes of seeds ``first``, ``first`` + 1, ...: ``pictures``, ``depth`` (16-bit PNG, millimetres) and
    ``normal`` (16-bit PNG, (n + 1) / 2), each with files of the same names. Files that are there are kept."""
    for name in ("pictures", "depth", "normal"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for seed in range(first, first + count):
        name = f"{seed:05d}.png"
        if (folder / "pictures" / name).exists():  # written last
            continue
        scene = render(seed, size)
        write(folder / "depth" / name, np.round(1000 * scene.depth).astype(np.uint16))
        write(folder / "normal" / name, sixteen_bit((scene.normal + 1) / 2))
        Image.fromarray(scene.picture).save(folder / "pictures" / name)
