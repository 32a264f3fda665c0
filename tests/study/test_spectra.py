"""Spectra, kernels and neighbours by their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from pixelkiln.trainer.study import spectra


def distance(made: torch.Tensor, real: torch.Tensor) -> float:
    return spectra.spectrum_distance(made.split(1), real.split(1))


def wave(cycles: float, size: int = 64) -> torch.Tensor:
    """[1, 3, size, size] of vertical stripes, ``cycles`` per pixel."""
    x = torch.cos(2 * math.pi * cycles * torch.arange(size))
    return x.expand(1, 3, size, size).contiguous()


@pytest.mark.parametrize("shape", [(2, 3, 32, 48), (1, 3, 63, 64)])
def test_octaves_add_up_to_the_mean_square(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    energy = spectra.octave_energy(x)
    assert energy.shape == (shape[0], spectra.OCTAVES)
    torch.testing.assert_close(energy.sum(1), x.double().square().mean((1, 2, 3)))


@pytest.mark.parametrize(("cycles", "octave"), [(0.5, 0), (0.25, 0), (0.1875, 1), (0.0625, 2), (1 / 64, 4), (0, 4)])
def test_stripes_fall_into_their_octave(cycles, octave):
    energy = spectra.octave_energy(wave(cycles))[0]
    assert int(energy.argmax()) == octave and float(energy[octave] / energy.sum()) > 0.999


def test_octaves_have_a_name_each():
    assert spectra.octave_names() == ["from 1/4 cycle per pixel", "1/8 to 1/4 cycle per pixel",
                                      "1/16 to 1/8 cycle per pixel", "1/32 to 1/16 cycle per pixel",
                                      "below 1/32 cycle per pixel"]  # fmt: skip


def test_decibels_of_a_picture_that_is_wrong_everywhere():
    assert float(spectra.decibels(torch.tensor(4.0))) == 0.0
    assert float(spectra.decibels(torch.tensor(0.04))) == pytest.approx(20.0)
    assert float(spectra.decibels(torch.tensor(0.0))) == pytest.approx(100.0)


def test_spectrum_distance_is_the_gain_of_what_is_louder_and_grows_with_blur():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(6, 3, 64, 64, generator=g)
    assert distance(x, x) == 0.0
    assert distance(10 * x, x) == pytest.approx(20.0, abs=1e-6)  # 20 dB in every ring
    other = torch.randn(6, 3, 64, 64, generator=g)
    blurred = torch.nn.functional.avg_pool2d(other, 3, 1, 1)
    assert distance(other, x) < 1.0 < 5.0 < distance(blurred, x)


def test_kernel_distance_against_the_plain_sums():
    g = torch.Generator().manual_seed(2)
    x, y = torch.randn(4, 5, generator=g).double(), torch.randn(3, 5, generator=g).double() + 1

    def k(a, b):
        return (float(a @ b) / 5 + 1) ** 3

    xx = sum(k(x[i], x[j]) for i in range(4) for j in range(4) if i != j) / 12
    yy = sum(k(y[i], y[j]) for i in range(3) for j in range(3) if i != j) / 6
    xy = sum(k(x[i], y[j]) for i in range(4) for j in range(3)) / 12
    assert spectra.kernel_distance(x, y) == pytest.approx(xx + yy - 2 * xy)


def test_kernel_distance_is_unbiased_where_sets_are_alike():
    g = torch.Generator().manual_seed(3)
    found = torch.tensor([spectra.kernel_distance(torch.randn(8, 16, generator=g), torch.randn(8, 16, generator=g))
                          for _ in range(400)])  # fmt: skip
    assert abs(float(found.mean())) < 4 * float(found.std()) / 20
    assert spectra.kernel_distance(torch.randn(8, 16, generator=g) + 2, torch.randn(8, 16, generator=g)) > 1


def test_standardized_features_have_no_unit():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(4)) * torch.tensor([1e-3, 1.0, 1e3]) + 5
    (found,) = spectra.standardized(x, x)
    torch.testing.assert_close(found.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.std(0), torch.ones(3))


def test_nearness_is_above_0_for_a_copy_of_a_training_picture_and_fair_between_equal_sets():
    g = torch.Generator().manual_seed(5)
    found = []
    for _ in range(60):
        trained, held, made = (torch.randn(count, 6, generator=g) for count in (300, 30, 50))
        found.append(float(spectra.nearness(made, trained, held).mean()))
    means = torch.tensor(found)
    assert abs(float(means.mean())) < 4 * float(means.std()) / 60**0.5  # though ten times as many are trained on
    trained, held = torch.randn(300, 6, generator=g), torch.randn(30, 6, generator=g)
    copies = trained[::10][:30] + 0.01 * torch.randn(30, 6, generator=g)
    assert float(spectra.nearness(copies, trained, held).mean()) > 3
