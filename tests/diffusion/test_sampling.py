"""Previews: noise levels as ComfyUI spaces them, prompts with kohya's flags, a picture that says how it was made."""

from __future__ import annotations

import itertools
import json
from typing import get_args

import pytest
import torch
from PIL import Image
from torch import Tensor

from pixelkiln.trainer.diffusion.options import SampleOptions, Sampler, Spacing
from pixelkiln.trainer.diffusion.process import Process, scaled_linear, zero_terminal_snr
from pixelkiln.trainer.diffusion.sampling import before_after, draw, grid, picture_path, prompts, save_picture, sigmas
from pixelkiln.trainer.diffusion.types import Conditioning

EPSILON = Process("epsilon", scaled_linear())
FLOW = Process("flow", sampling_shift=3.0)
NONE = Conditioning(torch.zeros(1, 1, 1))


def test_normal_spacing_runs_from_the_largest_sigma_of_sd_to_the_smallest():
    levels = sigmas(EPSILON, "normal", 20)
    assert len(levels) == 21
    assert levels[0] == pytest.approx(14.6146, abs=1e-4)
    assert levels[-2] == pytest.approx(0.0292, abs=1e-4)
    assert levels[-1] == 0
    assert (levels.diff() < 0).all()


def test_karras_spacing_is_linear_in_the_seventh_root():
    roots = sigmas(EPSILON, "karras", 10)[:-1] ** (1 / 7)
    assert torch.allclose(roots.diff(), roots.diff()[0].expand(9))


def test_flow_starts_at_pure_noise_and_is_shifted_by_three():
    levels = sigmas(FLOW, "simple", 4)
    assert levels[0] == pytest.approx(1.0)
    assert levels[2] == pytest.approx(3 * 0.5 / (1 + 2 * 0.5))


PROCESSES = {
    "epsilon": EPSILON, "v": Process("v", scaled_linear()), "flow": FLOW,
    "v with zero terminal SNR": Process("v", zero_terminal_snr(scaled_linear())),
}  # fmt: skip
TO_ALPHA_0 = ("ddim", "pndm")
"""Samplers that end at the schedule's first alpha, where some noise is left, and not at none."""


@pytest.mark.parametrize("spacing", get_args(Spacing))
@pytest.mark.parametrize("sampler", get_args(Sampler))
@pytest.mark.parametrize("name", PROCESSES)
def test_a_network_that_knows_the_picture_draws_the_picture(name, sampler, spacing):
    """With out = the true target for a fixed z0, every sampler must end at z0."""
    process = PROCESSES[name]
    z0 = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))

    def predict(noisy, level, conditioning):
        a, s = (v.float() for v in process.scales(level))
        return process.target(z0, (noisy - a * z0) / s, level)

    asked = SampleOptions(prompts=["x"], sampler=sampler, scheduler=spacing, guidance=1.0, steps=20)
    got = draw(process, predict, prompts(asked, (32, 32))[0], NONE, NONE, 4, torch.device("cpu"))
    assert (got - z0).abs().max() < (0.1 if sampler in TO_ALPHA_0 else 1e-3)


@pytest.mark.parametrize("steps", [1, 2, 3, 50])
@pytest.mark.parametrize("sampler", get_args(Sampler))
def test_a_schedule_to_zero_snr_is_sampled_in_any_number_of_steps(sampler, steps):
    process = PROCESSES["v with zero terminal SNR"]
    asked = SampleOptions(prompts=["x"], sampler=sampler, scheduler="karras", guidance=1.0, steps=steps)
    prompt = prompts(asked, (32, 32))[0]
    got = draw(process, lambda x, level, c: torch.tanh(x), prompt, NONE, NONE, 4, torch.device("cpu"))
    assert bool(got.isfinite().all())


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpm_2_ancestral"])
def test_the_noise_on_the_way_is_another_than_that_at_the_start(sampler, monkeypatch):
    import diffusers

    seeds = set()
    kind = {"euler_ancestral": "EulerAncestralDiscreteScheduler", "dpm_2_ancestral": "KDPM2AncestralDiscreteScheduler"}
    scheduler = getattr(diffusers, kind[sampler])
    step = scheduler.step

    def noted(self, *args, generator, **kwargs):
        seeds.add(generator.initial_seed())
        return step(self, *args, generator=generator, **kwargs)

    monkeypatch.setattr(scheduler, "step", noted)
    asked = SampleOptions(prompts=["x"], sampler=sampler, guidance=1.0, steps=3, seed=7)
    prompt = prompts(asked, (32, 32))[0]
    draw(PROCESSES["epsilon"], lambda x, level, c: x, prompt, NONE, NONE, 4, torch.device("cpu"))
    assert seeds == {8}


