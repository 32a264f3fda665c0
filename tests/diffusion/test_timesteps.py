"""Draws: row by row from the seed, whatever the batch looks like; distributions of levels; special noises."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from steps import process

from pixelkiln.trainer.diffusion.options import NoiseOptions
from pixelkiln.trainer.diffusion.timesteps import draw, fixed_draw, level_at
from pixelkiln.trainer.diffusion.types import Batch, Draw, Rows

EVERYTHING = NoiseOptions(
    noise_offset=0.1, noise_offset_random_strength=True, adaptive_noise_scale=0.2, multires_iterations=4,
    ip_noise_gamma=0.1, ip_noise_gamma_random_strength=True, shift=2.0,
)  # fmt: skip
FIELDS = ("noise", "added", "level", "window", "coin", "jump")


def batch(rows: int, pair: bool = False, size: tuple[int, int] = (8, 8), first: int = 0) -> Batch:
    torch.manual_seed(1)
    count = rows * 2 if pair else rows
    group = torch.arange(first, first + rows).repeat(2 if pair else 1)
    roles: Any = ["winner"] * rows + ["loser"] * rows if pair else ["plain"] * rows
    latents, keys = torch.randn(count, 4, *size), [f"p{i}" for i in range(count)]
    return Batch(latents, [""] * count, torch.zeros(count, 6), Rows(roles, torch.ones(count), group), keys)


def same(a: Draw, b: Draw) -> None:
    for name in FIELDS:
        assert torch.equal(getattr(a, name), getattr(b, name)), name


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 6), st.integers(0, 2**40), st.integers(0, 10**6), st.sampled_from(["epsilon", "flow"]), st.booleans()
)
def test_any_split_of_an_effective_batch_draws_the_same(rows, seed, at, prediction, pair):
    whole, p = batch(rows, pair), process(prediction)
    full = draw(whole, seed, at, p, EVERYTHING)
    for group in range(rows):
        mine = torch.nonzero(whole.rows.group == group)[:, 0]
        same(draw(whole.pick(mine), seed, at, p, EVERYTHING), full.pick(mine))


def test_rows_of_a_pair_share_everything_but_their_latents():
    made, p = batch(3, pair=True), process("epsilon")
    drawn = draw(made, 1, 2, p, EVERYTHING)
    same(drawn.pick(torch.arange(3)), drawn.pick(torch.arange(3, 6)))
    assert not torch.equal(made.latents[:3], made.latents[3:])


def test_seed_step_and_row_all_matter_and_nothing_else_does():
    p, o = process("epsilon"), NoiseOptions()
    base = draw(batch(2), 1, 2, p, o)
    same(base, draw(replace(batch(2), latents=torch.zeros(2, 4, 8, 8)), 1, 2, p, o))
    for other in (draw(batch(2), 3, 2, p, o), draw(batch(2), 1, 3, p, o), draw(batch(2, first=2), 1, 2, p, o)):
        assert not torch.equal(base.noise, other.noise)
        assert not torch.equal(base.coin, other.coin)
    assert not torch.equal(base.noise[0], base.noise[1])


def test_numbers_are_the_same_on_every_machine_and_version():
    drawn = draw(batch(1), 42, 7, process("epsilon"), NoiseOptions())
    assert drawn.level.tolist() == [894]
    assert drawn.noise.flatten()[:3].tolist() == pytest.approx([0.96394, 0.74544, 0.82708], abs=1e-4)


def test_options_do_not_change_the_other_numbers():
    p = process("epsilon")
    plain, all_on = draw(batch(2), 1, 2, p, NoiseOptions()), draw(batch(2), 1, 2, p, NoiseOptions(ip_noise_gamma=0.1))
    assert torch.equal(plain.noise, all_on.noise)
    for name in FIELDS[2:]:
        assert torch.equal(getattr(plain, name), getattr(all_on, name))


def test_uniform_timesteps_hit_every_bound():
    p = process("epsilon")
    u = torch.rand(20000, generator=torch.Generator().manual_seed(0))
    level = level_at(u, p, NoiseOptions(min_timestep=3, max_timestep=7))
    assert sorted(set(level.tolist())) == [3, 4, 5, 6]
    counts = torch.bincount(level.long())[3:]
    assert (counts - 5000).abs().max() < 300
    ends = level_at(torch.tensor([0.0, 1.0]), p, NoiseOptions())
    assert ends.tolist() == [0, 999]


def test_a_flow_has_some_noise_at_its_lowest_level():
    """sd-scripts' timesteps of a flow begin at 1 of 1000."""
    ends = level_at(torch.tensor([0.0, 1.0]), process("flow"), NoiseOptions(sampling="uniform"))
    assert ends[0].item() == pytest.approx(0.001, rel=1e-6) and ends[1].item() == pytest.approx(1.0, abs=1e-6)


