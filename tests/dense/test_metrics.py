"""Metrics against numpy's least squares, known answers and each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pixelkiln.trainer.dense import metrics


def made(seed: int, rows: int = 3, size: tuple[int, int] = (12, 17)):
    draw = torch.Generator().manual_seed(seed)
    prediction = torch.rand(rows, *size, generator=draw)
    truth = torch.rand(rows, *size, generator=draw) * 20 + 0.5
    return prediction, truth, torch.rand(rows, *size, generator=draw) < 0.6


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_alignment_is_numpys_least_squares(offset: float):
    prediction, truth, valid = made(1)
    prediction = prediction + offset
    scale, shift = metrics.align(prediction, truth, valid)
    for i in range(len(truth)):
        p, t = (x[i][valid[i]].double().numpy() for x in (prediction, truth))
        a, b = np.linalg.lstsq(np.stack([p, np.ones_like(p)], 1), t, rcond=None)[0]
        assert scale[i].item() == pytest.approx(a, rel=1e-3)
        assert shift[i].item() == pytest.approx(b, rel=1e-3)


def test_invalid_pixels_may_hold_anything():
    prediction, truth, valid = made(2)
    dirty = torch.where(valid, truth, torch.nan)
    for a, b in zip(metrics.align(prediction, truth, valid), metrics.align(prediction, dirty, valid), strict=True):
        assert torch.equal(a, b)
    for space in ("disparity", "depth", "log"):
        depth = metrics.aligned_depth(prediction, dirty, valid, space)
        for figure in (metrics.absrel, metrics.delta1, metrics.edge_f1):
            assert figure(depth, dirty, valid).isfinite().all()


@pytest.mark.parametrize("pixels", [0, 1])
def test_what_has_no_least_squares_is_zero(pixels: int):
    prediction, truth, valid = made(3)
    constant = torch.full_like(prediction, 0.3)
    few = torch.zeros_like(valid)
    few.view(3, -1)[:, :pixels] = True
    for p, v in ((constant, valid), (prediction, few)):
        scale, shift = metrics.align(p, truth, v)
        assert (scale == 0).all() and (shift == 0).all()


@pytest.mark.parametrize("space", ["disparity", "depth", "log"])
def test_a_known_affine_gives_no_error(space: str):
    _, truth, valid = made(4)
    seen = {"disparity": 1 / truth, "depth": truth, "log": truth.log()}[space]
    depth = metrics.aligned_depth(0.2 * seen - 0.05, truth, valid, space)
    assert (metrics.absrel(depth, truth, valid) < 1e-4).all()
    assert (metrics.delta1(depth, truth, valid) == 1).all()
    assert metrics.edge_f1(depth, truth, valid).min() > 0.999


def test_depth_figures_by_hand():
    truth = torch.tensor([[[1.0, 2.0, 4.0, 0.0]]])
    depth = torch.tensor([[[1.1, 1.0, 4.0, 9.0]]])
    valid = truth > 0
    assert metrics.absrel(depth, truth, valid).item() == pytest.approx((0.1 + 0.5) / 3)
    assert metrics.delta1(depth, truth, valid).item() == pytest.approx(2 / 3)


def test_aligned_depth_stays_in_the_range_of_the_data():
    truth = torch.tensor([[[1.0, 2.0, 80.0, 40.0]]])
    wild = torch.tensor([[[1.0, 0.5, -3.0, 0.1]]])
    for space in ("disparity", "depth", "log"):
        depth = metrics.aligned_depth(wild, truth, truth > 0, space, (0.5, 80))
        assert depth.min() >= 0.5 and depth.max() <= 80
    assert metrics.aligned_depth(wild, truth, truth > 0, "disparity").min() > 0


def test_gradients_reach_the_prediction_and_are_finite():
    prediction, truth, valid = made(5)
    valid[0] = False
    p = prediction.requires_grad_()
    aligned = metrics.aligned(p, truth, valid)
    metrics.mean((aligned - truth).abs(), valid).sum().backward()
    assert p.grad.isfinite().all() and (p.grad[1][valid[1]] != 0).any() and (p.grad[~valid] == 0).all()


def step_edge(at: int, width: int = 32, near: float = 1.0, far: float = 3.0) -> torch.Tensor:
    depth = torch.full((1, 16, width), far)
    depth[..., :at] = near
    return depth


def test_edges_are_matched_within_a_pixel():
    truth = step_edge(16)
    valid = torch.ones_like(truth, dtype=torch.bool)
    assert metrics.edge_f1(truth, truth, valid) == 1
    assert metrics.edge_f1(step_edge(17), truth, valid) == 1
    assert metrics.edge_f1(step_edge(24), truth, valid) == 0
    blob = torch.linspace(1, 3, 32).expand(1, 16, 32)  # the right depths without an outline
    assert metrics.edge_f1(blob, truth, valid) == 0
    assert metrics.edge_f1(2 * truth, truth, valid) == 1  # the scale of depth does not matter
    assert metrics.edge_f1(truth, torch.ones_like(truth), valid).isnan()


def test_an_edge_to_an_invalid_pixel_is_none():
    depth = step_edge(16)
    valid = torch.ones_like(depth, dtype=torch.bool)
    valid[..., 15:] = False
    assert not metrics.edges(depth, valid).any()


@pytest.mark.parametrize("degrees", [0.0, 0.01, 11.0, 90.0, 180.0])
def test_angles_are_exact_and_their_slope_is_finite(degrees: float):
    turn = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    truth = torch.zeros(1, 3, 2, 2)
    truth[:, 2] = 1
    turned = torch.zeros(1, 3, 2, 2)
    turned[:, 0], turned[:, 2] = torch.sin(turn), torch.cos(turn)
    turned.requires_grad_()
    valid = torch.ones(1, 2, 2, dtype=torch.bool)
    metrics.angular_error(turned, truth, valid).sum().backward()
    assert turned.grad.isfinite().all()
    assert metrics.angular_error(turned, truth, valid).item() == pytest.approx(degrees, abs=1e-4)
    assert metrics.within(turned, truth, valid).item() == (1 if degrees < 11.25 else 0)


def test_means_divide_by_what_is_valid():
    values = torch.tensor([[[1.0, torch.inf], [3.0, torch.nan]]])
    valid = torch.tensor([[[True, False], [True, False]]])
    assert metrics.mean(values, valid).item() == 2
    assert metrics.mean(values, torch.zeros_like(valid)).item() == 0
    image = torch.rand(2, 3, 4, 4)
    whole = torch.ones(2, 4, 4, dtype=torch.bool)
    torch.testing.assert_close(metrics.absolute_error(image + 0.25, image, whole), torch.full((2,), 0.25))
