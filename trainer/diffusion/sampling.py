"""[sample]: previews at fixed seeds, drawn as ComfyUI draws them, and the grid of prompts by checkpoints.

The noise is drawn on the CPU and the sigmas follow ComfyUI's ``normal``, ``karras``, ``simple`` and ``sgm_uniform``
schedules, so with euler the same seed, scheduler, steps and guidance give the same picture there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, PngImagePlugin
from torch import Tensor

from ..errors import UserError
from ..registry import nearest
from ..runs.files import decode, write_atomic
from .options import KOHYA, SampleOptions, Sampler, Spacing
from .process import Process
from .types import Conditioning


@dataclass(frozen=True)
class Prompt:
    """One picture to draw."""

    text: str
    negative: str
    seed: int
    width: int
    height: int
    steps: int
    guidance: float
    sampler: Sampler
    scheduler: Spacing

    def parameters(self) -> str:
        """As A1111 writes it into its pictures."""
        return (
            f"{self.text}\nNegative prompt: {self.negative}\nSteps: {self.steps}, Sampler: {self.sampler}, "
            f"Schedule type: {self.scheduler}, CFG scale: {self.guidance}, Seed: {self.seed}, "
            f"Size: {self.width}x{self.height}"
        )


def prompts(options: SampleOptions, resolution: tuple[int, int], cell: int = 8) -> list[Prompt]:
    """The prompts of the options and of their file, flags applied. UserError names a flag that is not known."""
    asked = [_flags(line) for line in options.prompts] + (_read(Path(options.file)) if options.file else [])
    return [
        _prompt(text, given, options, resolution, (options.seed + i) % 2**64, cell)
        for i, (text, given) in enumerate(asked)
    ]


Given = dict[str, Any]
"""What a prompt sets for itself, by the field names of ``Prompt``."""
FLAGS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "n": ("negative", str), "d": ("seed", int), "w": ("width", int), "h": ("height", int), "s": ("steps", int),
    "l": ("guidance", float), "g": ("guidance", float), "ss": ("sampler", str),
}  # fmt: skip
KEYS = {
    "negative_prompt": ("negative", str), "seed": ("seed", int), "width": ("width", int), "height": ("height", int),
    "sample_steps": ("steps", int), "scale": ("guidance", float), "guidance_scale": ("guidance", float),
    "sample_sampler": ("sampler", str),
}  # fmt: skip
FOREIGN = ("ctr", "rcfg", "fs", "cfg_trunc_ratio", "renorm_cfg", "flow_shift", "am", "nl", "t", "ow", "oh", "ct", "cl")
"""Flags of Kohya's tools for other families, and of gen_img.py, ignored for these."""
_DASHES = re.compile(
    rf"(?<!\S)(-?[\u2010-\u2015\u2212]{{1,2}})(?=({'|'.join((*FLAGS, *FOREIGN))})(\s|$))", re.IGNORECASE
)
"""What text programs make of the hyphens of a flag."""


def _read(path: Path) -> list[tuple[str, Given]]:
    """The prompts of a file."""
    try:
        text = decode(path.read_bytes())
        if path.suffix.lower() == ".toml":
            import toml

            shared = toml.loads(text)["prompt"]
            rows = [{**{k: v for k, v in shared.items() if k != "subset"}, **one} for one in shared["subset"]]
        elif path.suffix.lower() == ".json":
            rows = json.loads(text)
        else:
            rows = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
        assert isinstance(rows, list)
        return [_flags(row) if isinstance(row, str) else _table(row) for row in rows]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"sample.file: {path} cannot be read ({error}); give a UTF-8 text file") from None
    except (KeyError, TypeError, AttributeError, AssertionError, IndexError, ValueError) as error:
        if str(error).startswith("sample prompt"):
            raise
        form = "[prompt] with [[prompt.subset]]" if path.suffix.lower() == ".toml" else "a list of prompts"
        raise UserError(f"sample.file: {path} is not {form} ({error}); correct it") from None