def test_input_perturbation_of_random_strength_is_between_none_and_all():
    options = NoiseOptions(ip_noise_gamma=0.1, ip_noise_gamma_random_strength=True)
    made = draw(batch(64), 1, 2, process("epsilon"), options)
    whole = draw(batch(64), 1, 2, process("epsilon"), NoiseOptions(ip_noise_gamma=0.1))
    share = (
        (made.added - made.noise).flatten(1).norm(dim=1) / (whole.added - whole.noise).flatten(1).norm(dim=1)
    ).sort()
    assert 0 <= share.values[0] < 0.1 and 0.9 < share.values[-1] <= 1
    assert 0.4 < share.values.mean() < 0.6


def test_logit_normal_levels_have_the_logits_mean_and_width():
    u = (torch.arange(100000, dtype=torch.float64) + 0.5) / 100000
    sigma = level_at(u, process("flow"), NoiseOptions(logit_mean=-0.5, logit_std=0.8)).double()
    logit = torch.logit(sigma)
    assert logit.mean().item() == pytest.approx(-0.5, abs=1e-2)
    assert logit.std().item() == pytest.approx(0.8, abs=1e-2)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.29, 1.75])
def test_mode_levels_follow_the_papers_transform(scale):
    """arXiv 2403.03206 eq. 20: u -> 1 - u - s (cos^2(pi u / 2) - 1 + u) of a uniform u."""
    u = (torch.arange(5000, dtype=torch.float64) + 0.5) / 5000
    ours = level_at(u, process("flow"), NoiseOptions(sampling="mode", mode_scale=scale)).double()
    theirs = 1 - u - scale * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)
    torch.testing.assert_close(ours, theirs.sort().values.clamp(min=0.001), rtol=0, atol=2e-3)


def test_shift_moves_towards_noise():
    u = torch.tensor([0.5], dtype=torch.float64)
    assert level_at(u, process("flow"), NoiseOptions(sampling="uniform", shift=3.0)).item() == pytest.approx(0.75)


@pytest.mark.parametrize("sampling", ["uniform", "logit_normal", "mode"])
@pytest.mark.parametrize("prediction", ["epsilon", "flow"])
def test_levels_rise_with_the_quantile_and_stay_inside(sampling, prediction):
    options = NoiseOptions(sampling=sampling, min_timestep=100, max_timestep=900, shift=0.5)
    level = level_at(torch.linspace(0, 1, 999), process(prediction), options)
    size = 1 if prediction == "flow" else 1000
    assert (level.diff() >= 0).all()
    assert level.min() >= 0.1 * size - 1e-6
    assert level.max() <= 0.9 * size


def test_noise_offset_is_one_value_per_channel():
    p = process("epsilon")
    plain, offset = (draw(batch(2), 1, 2, p, NoiseOptions(noise_offset=v)).noise for v in (0.0, 0.1))
    added = offset - plain
    assert added.std((2, 3)).max() < 1e-6
    assert added.mean((2, 3)).abs().max() > 0.01
    stronger = draw(batch(2), 1, 2, p, NoiseOptions(noise_offset=0.2)).noise - plain
    torch.testing.assert_close(stronger, 2 * added, rtol=1e-4, atol=1e-6)


def test_adaptive_offset_follows_the_mean_of_each_channel():
    p, made = process("epsilon"), batch(1)
    made = replace(made, latents=torch.ones(1, 4, 8, 8) * torch.tensor([0.0, 1.0, -2.0, 4.0]).reshape(1, 4, 1, 1))
    plain, fixed, adaptive = (
        draw(made, 1, 2, p, NoiseOptions(noise_offset=v, adaptive_noise_scale=a)).noise.mean((2, 3))
        for v, a in ((0.0, 0.0), (0.1, 0.0), (0.1, 0.05))
    )
    strength = (adaptive - plain) / (fixed - plain)
    torch.testing.assert_close(strength, torch.tensor([[1.0, 1.5, 2.0, 3.0]]), rtol=1e-3, atol=1e-3)


def test_multires_noise_has_unit_size_and_more_coarse_energy():
    p = process("epsilon")
    plain, coarse = (
        draw(batch(8, size=(32, 32)), 1, 2, p, NoiseOptions(multires_iterations=n, multires_discount=0.8)).noise
        for n in (0, 6)
    )
    torch.testing.assert_close(coarse.std((1, 2, 3)), torch.ones(8), rtol=1e-4, atol=1e-4)
    low = [torch.nn.functional.avg_pool2d(n, 8).var().item() for n in (plain, coarse)]
    assert low[1] > 2 * low[0]


