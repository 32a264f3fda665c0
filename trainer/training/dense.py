"""Dense prediction: the network turns a picture's latents into those of its map, in one step and without noise.

This is Lotus' discriminative form (arXiv 2409.18124) for an adapter: x0 prediction at timestep 999 from the picture's
latents alone, under the empty prompt as hosts encode it. Half of the rows reconstruct the picture (the detail
preserver); a *task switch* tells the network which it is to do. The switch is a small network on the time embedding, as
Lotus has it. At a fixed timestep and task it adds a constant vector, so the saved adapter has it as one more rank of
the time embedding's second layer, and is an ordinary file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..adapters.layers import NAME
from ..dense import maps, metrics
from ..dense.header import TIMESTEP, DenseHeader
from ..dense.options import DenseOptions
from ..diffusion import timesteps
from ..diffusion.options import NoiseOptions
from ..diffusion.process import Process
from ..diffusion.types import Batch, Conditioning, Draw
from ..errors import UserError

if TYPE_CHECKING:
    from ..data.loader import Dataset
    from .model import Model

LAYER = "time_embedding.linear_2"
"""The layer that the task switch is folded into."""
TOKENS = {"sd2": 2}
"""Of the empty prompt, where only the marks of start and end are given: Lotus' own conditioning, which ComfyUI's
LotusConditioning holds. Other families get the padded prompt that every host encodes."""


class TaskSwitch(nn.Module):
    """Lotus' class embedding: what is added to the time embedding, for the map or for the picture.

    [sin s, cos s] with s = (1, 0) for the map and (0, 1) for the picture, through Linear, SiLU and Linear. The last one
    starts at 0, as an adapter does.
    """

    def __init__(self, width: int, seed: int, dtype: torch.dtype, device: torch.device):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.linear_1 = nn.Linear(4, width, device=device, dtype=dtype)
            self.linear_2 = nn.Linear(width, width, device=device, dtype=dtype)
        nn.init.zeros_(self.linear_2.weight)
        nn.init.zeros_(self.linear_2.bias)

    def forward(self, reconstructs: Tensor) -> Tensor:
        """[B] bool -> [B, width]."""
        task = torch.stack([~reconstructs, reconstructs], 1).to(self.linear_1.weight)
        with torch.autocast(task.device.type, enabled=False):
            hidden = self.linear_1(torch.cat([task.sin(), task.cos()], 1))
            return self.linear_2(nn.functional.silu(hidden))


@dataclass
class DensePrediction:
    """See ``system.System``."""

    options: DenseOptions
    process: Process
    family: str
    modules: dict[str, nn.Module] = field(default_factory=dict)
    prior: Tensor | None = None
    """[1 or 3, 64, 64]: the training set's mean map, once it was asked for."""

    @property
    def switch(self) -> nn.Module | None:
        return self.modules.get("switch")

    def check(self, model: Model) -> None:
        if self.switch is not None:
            layer_of(model)

    # ------------------------------------------------------------------------------------------------------ a step

    def draw(self, batch: Batch, seed: int, step: int) -> Draw:
        return self._without_noise(batch, timesteps.draw(batch, seed, step, self.process, NoiseOptions()))

    def levels(self, wanted: int) -> int:
        return 1

    def fixed_draw(self, batch: Batch, part: int, parts: int, seed: int) -> Draw:
        made = timesteps.fixed_draw(batch, part, parts, seed, self.process, NoiseOptions())
        return self._without_noise(batch, made)

    def _without_noise(self, batch: Batch, made: Draw) -> Draw:
        level = torch.full_like(made.level, TIMESTEP)
        if self.options.task_switch == "timestep":
            level = torch.where(reconstructs(batch).to(level.device), 0.0, level)
        nothing = torch.zeros_like(made.noise)
        return replace(made, noise=nothing, added=nothing, level=level)

    def input(self, batch: Batch, draw: Draw) -> Tensor:
        return batch.latents

    def conditions(self, batch: Batch, conditioning: Conditioning) -> Conditioning:
        return self.condition(conditioning, reconstructs(batch))

    def condition(self, conditioning: Conditioning, rows: Tensor) -> Conditioning:
        """The empty prompt's conditioning for rows that reconstruct (True) or predict the map (False).

        SDXL gets the picture's own size, uncropped, as hosts give it where nothing else is given.
        """
        hidden = conditioning.hidden
        rows = rows.to(hidden.device)
        time = self.switch(rows) if self.switch is not None else None
        return replace(conditioning, hidden=hidden[:, : TOKENS.get(self.family)], size=None, time=time)

    # ------------------------------------------------------------------------------------------------------ the file

    def as_saved(self, model: Model) -> AbstractContextManager[None]:
        return self._folded(model) if self.switch is not None else nullcontext()

    @contextmanager
    def _folded(self, model: Model) -> Iterator[None]:
        """One more rank on the time embedding's second layer: at timestep 999 it adds what the switch adds.

        The layer's input there is the constant h = SiLU(linear_1(t)), with the trained adapter of linear_1, so up = e
        and down = h / |h|^2 give exactly e; both are scaled to the same size, for 16-bit files. The alpha grows with
        the rank, so what the adapter multiplies by stays.
        """
        layer = layer_of(model)
        down, up = layer.lora_A[NAME], layer.lora_B[NAME]
        was = down.weight, up.weight, layer.lora_alpha[NAME]
        with torch.no_grad():
            more_down, more_up = self._rank(model, float(layer.scaling[NAME]))
            down.weight = nn.Parameter(torch.cat([was[0], more_down.to(was[0])[None]]), requires_grad=False)
            up.weight = nn.Parameter(torch.cat([was[1], more_up.to(was[1])[:, None]], 1), requires_grad=False)
        layer.lora_alpha[NAME] = was[2] * len(down.weight) / len(was[0])
        try:
            yield
        finally:
            down.weight, up.weight, layer.lora_alpha[NAME] = was

    def _rank(self, model: Model, scaling: float) -> tuple[Tensor, Tensor]:
        """(down [width in], up [width out]) of the rank that adds the switch's vector, float64."""
        assert self.switch is not None
        denoiser = model.family.denoiser
        time = denoiser.time_proj(torch.tensor([TIMESTEP], device=model.device)).to(denoiser.dtype)
        embedding, training = denoiser.time_embedding, denoiser.training
        model.adapter.train(False)
        hidden = embedding.act(embedding.linear_1(time))[0].cpu().double()
        model.adapter.train(training)
        added = self.switch(torch.zeros(1, dtype=torch.bool, device=model.device))[0].cpu().double()
        even = float((scaling / (hidden.norm() * added.norm()).clamp(min=1e-12)).sqrt())
        return hidden / hidden.square().sum() / even, added * even / scaling

    def metadata(self, resolution: tuple[int, int]) -> dict[str, str]:
        o = self.options
        quantiles, tokens = (o.quantiles[0], o.quantiles[1]), TOKENS.get(self.family, 77)
        return DenseHeader(o.task, o.space, quantiles, resolution, tokens, o.task_switch).metadata()

    # -------------------------------------------------------------------------------------------------- validation

    def measure(self, model: Model, dataset: Dataset, held: Sequence[Batch]) -> dict[str, float]:
        """The means of ``figures`` over all pictures."""
        found = dict[str, list[float]]()
        model.family.vae.to(model.device)
        for batch in held:
            for key, values in self.figures(model, dataset, batch)[0].items():
                found.setdefault(key, []).extend(v for v in values.tolist() if v == v)
        return {name: sum(values) / len(values) for name, values in found.items() if values}

    def figures(self, model: Model, dataset: Dataset, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """The scores of the predictions, each [B] of the rows that predict; beside them those of the *prior* (the
        training set's mean map, which knows nothing of the picture) and of the *floor* (the true maps, after the
        autoencoder). And the predictions, as decoded pixels [B, 3, H, W]."""
        family = model.family
        if self.prior is None:
            self.prior = mean_map(dataset)
        batch = batch.pick((~reconstructs(batch)).nonzero().flatten())
        assert batch.maps is not None and batch.conditioning is not None and batch.target is not None
        predicted = predict_latents(model, self, batch.latents, batch.conditioning)
        size = batch.maps.valid.shape[-2:]
        prior = nn.functional.interpolate(self.prior[None], size, mode="bilinear")
        prior = prior if self.options.task == "normal" else 2 * prior - 1
        shown = {
            "": family.decode(predicted).cpu(),
            "prior_": prior.expand(len(batch), 3, -1, -1),
            "floor_": family.decode(batch.target.to(model.device)).cpu(),
        }
        found = {
            name + key: values
            for name, pixels in shown.items()
            for key, values in self.scores(pixels, batch.maps.values, batch.maps.valid).items()
        }
        return found, shown[""]

    def scores(self, pixels: Tensor, values: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Each [B]: how near decoded pixels [B, 3, H, W] are to the true values (as ``Maps`` has them)."""
        task = self.options.task
        truth = values[:, 0] if task == "depth" else values
        return metrics.scores(maps.decode(pixels, task), truth, valid[:, 0], task, self.options.space)


def mean_map(dataset: Dataset, most: int = 64, side: int = 64) -> Tensor:
    """[1 or 3, side, side]: the mean of up to ``most`` training maps over their valid pixels."""
    items = dataset.items[:: -(-len(dataset.items) // most)]
    total, count = torch.zeros(1), torch.zeros(1)
    for item in items:
        truth, valid = dataset.true_map(item)
        total = total + nn.functional.interpolate((truth * valid)[None], (side, side), mode="area")[0]
        count = count + nn.functional.interpolate(valid.float()[None], (side, side), mode="area")[0]
    return torch.where(count > 0, total / count.clamp(min=1e-6), total.sum() / count.sum().clamp(min=1e-6))


def reconstructs(batch: Batch) -> Tensor:
    """[B] bool: the rows that reconstruct their picture."""
    return torch.tensor([role == "reconstruction" for role in batch.rows.role])


def layer_of(model: Model) -> Any:
    """The adapter's layer that the switch is folded into. UserError where it is not adapted by a plain LoRA."""
    found = [one.layers[0] for one in model.adapter.mounted if LAYER in one.plan.site.paths]
    if not found or model.adapter.kind != "lora":
        what = f"adapter.targets leave out {LAYER}" if not found else f"adapter.kind = '{model.adapter.kind}'"
        raise UserError(
            f'dense.task_switch: embedding is folded into a LoRA of {LAYER}, but {what}; set it to "timestep"'
        )
    return found[0]


def build(options: DenseOptions, family: Any, seed: int, dtype: torch.dtype, device: torch.device) -> DensePrediction:
    """The system of a run on this family. UserError where the family cannot run in one step of this kind.

    ``dtype``: of the task switch; ``device``: where it is trained.
    """
    if family.process.is_flow:
        raise UserError(no_flow(family.spec.title))
    made = DensePrediction(options, Process("sample", family.process.alphas), family.name)
    if options.task_switch == "embedding":
        width = family.denoiser.time_embedding.linear_2.out_features
        made.modules["switch"] = TaskSwitch(width, seed, dtype, device)
    return made


def no_flow(title: str) -> str:
    return (
        f"dense: {title} is a flow, and no host takes a picture's latents through one in a single step; use a model of "
        "SD 1.x, SD 2.x or SDXL"
    )


# ------------------------------------------------------------------------------------------------------- prediction


@torch.no_grad()
def predict_latents(model: Model, system: DensePrediction, latents: Tensor, prompt: Conditioning) -> Tensor:
    """The latents [B, C, h, w] of the maps of pictures with these latents, one at a time; the adapter as it stands.

    ``prompt``: the conditioning of the empty prompt, of one row or of all.
    """
    model.adapter.train(False)
    found = []
    for i in range(len(latents)):
        row = prompt.pick(torch.tensor([i if len(prompt.hidden) > 1 else 0])).to(model.device)
        conditioning = system.condition(row, torch.zeros(1, dtype=torch.bool))
        one, level = latents[i : i + 1].to(model.device), torch.full((1,), float(TIMESTEP), device=model.device)
        with model.autocast():
            found.append(model.family.predict(one, level, conditioning))
    return torch.cat(found)


class Predictor:
    """Pictures to maps with a model as it stands: in a run, or with an adapter file on it (``build_model``).

    >>> pixels = Predictor(model, DenseOptions(task="depth"))(pictures)
    >>> depth = dense.maps.decode(pixels, "depth")
    """

    def __init__(self, model: Model, options: DenseOptions | None = None):
        """``options``: what the adapter predicts, where ``model`` is not of a dense run itself."""
        self.model = model
        own = model.system
        if isinstance(own, DensePrediction) and options is None:
            self.system = own
        else:
            assert options is not None, "what is predicted is not known"
            self.system = DensePrediction(options, model.process, model.family.name)
        with torch.no_grad():
            self.prompt = model.family.encode_text([""]).to(torch.device("cpu"))

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1], sides in multiples of 8 -> decoded pixels [B, 3, H, W], about [-1, 1], float32.

        What they mean says ``dense.maps.decode``.
        """
        family = self.model.family
        family.vae.to(self.model.device)
        latents = family.encode_pixels(pictures)
        return family.decode(predict_latents(self.model, self.system, latents, self.prompt)).cpu()
