"""A learned pixel metric: the difference of two decoded pictures, predicted at the resolution of the latents.

The change of a decoded picture is nearly linear in the change of its latents, by a map that depends on the latents:

    pixels = C2( g(z, d) * C1(d) ),   d = predicted - true,   z = true + d / 2

with C1 a convolution without bias, g a small convolutional gate and C2 a 1 x 1 convolution to the pixels of a cell. It
is exactly 0 where prediction and target agree. It takes 0.15 % of the decoder's operations (SD1.5), and is fitted
to one autoencoder by what the network really gets wrong: to the decoded differences, and to the gradient of their mean
square. What is left of its gradient's error, the *residual energy*, is what a correction (``term.Estimate``) has to
carry: the gradient's second moment grows by (1 / share - 1) times it.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import UserError
from ..runs.files import is_file, write_atomic

WIDTH, GATE, DEPTH, REACH = 256, 128, 2, 7
"""Channels of the map and of its gate's hidden layers, how many of these follow the first one; side of C1 in cells."""
STEPS, BATCH, RATE, SECONDS = 1500, 32, 0.02, 120.0
"""Of a fit: it ends after so many steps, or so many seconds on a slow machine. RATE is Muon's, see ``_Muon``."""
EPOCHS = 40
"""Each example is seen at most so many times: a few examples seen more often are learned by heart."""
LOWEST = 0.5
"""Mean held-out cosine below which a surrogate is refused: a correction would cost more noise than it saves."""
BANDS = 4
"""Noise levels are reported in so many equal parts of the schedule."""
FORMAT = "pixelkiln.surrogate"
VERSION = 1

Progress = Callable[[Iterable[int], str, int], Iterable[int]]


@dataclass(frozen=True)
class Quality:
    """How near the gradient of a surrogate's mean square is to a full decode's, on pictures that were held out."""

    cosine: float
    """The mean over examples."""
    residual: float
    """Energy of the difference of the gradients / energy of the full decode's."""
    bands: list[float | None]
    """Mean cosine in each quarter of the noise schedule, little noise first; None where there was no example."""

    def text(self) -> str:
        each = ", ".join("-" if one is None else f"{one:.2f}" for one in self.bands)
        return f"cosine {self.cosine:.2f} with a full decode's gradient (by noise level, clean to noise: {each})"