@pytest.mark.parametrize(
    ("iterations", "discount", "energy"),
    [(6, 0.3, {4: 0.07496, 16: 0.00653}), (10, 0.8, {4: 0.28595, 16: 0.14854, 64: 0.08324})],
)
def test_multires_noise_has_the_spectrum_of_kohyas(iterations, discount, energy):
    """Mean square of 64 x 64 cells averaged over blocks of 4, 16 and 64, against sd-scripts' pyramid_noise_like at
    batch 1: the mean of 3000 draws there (standard error below 2 %), of 400 here."""
    options = NoiseOptions(multires_iterations=iterations, multires_discount=discount)
    noise = draw(batch(400, size=(64, 64)), 1, 2, process("epsilon"), options).noise
    for block, value in energy.items():
        found = torch.nn.functional.avg_pool2d(noise, block).square().mean().item()
        assert found == pytest.approx(value, rel=0.03 if block == 4 else 0.12)


def test_input_perturbation_disturbs_the_input_only():
    p, made = process("epsilon"), batch(4, size=(32, 32))
    drawn = draw(made, 1, 2, p, NoiseOptions(ip_noise_gamma=0.1))
    assert torch.equal(drawn.noise, draw(made, 1, 2, p, NoiseOptions()).noise)
    assert (drawn.added - drawn.noise).std().item() == pytest.approx(0.1, rel=0.03)
    weaker = draw(
        batch(4, size=(32, 32)), 1, 2, p, NoiseOptions(ip_noise_gamma=0.1, ip_noise_gamma_random_strength=True)
    )
    size = (weaker.added - weaker.noise).std((1, 2, 3))
    assert size.max() < 0.105
    assert size.unique().numel() == 4


def test_fixed_draws_belong_to_the_picture():
    p, o, made = process("epsilon"), NoiseOptions(), batch(4)
    drawn = fixed_draw(made, 1, 4, 9, p, o)
    assert drawn.level.tolist() == [375] * 4
    shuffled = torch.tensor([2, 0, 3, 1])
    moved = replace(made.pick(shuffled), rows=Rows.plain(4, first=10))
    same(fixed_draw(moved, 1, 4, 9, p, o), drawn.pick(shuffled))
    assert not torch.equal(drawn.noise, fixed_draw(made, 2, 4, 9, p, o).noise)
    assert not torch.equal(drawn.noise, fixed_draw(made, 1, 4, 8, p, o).noise)


def test_fixed_draws_stratify_and_jitter():
    p, o, made = process("flow"), NoiseOptions(sampling="uniform"), batch(50)
    for part in range(4):
        level = fixed_draw(made, part, 4, 9, p, o, jitter=True).level
        assert level.min() >= part / 4
        assert level.max() <= (part + 1) / 4
        assert level.unique().numel() == 50
    each = fixed_draw(batch(4), [0, 1, 2, 3], 4, 9, p, o).level
    assert each.tolist() == pytest.approx([0.125, 0.375, 0.625, 0.875])


def test_fixed_draws_of_a_pair_are_shared_in_either_order():
    p, o, made = process("epsilon"), NoiseOptions(), batch(2, pair=True)
    drawn = fixed_draw(made, 0, 2, 9, p, o, jitter=True)
    same(drawn.pick(torch.tensor([0, 1])), drawn.pick(torch.tensor([2, 3])))
    back = torch.tensor([3, 2, 1, 0])
    same(fixed_draw(made.pick(back), 0, 2, 9, p, o, jitter=True), drawn.pick(back))


@pytest.mark.parametrize(
    ("options", "where"),
    [({"min_timestep": 500, "max_timestep": 400}, "min_timestep"), ({"adaptive_noise_scale": 0.1}, "noise_offset")],
)
def test_options_that_contradict_each_other(options, where):
    with pytest.raises(ValidationError, match=where):
        NoiseOptions(**options)


def test_a_logit_normals_mean_is_that_of_the_unshifted_level():
    """kohya's order: u = sigmoid(mean + std z), then the shift; a shift of s adds log s to the logit."""
    u = (torch.arange(100000, dtype=torch.float64) + 0.5) / 100000
    sigma = level_at(u, process("flow"), NoiseOptions(logit_mean=-0.5, logit_std=0.8, shift=3.0)).double()
    assert torch.logit(sigma).median().item() == pytest.approx(-0.5 + math.log(3.0), abs=1e-2)