def _flags(line: str) -> tuple[str, Given]:
    """``a cat --n blurry --d 7`` taken apart."""
    text, *flags = f" {_DASHES.sub('--', line.strip())}".split(" --")
    text = text.strip()
    given: Given = {}
    for flag in flags:
        name, _, value = re.sub(r"^(\w+)=", r"\1 ", flag.strip()).partition(" ")
        if name.lower() in FOREIGN:
            continue
        if name.lower() not in FLAGS:
            raise UserError(f"sample prompt '{text}': --{name} is not known; there is --{' --'.join(FLAGS)}")
        field, read = FLAGS[name.lower()]
        try:
            given[field] = read(value.strip())
        except ValueError:
            more = "" if text else ", behind the text of the prompt"
            raise UserError(f"sample prompt '{text}': --{name} {value!r} is {_NONE[read.__name__]}{more}") from None
    return text, given


_NONE = {"int": "no whole number; write one", "float": "no number; write one", "str": "no text; write one"}
"""What is wrong with a value, by the reader that refused it."""


def _table(row: dict[str, Any]) -> tuple[str, Given]:
    """The same from Kohya's table."""
    text, given = str(row.get("prompt", "")), Given()
    for name, value in row.items():
        if name in ("prompt", *FOREIGN):
            continue
        if name not in KEYS:
            raise UserError(f"sample prompt '{text}': there is no '{name}'; {nearest(name, ['prompt', *KEYS])}")
        field, read = KEYS[name]
        if not isinstance(value, (int, float) if read is float else read) or isinstance(value, bool):
            raise UserError(f"sample prompt '{text}': {name} = {value!r} is no {read.__name__}")
        given[field] = read(value)
    return text, given