class Surrogate(nn.Module):
    """Predicted and true latents [N, C, h, w] -> difference of their decoded pictures [N, 3, f h, f w], float32 up."""

    def __init__(self, channels: int, factor: int, width: int = WIDTH, depth: int = DEPTH):
        super().__init__()
        self.channels, self.factor, self.width, self.depth = channels, factor, width, depth
        self.change = nn.Conv2d(channels, width, REACH, padding=REACH // 2, bias=False)
        hidden = min(GATE, width)
        layers: list[nn.Module] = []
        for inputs in (2 * channels, *[hidden] * depth):
            layers += [nn.Conv2d(inputs, hidden, 3, padding=1), nn.SiLU()]
        self.gate = nn.Sequential(*layers, nn.Conv2d(hidden, width, 1))
        self.pixels = nn.Conv2d(width, 3 * factor**2, 1, bias=False)
        self.quality: Quality | None = None
        self.key = ""
        """Of the autoencoder and the mode that it was fitted to, see ``key``."""

    def forward(self, predicted: Tensor, true: Tensor) -> Tensor:
        d = predicted - true
        gate = self.gate(torch.cat([true + d / 2, d], 1))
        return functional.pixel_shuffle(self.pixels(gate * self.change(d)), self.factor)

    @property
    def digest(self) -> str:
        """Of its weights: equal where all are."""
        found = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            found.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()


def key(fingerprint: str, mode: str) -> str:
    """What a surrogate belongs to. ``fingerprint``: of the autoencoder, its dtype, scale and shift."""
    return hashlib.sha256(f"{VERSION} {fingerprint} {mode}".encode()).hexdigest()[:24]


# ----------------------------------------------------------------------------------------------------------- fitting


@dataclass(frozen=True)
class Examples:
    """Latents that a step would decode, in crops, with what decoding them gives."""

    predicted: Tensor
    true: Tensor
    """[N, C, h, w] float32."""
    pixels: Tensor
    """[N, 3, f h, f w] float16: the decoded difference."""
    gradient: Tensor
    """[N, C, h, w] float32: of its mean square."""
    place: Tensor
    """[N] in [0, 1]: the noise level as a share of the schedule."""
    held: Tensor
    """[N] bool: of pictures that are kept to measure with."""


@dataclass
class Collector:
    """Decodes what steps would decode, crop by crop, until there are enough examples."""

    decode: Callable[[Tensor], Tensor]
    rows: list[tuple[Tensor, ...]]

    def add(self, predicted: Tensor, true: Tensor, place: Tensor, held: Tensor) -> None:
        """One crop or a few: [n, C, h, w], their noise levels and whether they are held out [n]."""
        with torch.no_grad():
            target = self.decode(true)
        leaf = predicted.detach().float().requires_grad_()
        difference = self.decode(leaf) - target
        (gradient,) = torch.autograd.grad(_squares(difference).sum(), leaf)
        row = (predicted.float(), true.float(), difference.half(), gradient, place.float(), held)
        self.rows.append(tuple(value.detach().cpu() for value in row))

    @property
    def count(self) -> int:
        return sum(len(row[0]) for row in self.rows)

    def examples(self) -> Examples:
        return Examples(*(torch.cat(column) for column in zip(*self.rows, strict=True)))


def _squares(pixels: Tensor) -> Tensor:
    return (pixels**2).flatten(1).mean(1)


def _relative(mine: Tensor, wanted: Tensor) -> Tensor:
    """Scalar: the mean over examples of |mine - wanted|^2 / |wanted|^2; those that are 0 count nothing."""
    size = _squares(wanted)
    return (_squares(mine - wanted) / size.clamp(min=1e-30) * (size > 0)).mean()


def percents(progress: Progress, text: str, done: Callable[[], float]) -> Iterator[None]:
    """Yields while ``done``, the share of some work that is done, is below 1; a bar shows it in percent."""
    for percent in progress(range(1, 101), f"{text}, percent", 100):
        while done() < percent / 100:
            yield


def steps_for(examples: int) -> int:
    """Steps of a fit to so many examples."""
    return min(STEPS, -(-EPOCHS * examples // BATCH))


def fitting_operations(channels: int, factor: int, cells: int, examples: int) -> int:
    """Multiplications and additions of a whole fit to so many examples of so many cells: of a step six forward passes,
    as the loss holds a gradient."""
    with torch.device("meta"):
        weights = sum(p.numel() for p in Surrogate(channels, factor).parameters() if p.ndim > 1)
    return steps_for(examples) * min(BATCH, examples) * cells * 6 * 2 * weights


def fit(
    examples: Examples, factor: int, device: torch.device, progress: Progress = lambda rows, *_: rows,
    steps: int | None = None, seconds: float = SECONDS, width: int | None = None, seed: int = 0,
) -> Surrogate:  # fmt: skip
    """A surrogate for the examples that are not held out, with its quality on those that are; on the CPU.

    The loss is the relative error of the pixels plus that of the gradient, both per example, so that all noise levels
    count alike. Raises UserError where the examples cannot be fitted (they are not finite, or of one picture).
    """
    train = (~examples.held).nonzero().flatten()
    steps = steps or steps_for(len(train))
    if not len(train) or not bool(examples.held.any()):
        raise UserError("surrogate: it needs at least two pictures, one to fit and one to measure with; add pictures")
    if not all(bool(x.isfinite().all()) for x in (examples.pixels, examples.gradient)):
        raise UserError("surrogate: decoding gives numbers that are not finite; use another precision or autoencoder")
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        made = Surrogate(examples.true.shape[1], factor, width or WIDTH).to(device)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        some = train[:BATCH]
        size = made(examples.predicted[some].to(device), examples.true[some].to(device)).square().mean().sqrt()
        made.pixels.weight *= examples.pixels[some].float().square().mean().sqrt() / size.clamp(min=1e-12)
    optimizer = _Muon(made)
    began, step = time.monotonic(), 0

    def done() -> float:
        return max(step / steps, (time.monotonic() - began) / seconds)

    for _ in percents(progress, "fitting the pixel surrogate", done):
        at = min(done(), 1.0)
        rows = train[torch.randint(len(train), (min(BATCH, len(train)),), generator=generator)]
        predicted, true, pixels, wanted = (
            x[rows].to(device, torch.float32)
            for x in (examples.predicted, examples.true, examples.pixels, examples.gradient)
        )
        difference, gradient = _gradient(made, predicted, true, graph=True)
        made.zero_grad()
        (_relative(difference, pixels) + _relative(gradient, wanted)).backward()
        optimizer.step(min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * at)))
        step += 1
    made = made.cpu().requires_grad_(False).eval()
    made.quality = measure(made, examples)
    return made


class _Muon:
    """torch's Muon (kellerjordan.github.io/posts/muon) for all matrices, convolutions as [out, rest], since it takes
    nothing else; Adam for biases."""

    def __init__(self, made: nn.Module):
        self.weights = [p for p in made.parameters() if p.ndim > 1]
        self.matrices = [nn.Parameter(p.detach().flatten(1)) for p in self.weights]  # the same memory
        biases = [p for p in made.parameters() if p.ndim == 1]
        self.parts = ((torch.optim.Muon(self.matrices, weight_decay=0.0), RATE), (torch.optim.Adam(biases), 3e-3))

    def step(self, rate: float) -> None:
        """``rate``: what the rates are multiplied by."""
        for matrix, weight in zip(self.matrices, self.weights, strict=True):
            assert weight.grad is not None
            matrix.grad = weight.grad.flatten(1)
        for optimizer, most in self.parts:
            for group in optimizer.param_groups:
                group["lr"] = most * rate
            optimizer.step()


def _gradient(made: Surrogate, predicted: Tensor, true: Tensor, graph: bool = False) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = predicted.detach().requires_grad_()
        difference = made(leaf, true)
        (gradient,) = torch.autograd.grad(_squares(difference).sum(), leaf, create_graph=graph)
    return difference, gradient


def measure(made: Surrogate, examples: Examples) -> Quality:
    """On the examples that are held out."""
    cosines, apart, whole = [], 0.0, 0.0
    rows = examples.held.nonzero().flatten()
    for some in rows.split(BATCH):
        wanted = examples.gradient[some]
        gradient = _gradient(made, examples.predicted[some], examples.true[some])[1]
        cosines.append(functional.cosine_similarity(gradient.flatten(1), wanted.flatten(1)))
        apart += float((gradient - wanted).square().sum())
        whole += float(wanted.square().sum())
    each, band = torch.cat(cosines), (examples.place[rows] * BANDS).long().clamp(max=BANDS - 1)
    bands = [float(each[band == i].mean()) if bool((band == i).any()) else None for i in range(BANDS)]
    return Quality(float(each.mean()), apart / max(whole, 1e-30), bands)


# ------------------------------------------------------------------------------------------------------------- files


def save(path: Path, made: Surrogate) -> None:
    """As safetensors, with its quality and what it belongs to in the header."""
    from safetensors.torch import save as to_bytes

    assert made.quality is not None and made.key
    header = {
        "version": VERSION, "key": made.key, "channels": made.channels, "factor": made.factor, "width": made.width,
        "depth": made.depth, "quality": asdict(made.quality),
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in made.state_dict().items()}
    write_atomic(path, to_bytes(tensors, metadata={FORMAT: json.dumps(header)}))


def load(path: str | Path, wanted: str | None = None) -> Surrogate:
    """A surrogate from its file. UserError where it is none, or was made for another autoencoder or mode than
    ``wanted`` (a ``key``)."""
    from safetensors import SafetensorError, safe_open

    if not is_file(Path(path)):
        raise UserError(f"{path}: there is no such file; give one that `python -m trainer surrogate` wrote")
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})[FORMAT])
            quality = Quality(**header["quality"])
            depth = header.get("depth", 0)  # what files of before this option have
            made = Surrogate(header["channels"], header["factor"], header["width"], depth)
            made.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, RuntimeError):
        raise UserError(
            f"{path}: this is no surrogate, or damaged; make one with `python -m trainer surrogate`"
        ) from None
    if header["version"] != VERSION or (wanted is not None and header["key"] != wanted):
        raise UserError(f"{path}: this surrogate was made for another autoencoder, mode or version; make one for this")
    made.quality, made.key = quality, header["key"]
    return made.requires_grad_(False).eval()


