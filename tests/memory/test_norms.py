"""Norms without needless casts, against what a GPU's autocast computes (``cuda_autocast``)."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import tiny
import torch
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from pixelkiln.trainer.adapters.verify import probe
from pixelkiln.trainer.estimate.fake_tensors import cuda_autocast
from pixelkiln.trainer.memory.norms import spare_casts

LOW = torch.bfloat16


def norm(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        parameter.data.uniform_(0.5, 2)
    return module.to(LOW).requires_grad_(False)


def through(module: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Output and the input's gradient."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", LOW), cuda_autocast():
        out = module(x)
    return out, torch.autograd.grad(out.float().square().sum(), x)[0]


def test_a_layer_norm_in_16_bits_is_autocasts_as_the_next_layer_sees_it() -> None:
    torch.manual_seed(0)
    plain = norm(nn.LayerNorm(64))
    spared = deepcopy(plain)
    spare_casts(spared)
    x = torch.randn(3, 5, 64).to(LOW) * 3 + 7
    (wanted, slope), (found, its) = through(plain, x), through(spared, x)
    assert wanted.dtype == torch.float32 and found.dtype == LOW
    torch.testing.assert_close(found.float(), wanted, rtol=2**-8, atol=0)  # rounded once
    assert (its.float() - slope.float()).norm() < 2**-6 * slope.float().norm()


def test_a_group_norm_is_autocasts_bit_for_bit() -> None:
    plain = norm(nn.GroupNorm(4, 16))
    spared = deepcopy(plain)
    spare_casts(spared)
    x = torch.randn(3, 16, 5, 5).to(LOW) * 3 + 7
    for a, b in zip(through(plain, x), through(spared, x), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


class Activated(nn.Module):
    """As in a ResNet block: norm, activation, convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.nonlinearity, self.conv = nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.nonlinearity(self.norm(x)))


def test_a_silu_between_norm_and_convolution_is_autocasts_bit_for_bit() -> None:
    plain = norm(Activated())
    spared: Any = deepcopy(plain)
    spare_casts(spared)
    x = torch.randn(3, 16, 5, 5).to(LOW) * 3 + 7
    for a, b in zip(through(plain, x), through(spared, x), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
    with torch.autocast("cpu", LOW):
        assert spared.nonlinearity(torch.ones(3)).dtype == LOW
    assert torch.equal(spared.nonlinearity(torch.ones(3)), nn.SiLU()(torch.ones(3)))
    with torch.autocast("cpu", LOW):
        assert torch.equal(spared.nonlinearity(x), nn.SiLU()(x))


@pytest.mark.parametrize("size", [None, (7, 9)])
def test_an_enlargement_is_autocasts_bit_for_bit(size: tuple[int, int] | None) -> None:
    plain = norm(Upsample2D(8, use_conv=True))
    spared = deepcopy(plain)
    spare_casts(spared)
    assert "forward" in vars(spared) and "forward" not in vars(plain)
    other = Upsample2D(8, use_conv_transpose=True, name="conv")
    spare_casts(other)
    assert "forward" not in vars(other)
    x = torch.randn(2, 8, 4, 5).to(LOW)
    (a, its), (b, mine) = through(partial(plain, output_size=size), x), through(partial(spared, output_size=size), x)
    assert torch.equal(a, b) and torch.equal(its, mine) and a.shape[2:] == (size or (8, 10))


def test_without_autocast_and_in_32_bits_nothing_changes() -> None:
    for plain in (norm(nn.LayerNorm(16)), norm(nn.GroupNorm(4, 16))):
        spared = deepcopy(plain)
        spare_casts(spared)
        x = torch.randn(2, 16, 16).to(LOW)
        assert torch.equal(spared(x), plain(x))
        wide = torch.randn(2, 16, 16)
        with torch.autocast("cpu", LOW), cuda_autocast():
            assert torch.equal(spared(wide), plain(wide))
        compiled = torch.compile(lambda value, module=spared: module(value), backend="eager", fullgraph=True)
        with torch.autocast("cpu", LOW):
            assert torch.equal(compiled(x), plain(x))


def test_a_network_is_no_further_from_the_truth() -> None:
    def output(dtype: torch.dtype, spare: bool) -> Tensor:
        unet = tiny.parts("sd15").denoiser
        inputs = probe(unet)
        unet.to(dtype)
        if spare:
            spare_casts(unet)
        inputs = {name: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
                  for name, x in inputs.items()}  # fmt: skip
        with torch.no_grad(), torch.autocast("cpu", LOW, enabled=dtype == LOW), cuda_autocast():
            return unet(**inputs).sample.double()

    truth = output(torch.float64, False)
    spared, plain = output(LOW, True), output(LOW, False)
    assert 0 < (spared - truth).norm() < 1.1 * (plain - truth).norm()