def _prompt(
    text: str, given: Given, options: SampleOptions, resolution: tuple[int, int], seed: int, cell: int
) -> Prompt:
    sampler: Any = KOHYA.get(given.get("sampler", ""), given.get("sampler", options.sampler))
    if sampler not in _SCHEDULERS:
        raise UserError(f"sample prompt '{text}': there is no sampler '{sampler}'; there is {', '.join(_SCHEDULERS)}")
    width, height = (
        max(cell, int(given.get(side) or getattr(options, side) or default) // cell * cell)
        for side, default in zip(("width", "height"), resolution, strict=True)
    )
    seed = seed if given.get("seed", -1) == -1 else given["seed"]  # -1: any, in other tools
    if not -(2**63) <= seed < 2**64:
        raise UserError(f"sample prompt '{text}': {seed} is no seed; give a number from 0 to 2^64 - 1")
    return Prompt(
        text, given.get("negative", options.negative), seed, width, height,
        min(1000, max(1, given.get("steps", options.steps))), given.get("guidance", options.guidance), sampler,
        options.scheduler,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- sampling

_SCHEDULERS = {
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpm_2": "KDPM2DiscreteScheduler",
    "dpm_2_ancestral": "KDPM2AncestralDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmsingle": "DPMSolverSinglestepScheduler",
}


def _shifted(u: Tensor, shift: float) -> Tensor:
    """Levels of a flow in (0, 1], shifted towards the noise as ComfyUI samples the family."""
    return shift * u / (1 + (shift - 1) * u)


LAST_ALPHA = 4.8973451890853435e-08
"""Cumulative alpha that ComfyUI samples a zero-terminal-SNR schedule with in place of its last, 0: sigma 4518.76."""


def _alphas(process: Process) -> Tensor:
    """The cumulative alphas to sample with, all above 0, as sigma = sqrt((1 - alpha) / alpha) must be finite."""
    assert process.alphas is not None
    return torch.where(process.alphas <= 0, LAST_ALPHA, process.alphas)


def sigmas(process: Process, spacing: Spacing, steps: int) -> Tensor:
    """[steps + 1] float64 noise levels from the largest to 0, spaced as ComfyUI's schedulers of the same names."""
    if process.alphas is None:
        table = _shifted(torch.arange(1, 1001, dtype=torch.float64) / 1000, process.sampling_shift)
    else:
        alphas = _alphas(process)
        table = ((1 - alphas) / alphas).sqrt()

    def at(timestep: Tensor) -> Tensor:
        """Sigma at a fractional timestep."""
        if process.alphas is None:
            return _shifted((timestep + 1) / 1000, process.sampling_shift)
        low = timestep.floor().long().clamp(max=len(table) - 1)
        high, part = (low + 1).clamp(max=len(table) - 1), timestep - low
        return ((1 - part) * table[low].log() + part * table[high].log()).exp()

    last = len(table) - 1
    match spacing:
        case "normal":
            values = at(torch.linspace(last, 0, steps, dtype=torch.float64))
        case "sgm_uniform":
            values = at(torch.linspace(last, 0, steps + 1, dtype=torch.float64)[:-1])
        case "simple":
            values = torch.stack([table[-(1 + int(i * len(table) / steps))] for i in range(steps)])
        case "karras":
            low, high = table[0] ** (1 / 7), table[-1] ** (1 / 7)
            values = (high + torch.linspace(0, 1, steps, dtype=torch.float64) * (low - high)) ** 7
    return torch.cat([values, values.new_zeros(1)])


@torch.no_grad()
def draw(
    process: Process,
    predict: Callable[[Tensor, Tensor, Conditioning], Tensor],
    prompt: Prompt,
    positive: Conditioning,
    negative: Conditioning,
    channels: int,
    device: torch.device,
    cell: int = 8,
) -> Tensor:
    """Latents [1, C, h, w] of one prompt. ``predict(noisy, level, conditioning)`` is the family's."""
    shape = (1, channels, prompt.height // cell, prompt.width // cell)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(prompt.seed), dtype=torch.float32)

    def guided(noisy: Tensor, level: Tensor) -> Tensor:
        out = predict(noisy, level, positive)
        if prompt.guidance == 1:
            return out
        return (away := predict(noisy, level, negative)) + prompt.guidance * (out - away)

    levels = sigmas(process, prompt.scheduler, prompt.steps)
    if process.alphas is None:
        x = noise.to(device) * levels[0]
        for sigma, following in zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True):
            x = x + (following - sigma) * guided(x, torch.full((1,), sigma, device=device))
        return x
    scheduler = _scheduler(process, prompt, levels)
    ancestral = torch.Generator().manual_seed((prompt.seed + 1) % 2**64)
    x = noise.to(device)
    if prompt.sampler in ("euler", "euler_ancestral", "heun"):
        x = x * (1 + levels[0] ** 2) ** 0.5
    elif prompt.sampler in ("dpm_2", "dpm_2_ancestral"):
        x = x * float(scheduler.init_noise_sigma)
    for t in scheduler.timesteps:
        level = t.round().reshape(1).to(device, torch.float32)
        extra = {"generator": ancestral} if prompt.sampler.endswith("ancestral") else {}
        x = scheduler.step(guided(scheduler.scale_model_input(x, t), level), t, x, **extra).prev_sample
    return x


def _scheduler(process: Process, prompt: Prompt, levels: Tensor) -> Any:
    import diffusers

    alphas = _alphas(process)
    betas = (1 - alphas / torch.cat([alphas.new_ones(1), alphas[:-1]])).numpy().astype(np.float32)
    kind = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}[process.prediction]
    extra: dict[str, Any] = {
        "ddim": {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
        "pndm": {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1},
    }.get(prompt.sampler, {})
    made = getattr(diffusers, _SCHEDULERS[prompt.sampler])(trained_betas=betas, prediction_type=kind, **extra)
    if prompt.sampler == "euler":
        made.set_timesteps(sigmas=levels.tolist())
    else:
        made.set_timesteps(prompt.steps)
    if prompt.sampler == "euler_ancestral":
        made.sigmas = made.sigmas.double()  # it takes the root of a difference of squares
    elif prompt.sampler == "dpm_2_ancestral":
        _mend(made)
    return made


def _mend(made: Any) -> None:
    """Give KDPM2AncestralDiscreteScheduler its levels without a difference of squares, which float32 loses.

    sigma_down = sqrt(next^2 - sigma_up^2) is next^2 / sigma, and the level between, sqrt(sigma * sigma_down), is the
    next one. Where the next is far below, as from the last level of zero terminal SNR, diffusers' are off or NaN.
    """
    following = made.sigmas.roll(-2)
    made.sigmas_down = torch.where(made.sigmas > 0, following**2 / made.sigmas, made.sigmas)
    made.sigmas_interpol = torch.where(made.sigmas_interpol == 0, made.sigmas_interpol, following)
    made.timesteps[1::2] = made.timesteps[2::2]


# ---------------------------------------------------------------------------------------------------------- pictures


def to_image(pixels: Tensor) -> Image.Image:
    """[3, H, W] in [-1, 1] -> a picture."""
    array = ((pixels.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array)


def save_picture(picture: Image.Image, path: Path, prompt: Prompt, facts: dict[str, Any]) -> None:
    """A PNG with its prompt and settings in the metadata."""
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", prompt.parameters())
    info.add_text("pixelkiln", _made(prompt, facts))
    write_atomic(path, lambda file: picture.save(file, "PNG", pnginfo=info))


def is_of(path: Path, prompt: Prompt, facts: dict[str, Any]) -> bool:
    """Whether a file is what ``save_picture`` writes for this prompt and these facts."""
    with Image.open(path) as picture:
        return picture.info.get("pixelkiln") == _made(prompt, facts)


def _made(prompt: Prompt, facts: dict[str, Any]) -> str:
    return json.dumps({**facts, **prompt.__dict__}, ensure_ascii=False)


def picture_path(samples: Path, step: int, index: int) -> Path:
    return samples / f"step{step:08d}_{index:02d}.png"


def grid(samples: Path, texts: list[str], cell: int = 256) -> Path | None:
    """``grid.png``: rows are prompts, columns are the steps at which previews were drawn. None without pictures."""
    steps = sorted({int(p.name[4:12]) for p in samples.glob("step????????_??.png")})
    if not steps:
        return None
    label, strip = 18, 28
    sheet = Image.new("RGB", (cell * len(steps), label + len(texts) * (cell + strip)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, step in enumerate(steps):
        pen.text((column * cell + 6, 3), f"step {step}", fill="black")
        for row, text in enumerate(texts):
            top = label + row * (cell + strip)
            if column == 0:
                pen.text((6, top + cell + 6), text[: cell * len(steps) // 7], fill="black")
            path = picture_path(samples, step, row)
            if path.exists():
                with Image.open(path) as picture:
                    scale = min(cell / picture.width, cell / picture.height)
                    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
                    sheet.paste(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS), (column * cell, top))
    path = samples / "grid.png"
    write_atomic(path, lambda file: sheet.save(file, "PNG"))
    return path


def before_after(samples: Path, texts: list[str], path: Path, cell: int = 192) -> None:
    """The first and the last preview of each prompt, one above the other; blank where a prompt was not there yet."""
    steps = sorted({int(p.name[4:12]) for p in samples.glob("step????????_??.png")})
    if len(steps) < 2:
        return
    margin, strip = 64, 22
    sheet = Image.new("RGB", (margin + cell * len(texts), 2 * cell + strip), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (step, word) in enumerate(((steps[0], "before"), (steps[-1], "after"))):
        pen.text((10, row * cell + cell // 2), word, fill="black")
        for column, text in enumerate(texts):
            pen.text((margin + column * cell + 6, 2 * cell + 5), text[: cell // 7], fill="black")
            if (drawn := picture_path(samples, step, column)).exists():
                with Image.open(drawn) as picture:
                    scale = min(cell / picture.width, cell / picture.height)
                    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
                    shown = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
                sheet.paste(shown, (margin + column * cell, row * cell))
    write_atomic(path, lambda file: sheet.save(file, "PNG"))