def test_a_schedule_to_zero_snr_is_sampled_from_comfyuis_largest_sigma():
    process = PROCESSES["v with zero terminal SNR"]
    for spacing in get_args(Spacing):
        levels = sigmas(process, spacing, 12)
        assert levels[0].item() == pytest.approx((1 / 4.8973451890853435e-08 - 1) ** 0.5, abs=1e-3)
        assert (levels.diff() < 0).all()
        first: list[Tensor] = []
        asked = SampleOptions(prompts=["x"], scheduler=spacing, guidance=1.0, steps=12)

        def predict(noisy, level, conditioning, first=first):
            first.append(noisy)
            return torch.zeros_like(noisy)

        draw(process, predict, prompts(asked, (32, 32))[0], NONE, NONE, 4, torch.device("cpu"))
        noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(42))
        torch.testing.assert_close(first[0], noise, rtol=1e-4, atol=1e-5)


def test_guidance_is_measured_from_the_negative_prompt():
    """Euler of one step ends at x - sigma (n + g (p - n)): g = 1 is the prompt, g = 0 its opposite."""
    positive, negative = (Conditioning(torch.full((1, 1, 1), value)) for value in (3.0, 1.0))

    def predict(noisy, level, conditioning):
        return torch.full_like(noisy, float(conditioning.hidden))

    def drawn(guidance: float) -> Tensor:
        prompt = prompts(SampleOptions(prompts=["x"], guidance=guidance, steps=1), (32, 32))[0]
        return draw(FLOW, predict, prompt, positive, negative, 4, torch.device("cpu"))

    for guidance, mixed in ((0.0, 1.0), (1.0, 3.0), (2.0, 5.0), (7.5, 16.0)):
        torch.testing.assert_close(drawn(0.0) - drawn(guidance), torch.full((1, 4, 4, 4), mixed - 1.0))


def test_flow_draws_the_picture_exactly():
    z0 = torch.randn(1, 16, 4, 4)
    prompt = prompts(SampleOptions(prompts=["x"], guidance=1.0, steps=5), (32, 32))[0]
    got = draw(
        FLOW, lambda x, level, c: (x - z0) / level.reshape(-1, 1, 1, 1), prompt, NONE, NONE, 16, torch.device("cpu")
    )
    assert torch.allclose(got, z0, atol=1e-5)


def test_euler_is_one_line_of_arithmetic_in_sigma():
    """The library's scheduler against x += (s' - s) (x - x0) / s, on sigmas of ComfyUI's spacing."""
    prompt = prompts(SampleOptions(prompts=["x"], guidance=1.0, steps=7), (32, 32))[0]

    def predict(noisy, level, conditioning):
        return torch.tanh(noisy) + (level.reshape(-1, 1, 1, 1) / 1000).round()

    got = draw(EPSILON, predict, prompt, NONE, NONE, 4, torch.device("cpu"))
    levels = sigmas(EPSILON, "normal", 7)
    table = ((1 - EPSILON.alphas) / EPSILON.alphas).sqrt()
    x = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(42)).double() * (1 + levels[0] ** 2) ** 0.5
    for s, following in itertools.pairwise(levels):
        level = (table.log() - s.log()).abs().argmin().reshape(1)
        x = x + (following - s) * predict((x / (1 + s**2) ** 0.5).float(), level.float(), NONE).double()
    assert torch.allclose(got.double(), x, atol=1e-3)


