"""LPIPS (arXiv 1801.03924) on decoded pictures: features of VGG16, normalised at each place, squared difference.

VGG16's weights are not shipped with anything that Pixelkiln installs: give torchvision's file. The learned heads of the
lpips package (a few kB) are optional; without them every channel counts alike.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..diffusion.types import Loss, Step
from ..errors import UserError
from ..registry import losses
from ..runs.files import BROKEN_PICKLE, is_file
from .options import LpipsOptions
from .pixel import Targets, compared, latents, ready
from .term import LossParts, at_least_float32, mask_at

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""VGG16's convolutions between its poolings; LPIPS looks after each stage."""


class Vgg(nn.Module):
    """VGG16's features after each stage's last activation. Pixels [N, 3, H, W] in [-1, 1] -> five feature maps."""

    shift: Tensor
    scale: Tensor

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList()
        channels = 3
        for widths in STAGES:
            layers: list[nn.Module] = []
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self.stages.append(nn.Sequential(*layers))
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1))
        self.heads: list[Tensor] = [torch.full((1, w[-1], 1, 1), 1 / w[-1]) for w in STAGES]

    def forward(self, x: Tensor) -> list[Tensor]:
        x, out = (x - self.shift) / self.scale, []
        for i, stage in enumerate(self.stages):
            x = stage(nn.functional.max_pool2d(x, 2) if i else x)
            out.append(x)
        return out

    def distance(self, predicted: Tensor, true: Tensor, mask: Tensor | None) -> Tensor:
        """[N]: sum over stages of the mean over places of the heads' weighted squared differences."""
        total = torch.zeros(len(true), dtype=true.dtype, device=true.device)
        with torch.no_grad():
            wanted = self(true)
        for head, p, t in zip(self.heads, self(predicted), wanted, strict=True):
            places = (head.to(t) * (_unit(p) - _unit(t)) ** 2).sum(1, keepdim=True)
            small = mask_at(mask, places.shape[-2:], places)
            total = total + (places if small is None else places * small).flatten(1).mean(1)
        return total


def _unit(f: Tensor) -> Tensor:
    return f / ((f**2).sum(1, keepdim=True) + 1e-10).sqrt()


def load_vgg(backbone: str | None, heads: str | None) -> Vgg:
    """VGG16 for LPIPS from the user's files. Raises UserError where one is missing or is another network's."""
    if backbone is None:
        raise UserError(
            "loss.lpips.backbone: LPIPS needs VGG16's weights, which are not included; give torchvision's file "
            "vgg16-397923af.pth (528 MB, download.pytorch.org/models)"
        )
    net, found = Vgg(), _read(backbone, "loss.lpips.backbone")
    convs = [layer for stage in net.stages for layer in stage.children() if isinstance(layer, nn.Conv2d)]
    at, place = 0, []
    for widths in STAGES:
        place += [at + 2 * i for i in range(len(widths))]
        at += 2 * len(widths) + 1
    for conv, number in zip(convs, place, strict=True):
        for name in ("weight", "bias"):
            parameter, value = getattr(conv, name), found.get(f"features.{number}.{name}")
            if value is None or value.shape != parameter.shape:
                raise UserError(f"loss.lpips.backbone: {backbone} has no VGG16 features.{number}.{name}; give its file")
            parameter.data = value.float()
    if heads is not None:
        learned = _read(heads, "loss.lpips.heads")
        for i, widths in enumerate(STAGES):
            value = learned.get(f"lin{i}.model.1.weight")
            if value is None or value.shape != (1, widths[-1], 1, 1):
                raise UserError(f"loss.lpips.heads: {heads} holds no heads for VGG16; give the lpips package's vgg.pth")
            net.heads[i] = value.float()
    return net.requires_grad_(False).eval()


def _read(path: str, where: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not is_file(Path(path)):
        raise UserError(f"{where}: there is no file {path}; give the file of the weights")
    try:
        found = load_file(path) if path.endswith(".safetensors") else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, *BROKEN_PICKLE) as error:
        reason = str(error).splitlines()[0] if str(error) else "it ends early"
        raise UserError(f"{where}: {path} cannot be read as weights ({reason}); give another file") from None
    if not isinstance(found, dict):
        raise UserError(f"{where}: {path} holds no weights by name; give another file")
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


@losses.register("lpips", LpipsOptions)
def build(options: LpipsOptions, parts: LossParts) -> Loss:
    net = load_vgg(options.backbone, options.heads)
    decoder = ready("lpips", options, parts)
    targets = Targets(options.target_cache * 2**30) if options.target_cache else None

    def loss(step: Step) -> Tensor:
        predicted, true, _ = latents(step, options.mode)
        distance = net.to(true.device, at_least_float32(true).dtype).distance
        return compared(predicted, true, step, options, decoder, distance, targets)

    return loss
