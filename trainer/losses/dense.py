"""[loss.dense]: the decoded map against the file's own values, over valid pixels alone.

Depth by the affine-invariant L1: the prediction is aligned with the truth by least squares, picture by picture, then
compared (arXiv 1907.01341; after a latent diffusion decoder arXiv 2409.11355), between the truth's two quantiles.
Normals by 1 - cos, whose slope is finite where that of the angle is not. Images by L1.
"""

from __future__ import annotations

from torch import Tensor

from ..dense import maps, metrics
from ..dense.header import Task
from ..diffusion.types import Loss, Step
from ..errors import UserError
from ..registry import losses
from .decode import View, evaluate_in_chunks
from .options import DenseOptions
from .pixel import plan_for, ready
from .term import LossParts


def distance(pixels: Tensor, truth: Tensor, valid: Tensor, task: Task) -> Tensor:
    """[B]: how far decoded pixels [B, 3, H, W] are from the truth [B, 1 or 3, H, W] where ``valid`` [B, 1, H, W]; 0
    where nothing is."""
    prediction, known = maps.decode(pixels, task), valid[:, 0]
    if task == "depth":
        return metrics.mean((metrics.aligned(prediction, truth[:, 0], known) - truth[:, 0]).abs(), known)
    if task == "normal":
        return metrics.mean(1 - (prediction * truth).sum(1), known)
    return metrics.absolute_error(prediction, truth, known)


@losses.register("dense", DenseOptions)
def build(options: DenseOptions, parts: LossParts) -> Loss:
    if parts.task is None:
        raise UserError("loss.dense: it compares maps of a run with [dense]; add that table, or leave this one out")
    decoder, task = ready("dense", options, parts), parts.task

    def loss(step: Step) -> Tensor:
        found, clean = step.batch.maps, step.clean
        assert found is not None
        plan = plan_for(options, decoder, *clean.shape[-2:])

        def evaluate(z: Tensor, rows: Tensor) -> Tensor:
            there = rows.to(clean.device)
            view: View = plan.view(decoder, clean[there], step.draw.window[rows.to(step.draw.window.device)])
            truth, valid = (one[there][..., view.rows, view.columns] for one in (found.truth, found.valid))
            return distance(view.decode(z), truth, valid, task)

        return evaluate_in_chunks(step.out, evaluate, options.decode_batch if plan.kind == "full" else 1)

    return loss
