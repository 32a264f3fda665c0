"""The forward process against its definitions, published numbers and diffusers' schedulers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from steps import PREDICTIONS, process, step

from pixelkiln.trainer.diffusion.process import Process, scaled_linear, zero_terminal_snr

CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-9}


def levels_of(prediction: str) -> list[float]:
    return [0.2, 0.8] if prediction == "flow" else [100.0, 900.0]


def test_scaled_linear_schedule():
    a = scaled_linear()
    expected = {0: 0.99915, 250: 0.673793, 500: 0.276333, 750: 0.05617, 999: 0.004660}
    for t, value in expected.items():
        assert a[t].item() == pytest.approx(value, abs=6e-6)
    assert a[999].sqrt().item() == pytest.approx(0.06826, abs=5e-6)
    snr = process("epsilon").snr(torch.arange(1000.0))
    assert (snr - 1).abs().argmin().item() == 354
    torch.testing.assert_close(snr, a / (1 - a))


def test_amplitudes_go_to_a_device_once():
    made = process("epsilon")
    tables = []
    for _ in range(3):
        made.scales(torch.tensor([3.0, 777.0], device="meta"))
        tables.append(made._tables[torch.device("meta")])
    assert tables[0] is tables[1] is tables[2] and all(table.device.type == "meta" for table in tables[0])


def test_schedule_is_diffusers():
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    theirs: Any = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    made = step("v", levels=[3.0, 777.0], dtype=torch.float32)
    t, z0, noise = made.draw.level.long(), made.batch.latents, made.draw.noise
    torch.testing.assert_close(scaled_linear().float(), theirs.alphas_cumprod, rtol=2e-5, atol=1e-7)
    torch.testing.assert_close(made.noisy, theirs.add_noise(z0, noise, t), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.target, theirs.get_velocity(z0, noise, t), rtol=1e-4, atol=1e-5)


def test_zero_terminal_snr_is_diffusers():
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    theirs = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True
    )
    ours = zero_terminal_snr(scaled_linear())
    assert ours[-1] == 0
    assert ours[0].item() == pytest.approx(scaled_linear()[0].item(), abs=1e-12)
    torch.testing.assert_close(ours.float(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_right_output_implies_true_data_and_noise(prediction):
    made = step(prediction, levels=levels_of(prediction), right=True)
    torch.testing.assert_close(made.x0, made.clean, **CLOSE)
    torch.testing.assert_close(made.epsilon, made.draw.noise, **CLOSE)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_renoising_the_predicted_data_with_the_predicted_noise_is_the_identity(prediction):
    """A pixel loss on that latent would have no gradient: the latent does not depend on the output at all."""
    made = step(prediction, levels=levels_of(prediction))
    torch.testing.assert_close(made.process.noisy(made.x0, made.epsilon, made.draw.level), made.noisy, **CLOSE)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("view", ["mixed", "x0", "epsilon"])
def test_gain_is_the_ratio_of_residuals(prediction, view):
    made = step(prediction, levels=levels_of(prediction))
    mixed = made.process.noisy(made.clean, made.epsilon, made.draw.level)
    residual = {
        "mixed": mixed - made.noisy, "x0": made.x0 - made.clean, "epsilon": made.epsilon - made.draw.noise,
    }[view]  # fmt: skip
    ratio = (residual**2).mean((1, 2, 3)) / ((made.out - made.target) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(ratio, made.process.gain(made.draw.level, view) ** 2, rtol=1e-9, atol=0)


def test_published_ratios():
    at_030 = torch.tensor([0.0])
    epsilon, v = (Process(p, torch.tensor([0.3], dtype=torch.float64)) for p in ("epsilon", "v"))
    assert epsilon.gain(at_030, "x0").square().item() == pytest.approx(2.3333333333)
    assert v.gain(at_030, "x0").square().item() == pytest.approx(0.7)
    assert v.gain(at_030, "epsilon").square().item() == pytest.approx(0.3)
    flow, sigma = process("flow"), torch.tensor([0.2, 0.8], dtype=torch.float64)
    assert flow.gain(sigma, "x0").square().tolist() == pytest.approx([0.04, 0.64])
    assert flow.gain(sigma, "epsilon").square().tolist() == pytest.approx([0.64, 0.04])
    assert flow.gain(sigma, "mixed").square().tolist() == pytest.approx([0.0256, 0.0256])


@pytest.mark.parametrize(
    ("prediction", "view", "values", "mean"),
    [
        ("epsilon", "mixed", [0.0009, 0.326, 0.724, 0.944, 0.995], 0.627),
        ("epsilon", "x0", [0.0009, 0.484, 2.62, 16.8, 213.6], 20.3),
        ("v", "mixed", [0.0009, 0.220, 0.200, 0.053, 0.0046], 0.124),
        ("v", "x0", [0.0009, 0.326, 0.724, 0.944, 0.995], 0.627),
    ],
)
def test_gain_over_the_schedule(prediction, view, values, mean):
    p = process(prediction)
    at = p.gain(torch.tensor([0.0, 250, 500, 750, 999]), view) ** 2
    assert at.tolist() == pytest.approx(values, rel=0.06 if values[0] == 0.0009 else 1e-3)
    assert at[1:].tolist() == pytest.approx(values[1:], rel=6e-3, abs=3e-4)
    assert (p.gain(torch.arange(1000.0), view) ** 2).mean().item() == pytest.approx(mean, rel=3e-3)


def test_gain_over_a_flow():
    p, sigma = process("flow"), torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    mixed = p.gain(sigma, "mixed") ** 2
    assert mixed.max().item() == pytest.approx(0.0625, abs=1e-6)
    assert mixed.mean().item() == pytest.approx(1 / 30, abs=1e-5)
    assert (p.gain(sigma, "x0") ** 2).mean().item() == pytest.approx(1 / 3, abs=1e-5)
    normal = torch.sigmoid(torch.special.ndtri(sigma))
    assert (p.gain(normal, "mixed") ** 2).mean().item() == pytest.approx(0.0448, abs=1e-4)


def test_flow_the_other_mix_has_the_opposite_residual():
    """Predicted data with true noise: as large, other sign."""
    made = step("flow", levels=[0.2, 0.8])
    mixed = made.process.noisy(made.clean, made.epsilon, made.draw.level) - made.noisy
    other = made.process.noisy(made.x0, made.draw.noise, made.draw.level) - made.noisy
    torch.testing.assert_close(other, -mixed, **CLOSE)


def test_flow_output_is_a_velocity_not_a_noise():
    """(z - sigma out) / (1 - sigma) would be the data of a network that predicts noise."""
    made = step("flow", levels=[0.2, 0.8], right=True)
    sigma = made.draw.level.double().reshape(-1, 1, 1, 1)
    wrong = (made.noisy - sigma * made.out) / (1 - sigma)
    assert (made.x0 - made.clean).abs().max() < 1e-9
    assert (wrong - made.clean).abs().max() > 0.1


def test_flow_error_in_noise_is_the_velocity_error_times_1_minus_sigma_squared():
    made = step("flow", levels=[0.3, 0.6])
    noise = ((made.epsilon - made.draw.noise) ** 2).mean((1, 2, 3))
    velocity = ((made.out - made.target) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(noise, (1 - made.draw.level.double()) ** 2 * velocity, **CLOSE)


def test_a_flows_time_is_a_thousand_sigma():
    assert process("flow").time(torch.tensor([0.25])).tolist() == [250]
