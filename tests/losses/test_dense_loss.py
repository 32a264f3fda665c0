"""[loss.dense]: the decoded map against the truth, and the mean over valid cells of the losses on latents."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import steps
import torch
from torch import Tensor

from pixelkiln.trainer.dense.header import Task
from pixelkiln.trainer.diffusion.types import Maps, Step
from pixelkiln.trainer.errors import UserError
from pixelkiln.trainer.losses.dense import distance
from pixelkiln.trainer.losses.term import LossParts
from pixelkiln.trainer.registry import losses

SIDE = 16


class Blocks:
    """A decoder of 2 pixels per cell, whose pixels are its first three channels."""

    def __init__(self) -> None:
        self.vae, self.room, self.factor, self.by_parts = torch.nn.Linear(1, 1), None, 2, False

    def need(self, cells: int) -> int:
        return 0

    def __call__(self, z: Tensor) -> Tensor:
        return z[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3)


def given(task: Task, truth: Tensor, valid: Tensor, out: Tensor) -> Step:
    made = steps.step("sample", [999.0] * len(out), len(out), size=SIDE, dtype=torch.float32)
    batch = replace(made.batch, maps=Maps(truth, truth, valid))
    return replace(made, batch=batch, out=out.detach().requires_grad_())


def loss_of(task: Task, options: dict[str, Any] | None = None) -> Any:
    entry = losses["dense"]
    made = steps.process("sample")
    return entry.build(entry.options(**(options or {})), LossParts(made, Blocks(), False, task))


def scene(task: Task, rows: int = 2) -> tuple[Tensor, Tensor]:
    """(truth [B, K, 2 SIDE, 2 SIDE] in blocks of 2 x 2, latents [B, 4, SIDE, SIDE] that decode to it)."""
    random = torch.Generator().manual_seed(3)
    small = torch.rand(rows, 1 if task == "depth" else 3, SIDE, SIDE, generator=random)
    small = torch.nn.functional.normalize(small * 2 - 1, dim=1) if task == "normal" else small
    pixels = small if task == "normal" else 2 * small - 1
    latents = torch.cat([pixels.expand(-1, 3, -1, -1), torch.zeros(rows, 1, SIDE, SIDE)], 1)
    return small.repeat_interleave(2, 2).repeat_interleave(2, 3), latents


@pytest.mark.parametrize("task", ["depth", "normal", "image"])
def test_the_truth_has_no_error_and_anything_else_has(task: Task) -> None:
    truth, latents = scene(task)
    valid = torch.ones(2, 1, 2 * SIDE, 2 * SIDE, dtype=torch.bool)
    made = given(task, truth, valid, latents.clone())
    assert loss_of(task)(made).max() < 1e-6
    wrong = given(task, truth, valid, latents + 0.5 * torch.randn(latents.shape, generator=torch.Generator()))
    errors = loss_of(task)(wrong)
    (slope,) = torch.autograd.grad(errors.sum(), wrong.out)
    assert (errors > 0.01).all() and slope.isfinite().all() and slope[:, :3].abs().sum() > 0


def test_depth_is_compared_up_to_scale_and_shift() -> None:
    truth, latents = scene("depth")
    valid = torch.ones(2, 1, 2 * SIDE, 2 * SIDE, dtype=torch.bool)
    assert loss_of("depth")(given("depth", truth, valid, 0.3 * latents - 0.4)).max() < 1e-6


@pytest.mark.parametrize("task", ["depth", "normal", "image"])
def test_invalid_pixels_have_no_say(task: Task) -> None:
    truth, latents = scene(task)
    valid = torch.rand(2, 1, 2 * SIDE, 2 * SIDE, generator=torch.Generator().manual_seed(1)) < 0.5
    garbage = torch.where(valid, truth, torch.tensor(1e6))
    out = latents + 0.1
    assert torch.equal(loss_of(task)(given(task, truth, valid, out)), loss_of(task)(given(task, garbage, valid, out)))
    nothing = given(task, truth, torch.zeros_like(valid), latents + 0.1)
    errors = loss_of(task)(nothing)
    assert errors.tolist() == [0, 0] and torch.autograd.grad(errors.sum(), nothing.out)[0].isfinite().all()


def test_one_valid_pixel_in_a_hundred_reaches_the_dense_optimum() -> None:
    """Sparse labels by this loss alone: latents of a smooth map (16 numbers) are found from 1 % of its pixels."""
    truth, latents = scene("depth", rows=1)
    coarse = latents[..., ::4, ::4]
    smooth = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
    truth = ((smooth[:, :1] + 1) / 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    valid = torch.zeros(1, 1, 2 * SIDE, 2 * SIDE, dtype=torch.bool)
    chosen = torch.Generator().manual_seed(0)
    for y in range(0, 2 * SIDE, 8):  # one or two pixels in each of the 16 blocks, as a laser's lines have them
        for x in range(0, 2 * SIDE, 8):
            valid[0, 0, y + int(torch.randint(8, (), generator=chosen)), x + 3] = True
    assert float(valid.float().mean()) < 0.02
    guess = torch.zeros(1, 4, 4, 4, requires_grad=True)
    torch.nn.init.normal_(guess, std=0.1, generator=chosen)
    optimizer, loss = torch.optim.Adam([guess], lr=0.05), loss_of("depth")
    for _ in range(400):
        made = given("depth", truth, valid, torch.zeros(1, 4, SIDE, SIDE))
        out = guess.repeat_interleave(4, 2).repeat_interleave(4, 3)
        optimizer.zero_grad()
        loss(replace(made, out=out)).sum().backward()
        for group in optimizer.param_groups:
            group["lr"] *= 0.99
        optimizer.step()
    everywhere = torch.ones_like(valid)
    pixels = Blocks()(guess.detach().repeat_interleave(4, 2).repeat_interleave(4, 3))
    assert float(distance(pixels, truth, everywhere, "depth")) < 0.01


def test_it_is_refused_in_a_run_without_dense() -> None:
    with pytest.raises(UserError, match=r"loss\.dense: .*\[dense\]"):
        losses["dense"].build(losses["dense"].options(), LossParts(steps.process("epsilon"), Blocks()))


def test_a_window_of_the_picture_is_compared_with_the_same_window_of_the_truth() -> None:
    truth, latents = scene("image")
    valid = torch.ones(2, 1, 2 * SIDE, 2 * SIDE, dtype=torch.bool)
    made = given("image", truth, valid, latents.clone())
    assert loss_of("image", {"decode": "window", "window": 64, "halo": 0})(made).max() < 1e-6