# -------------------------------------------------------------------------------------------------------------- cost

LIMIT = 1.3
"""Plan ``auto`` decodes every row where that costs no more than this, as a multiple of a step that decodes nothing."""
OWN = 0.01
"""What the surrogate itself adds, at most (SD1.5; less in larger models)."""
SMALLEST, LARGEST = 0.05, 0.5
"""Bounds of the share of rows that are corrected: below, clipping cuts the corrections down; above, it saves little."""


def relative_cost(decode: str, full: float, share: float = 0.0) -> float:
    """The operations of a step by a decode plan, as a multiple of a step that decodes nothing.

    full: the same of a step that decodes every row by the plan ``by_size``. share: of rows that are corrected.
    """
    return {"surrogate": 1 + OWN, "corrected": 1 + OWN + share * (full - 1)}.get(decode, full)


def limit_for(full: float) -> float:
    """What a corrected step may cost, as a multiple of a step that decodes nothing, where decoding every row makes it
    ``full``: 1.15 up to 3.5 (SDXL and SD3 at 1024 pixels), 1.3 from 4.5 (SD1.5 at 512), in between in proportion. A
    network that is small beside its decoder would be corrected too rarely within 1.15."""
    return 1.15 + 0.15 * min(max(full - 3.5, 0.0), 1.0)


def share_for(full: float, residual: float) -> float:
    """The share of rows to correct: the one with the least noise at equal cost, at most what ``limit_for`` allows.

    With F = full - 1 and the residual energy E, cost x second moment is (1 + s F) (1 + (1 / s - 1) E), which is least
    at s = sqrt(E / (F (1 - E))).
    """
    more = max(full - 1, 1e-6)
    energy = min(max(residual, 1e-4), 0.99)
    best = math.sqrt(energy / (more * (1 - energy)))
    return min(max(min(best, (limit_for(full) - 1 - OWN) / more), SMALLEST), LARGEST)