def test_prompt_flags_override_the_options(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("# a comment\na red cat --n blurry --d 7 --w 513 --s 5000 --l 3.5 --ss euler_a\n", "utf-8")
    first, second = prompts(SampleOptions(prompts=["plain"], file=str(file), seed=3), (512, 768))
    assert (first.seed, first.width, first.height) == (3, 512, 768)
    assert (second.text, second.negative, second.seed) == ("a red cat", "blurry", 7)
    assert (second.width, second.steps, second.guidance, second.sampler) == (512, 1000, 3.5, "euler_ancestral")


def test_prompts_of_kohyas_files(tmp_path):
    as_toml, as_json = tmp_path / "p.toml", tmp_path / "p.json"
    as_toml.write_text(
        '[prompt]\nwidth = 256\nnegative_prompt = "blurry"\n[[prompt.subset]]\nprompt = "a cat"\nseed = 7\n'
        '[[prompt.subset]]\nprompt = "a dog"\nwidth = 128\nscale = 3\nsample_sampler = "k_dpm_2_a"\n', "utf-8"
    )  # fmt: skip
    first, second = prompts(SampleOptions(file=str(as_toml), sampler="dpmsolver++"), (512, 512))
    assert (first.text, first.negative, first.width, first.seed, first.sampler) == (
        "a cat", "blurry", 256, 7, "dpmpp_2m"
    )  # fmt: skip
    assert (second.width, second.guidance, second.sampler, second.seed) == (128, 3.0, "dpm_2_ancestral", 43)
    rows = [{"prompt": "a cat", "sample_steps": 5, "flow_shift": "3"}, "a dog --w 64 --ctr 0.5"]
    as_json.write_text(json.dumps(rows), "utf-8")
    first, second = prompts(SampleOptions(file=str(as_json)), (512, 512))
    assert (first.steps, second.text, second.width) == (5, "a dog", 64)


@pytest.mark.parametrize(
    ("name", "text", "reported"),
    [
        ("p.toml", "x = 1", "is not .prompt. with"),
        ("p.toml", "x = ", "is not .prompt. with"),
        ("p.json", "{}", "is not a list of prompts"),
        ("p.json", '[{"prompt": "x", "widht": 5}]', "no 'widht'; did you mean 'width'"),
        ("p.json", '[{"prompt": "x", "seed": "5"}]', "seed = '5' is no int"),
        ("p.txt", "x --cn a.png", "--cn is not known"),
    ],
)
def test_a_wrong_prompt_file_is_one_clear_line(tmp_path, name, text, reported):
    (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(ValueError, match=reported):
        prompts(SampleOptions(file=str(tmp_path / name)), (64, 64))


@pytest.mark.parametrize(
    ("line", "reported"),
    [
        ("x --zz 3", "--zz is not known"),
        ("x --d three", "'three' is no whole number"),
        ("x --ss magic", "no sampler 'magic'"),
    ],
)
def test_a_wrong_flag_is_one_clear_line(line, reported):
    with pytest.raises(ValueError, match=reported):
        prompts(SampleOptions(prompts=[line]), (64, 64))


def test_pictures_say_how_they_were_made_and_the_grid_has_a_column_per_step(tmp_path):
    asked = prompts(SampleOptions(prompts=["a", "b"]), (64, 64))
    for step in (0, 10):
        for index, prompt in enumerate(asked):
            save_picture(Image.new("RGB", (64, 64), "red"), picture_path(tmp_path, step, index), prompt, {"step": step})
    with Image.open(picture_path(tmp_path, 10, 1)) as picture:
        assert "Seed: 43" in picture.info["parameters"]
        assert json.loads(picture.info["pixelkiln"])["step"] == 10
    made = grid(tmp_path, ["a", "b"], cell=64)
    with Image.open(made) as sheet:
        assert sheet.size == (128, 18 + 2 * (64 + 28))
    before_after(tmp_path, ["a", "b", "new"], tmp_path / "both.png", cell=64)
    with Image.open(tmp_path / "both.png") as sheet:
        at = [[sheet.getpixel((64 + 64 * column + 32, 64 * row + 32)) for column in range(3)] for row in range(2)]
    assert at == [[(255, 0, 0), (255, 0, 0), (255, 255, 255)]] * 2
