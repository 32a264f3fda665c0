"""The learned pixel metric: what it is fitted to, its files, and the correction that takes its bias out."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import steps
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from pixelkiln.trainer.diffusion.options import NoiseOptions
from pixelkiln.trainer.diffusion.timesteps import draw, fixed_draw, step_correction
from pixelkiln.trainer.errors import UserError
from pixelkiln.trainer.losses import surrogate as metric
from pixelkiln.trainer.losses.decode import Decoder
from pixelkiln.trainer.losses.distances import DISTANCES
from pixelkiln.trainer.losses.options import PixelOptions
from pixelkiln.trainer.losses.pixel import PixelLoss
from pixelkiln.trainer.losses.surrogate import Collector, Examples, Quality, Surrogate
from pixelkiln.trainer.losses.term import Balance, Estimate, LossTerms, Term
from pixelkiln.trainer.objectives.common import ObjectiveParts
from pixelkiln.trainer.registry import objectives
from pixelkiln.trainer.training import surrogates
from pixelkiln.trainer.training.step import apply_objectives, compute_errors

SHARE = 0.25


# ------------------------------------------------------------------------------------------------------- correction


def exact(made) -> torch.Tensor:
    return ((made.out - made.target) ** 2).mean((1, 2, 3))


def biased(made) -> torch.Tensor:
    """An estimate that is 30 % low, and looks at other places than the exact errors."""
    return 0.7 * ((made.out - made.target) ** 2)[..., :3, :].mean((1, 2, 3))


def term(kind: str, share: float = SHARE, estimated: bool = True, **options: Any) -> Term:
    entry = objectives[kind]
    made = entry.build(entry.options(**options), ObjectiveParts(steps.process("epsilon"), True, 2.0))
    return Term("pixel", exact, made, PixelOptions(), Estimate(biased, biased, share) if estimated else None)


def reference_of(made, terms):
    """Errors of another network at the same draw."""
    torch.manual_seed(3)
    with torch.no_grad():
        other = replace(made, out=made.out + 0.1 * torch.randn_like(made.out))
        return compute_errors(terms, other)


def gradient(one: Term, made) -> torch.Tensor:
    terms = LossTerms([one], Balance([replace(one, options=one.options.model_copy(update={"weight": 1.0}))]))
    loss = apply_objectives(
        terms, made, compute_errors([one], made), reference_of(made, [one]), made.batch.rows.role
    ).loss
    return torch.autograd.grad(loss, made.out)[0]


ROLES = {"sft": None, "kto": ["liked", "disliked", "liked"]}
KINDS = {"dpo": {"beta": 2.0}, "kto": {"beta": 2.0}, "ipo": {}, "mapo": {}, "simpo": {"beta": 2.0}, "sft": {}}


def of_kind(kind: str):
    roles = ROLES.get(kind, ["winner", "loser"] * 2)
    return steps.step(rows=3, roles=roles, size=4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_gradient_over_all_coins_is_the_exact_one(kind):
    """Each group's coin falls with probability ``share``; weighted by that, all outcomes add up to the exact gradient,
    also through a sigmoid. A correction of the errors themselves would not, and neither is the estimate alone near."""
    made, one = of_kind(kind), term(kind, **KINDS[kind])
    groups = made.batch.rows.group
    mean = torch.zeros_like(made.out)
    for outcome in product([False, True], repeat=int(groups.max()) + 1):
        coins = torch.tensor([0.0 if outcome[g] else 0.9 for g in groups.tolist()])
        chance = 1.0
        for falls in outcome:
            chance *= SHARE if falls else 1 - SHARE
        mean += chance * gradient(one, replace(made, draw=replace(made.draw, correction=coins)))
    wanted = gradient(term(kind, estimated=False, **KINDS[kind]), made)
    torch.testing.assert_close(mean, wanted, rtol=1e-10, atol=1e-14)
    alone = gradient(replace(one, estimate=Estimate(biased, biased, 0.0)), made)
    assert (alone - wanted).norm() > 0.1 * wanted.norm()


@pytest.mark.parametrize("kind", ["sft", "dpo", "kto"])
def test_the_mean_gradient_over_many_draws_is_the_exact_one(kind):
    """With the coins of 600 real draws, within four standard errors in every direction that is looked at."""
    made, one = of_kind(kind), term(kind, **KINDS[kind])
    wanted = gradient(term(kind, estimated=False, **KINDS[kind]), made)
    found = []
    for number in range(600):
        coins = draw(made.batch, 7, number, made.process, NoiseOptions()).correction
        found.append(gradient(one, replace(made, draw=replace(made.draw, correction=coins))))
    torch.manual_seed(0)
    directions = torch.randn(8, *wanted.shape, dtype=wanted.dtype)
    seen = torch.einsum("nbchw,kbchw->nk", torch.stack(found), directions)
    aim = (directions * wanted).flatten(1).sum(1)
    error = seen.std(0) / len(found) ** 0.5
    assert bool(((seen.mean(0) - aim).abs() <= 4 * error).all())


def test_a_correction_of_errors_would_be_biased_through_a_sigmoid():
    """Why the correction is of the objective's value: the same coins on the errors miss DPO's gradient."""
    made, kind = of_kind("dpo"), KINDS["dpo"]
    wanted = gradient(term("dpo", estimated=False, **kind), made)
    mean = torch.zeros_like(wanted)
    for outcome in product([False, True], repeat=2):
        falls = torch.tensor([outcome[g] for g in made.batch.rows.group.tolist()], dtype=torch.float64)

        def errors(step, falls=falls):
            return biased(step) + falls / SHARE * (exact(step) - biased(step))

        chance = (SHARE if outcome[0] else 1 - SHARE) * (SHARE if outcome[1] else 1 - SHARE)
        mean += chance * gradient(replace(term("dpo", estimated=False, **kind), loss=errors), made)
    assert (mean - wanted).norm() > 1e-3 * wanted.norm()


def test_what_is_reported_is_the_estimate():
    made = steps.step(rows=4)
    coins = torch.tensor([0.1, 0.9, 0.9, 0.2])
    made = replace(made, draw=replace(made.draw, correction=coins))
    one = term("sft")
    terms = LossTerms([one], Balance([replace(one, options=one.options.model_copy(update={"weight": 1.0}))]))
    found = apply_objectives(terms, made, compute_errors([one], made), {}, made.batch.rows.role)
    assert float(found.loss) == pytest.approx(float(biased(made).mean()), rel=1e-12)
    assert found.means()["pixel/error"] == pytest.approx(float(biased(made).mean()))
    assert compute_errors([one], made)["pixel/decoded"].shape == (2,)
    whole = terms.exact()
    assert float(
        apply_objectives(whole, made, compute_errors(whole.terms, made), {}, made.batch.rows.role).loss
    ) == pytest.approx(float(exact(made).mean()))


def test_pairs_share_a_coin_and_every_visit_draws_anew():
    made = steps.step(roles=["winner", "loser"] * 50)
    coins = made.draw.correction
    assert torch.equal(coins[::2], coins[1::2]) and len(coins.unique()) == 50
    assert not torch.equal(coins, made.draw.coin)
    fixed = fixed_draw(made.batch, 0, 4, 0, made.process, NoiseOptions())
    first, second = (step_correction(fixed, made.batch, 0, number) for number in (1, 2))
    assert torch.equal(first.noise, second.noise) and not torch.equal(first.correction, second.correction)
    assert torch.equal(step_correction(fixed, made.batch, 0, 1).correction, first.correction)


# -------------------------------------------------------------------------------------------------------- the model


def small(channels: int = 4, factor: int = 8, width: int = 8) -> Surrogate:
    torch.manual_seed(1)
    made = Surrogate(channels, factor, width).requires_grad_(False).eval()
    made.key, made.quality = "k", Quality(0.9, 0.1, [0.9, None, 0.8, 0.7])
    return made


def test_it_is_zero_where_prediction_and_target_agree():
    made, z = small(), torch.randn(2, 4, 5, 7)
    assert made(z, z).shape == (2, 3, 40, 56) and not made(z, z).any()
    assert made(z + 0.1, z).abs().min() > 0


def linear_examples(count: int = 48, noise: float = 0.0) -> tuple[Examples, Decoder]:
    torch.manual_seed(2)
    decoder = Decoder(steps.Linear(4, identity=False).float(), 1.0, factor=1)
    collector = Collector(decoder, [])
    for i in range(count):
        true = torch.randn(1, 4, 6, 6)
        collector.add(true + 0.3 * torch.randn(1, 4, 6, 6), true, torch.tensor([i / count]), torch.tensor([i % 6 == 1]))
    return collector.examples(), decoder


def test_a_linear_decoder_is_fitted():
    """Its picture changes by A d: the gradient 2 A^T A d / n is met, on pictures that were not fitted to."""
    examples, _ = linear_examples()
    made = metric.fit(examples, 1, torch.device("cpu"), steps=300, width=16)
    assert made.quality is not None
    assert made.quality.cosine > 0.97 and made.quality.residual < 0.06
    assert all(one is not None and one > 0.9 for one in made.quality.bands)
    assert not any(p.requires_grad for p in made.parameters())


def test_the_collected_gradient_is_that_of_the_mean_square():
    examples, decoder = linear_examples(4)
    a = decoder.vae.a.detach()
    d = examples.predicted - examples.true
    wanted = 2 * torch.einsum("pc,pk,nkhw->nchw", a, a, d) / (3 * 36)
    torch.testing.assert_close(examples.gradient, wanted, rtol=1e-4, atol=1e-6)


def test_a_fit_without_held_out_pictures_or_with_numbers_that_are_not_finite_is_one_line():
    examples, _ = linear_examples(6)
    with pytest.raises(UserError, match="two pictures"):
        metric.fit(replace(examples, held=torch.zeros(6, dtype=torch.bool)), 1, torch.device("cpu"))
    with pytest.raises(UserError, match="not finite"):
        metric.fit(replace(examples, gradient=examples.gradient * torch.nan), 1, torch.device("cpu"))


# ------------------------------------------------------------------------------------------------------------- files


def test_a_file_gives_back_the_same_numbers_and_what_it_belongs_to(tmp_path):
    made = small()
    metric.save(tmp_path / "a" / "s.safetensors", made)
    back = metric.load(tmp_path / "a" / "s.safetensors", "k")
    z, d = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4)
    assert torch.equal(back(z + d, z), made(z + d, z))
    assert (back.key, back.quality, back.digest) == (made.key, made.quality, made.digest)
    assert small(width=4).digest != made.digest


def test_a_file_from_before_the_gate_was_deeper_is_still_read(tmp_path):
    made = Surrogate(4, 8, 8, depth=0).requires_grad_(False).eval()
    made.key, made.quality = "k", Quality(0.9, 0.1, [0.9])
    path = tmp_path / "s.safetensors"
    metric.save(path, made)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()[metric.FORMAT])
    assert header.pop("depth") == 0
    save_file(made.state_dict(), path, {metric.FORMAT: json.dumps(header)})
    z, d = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4)
    assert torch.equal(metric.load(path, "k")(z + d, z), made(z + d, z))


def test_few_examples_are_not_seen_too_often(monkeypatch):
    monkeypatch.setattr(metric, "EPOCHS", 3)
    examples, _ = linear_examples(48)
    steps, step = [], metric._Muon.step
    monkeypatch.setattr(metric._Muon, "step", lambda self, rate: steps.append(rate) or step(self, rate))
    metric.fit(examples, 1, torch.device("cpu"), width=4)
    count = int((~examples.held).sum())
    assert len(steps) == -(-3 * count // metric.BATCH)


def test_the_bar_of_a_fit_reaches_its_end_when_its_time_is_up(monkeypatch):
    """It shows what ends the fit first, its steps or its seconds."""
    clock = [0.0]
    monkeypatch.setattr(metric.time, "monotonic", lambda: clock[0])
    shown, at = [], []
    step = metric._Muon.step

    def later(self, rate: float) -> None:
        step(self, rate)
        clock[0] += 10.0
        at.append(len(shown))

    monkeypatch.setattr(metric._Muon, "step", later)

    def bar(rows, text: str, total: int):
        assert (len(rows), text) == (total, "fitting the pixel surrogate, percent")
        for row in rows:
            shown.append(row)
            yield row

    examples, _ = linear_examples(48)
    metric.fit(examples, 1, torch.device("cpu"), bar, steps=1000, seconds=100.0, width=4)
    assert shown == list(range(1, 101))
    assert at == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91]
    shown.clear()
    clock[0] = 0.0
    metric.fit(examples, 1, torch.device("cpu"), bar, steps=3, seconds=float("inf"), width=4)
    assert len(at) == 13 and shown == list(range(1, 101))


def test_making_one_is_weighed_by_operations():
    """SD1.5 at 512 pixels, in 10^12: a step 2.0, decoding all 4.55 times that; the fit as its network counts itself."""
    count, h, w = surrogates.examples_of(64, 64)
    assert (count, h, w) == (640, 32, 32) and surrogates.examples_of(16, 24) == (640 * 1024 // (16 * 24), 16, 24)
    fitting = metric.fitting_operations(4, 8, h * w, 560)
    with FlopCounterMode(display=False) as counter:
        metric.Surrogate(4, 8)(torch.zeros(1, 4, h, w), torch.zeros(1, 4, h, w))
    assert fitting == metric.steps_for(560) * metric.BATCH * 6 * counter.get_total_flops()
    made = surrogates.Making(640 * (0.7e12 + 3.5 * 0.63e12), fitting)
    assert not made.pays(600, 2.0e12, 4.55) and made.pays(800, 2.0e12, 4.55)
    assert not made.pays(10**9, 2.0e12, 1.0)  # nothing is saved where nothing is decoded
    fast, slow = made.seconds(1e14), made.seconds(1e9)
    assert fast == pytest.approx((made.decoding + made.fitting) / 1e14) and slow == 240.0


def test_one_of_another_autoencoder_mode_or_format_is_refused(tmp_path):
    path = tmp_path / "s.safetensors"
    metric.save(path, small())
    with pytest.raises(UserError, match="another autoencoder"):
        metric.load(path, "other")
    assert len({metric.key(vae, mode) for vae in "ab" for mode in ("mixed", "x0")}) == 4
    save_file({"a": torch.zeros(1)}, tmp_path / "lora.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(path.read_bytes()[:-9])
    (tmp_path / "text.safetensors").write_text("no")
    for name in ("lora", "torn", "text"):
        with pytest.raises(UserError, match="no surrogate, or damaged"):
            metric.load(tmp_path / f"{name}.safetensors", "k")
    with pytest.raises(UserError, match="no such file"):
        metric.load(tmp_path / "missing.safetensors")


# --------------------------------------------------------------------------------------------------- the pixel loss


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(tiny.vae().double(), 0.18215)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("mode", ["mixed", "anchored", "x0", "stepped"])
def test_every_distance_and_mode_of_the_estimate_has_a_gradient_and_is_zero_at_the_target(decoder, distance, mode):
    loss = PixelLoss(PixelOptions(distance=distance, mode=mode), decoder)
    made = steps.step()
    errors = loss.estimated(small(), made)
    (found,) = torch.autograd.grad(errors.sum(), made.out)
    assert errors.shape == (2,) and errors.dtype == torch.float64
    assert bool(found.isfinite().all()) and bool(found.any())
    right = steps.step(right=True)
    assert loss.estimated(small(), right).abs().max() < 1e-9


def test_a_mask_and_gain_norm_act_on_the_estimate_as_on_decoded_pictures(decoder):
    mask = torch.ones(2, 1, 64, 64)
    mask[..., 32:, :] = 0
    made, masked = steps.step("v"), steps.step("v", mask=mask)
    plain, evened = (PixelLoss(PixelOptions(gain_norm=g), decoder) for g in (False, True))
    c = plain.latents(made)[2]
    torch.testing.assert_close(
        evened.estimated(small(), made), plain.estimated(small(), made) / (c**2).clamp(min=0.01), rtol=1e-9, atol=0
    )
    (seen,) = torch.autograd.grad(plain.estimated(small(), masked).sum(), masked.out)
    assert not seen[..., -1:, :].any(), "cells whose surroundings are all masked get no gradient"
    assert seen[..., 0, :].any()
    assert bool((plain.estimated(small(), masked) < plain.estimated(small(), made)).all())


def test_near_is_the_window_that_is_decoded(decoder):
    """Of a middle crop, the estimate beside a correction looks at the crop's own window; of a whole picture at all."""
    made = steps.step(size=16)
    cut = PixelLoss(PixelOptions(decode="midcrop", window=64), decoder)
    torch.testing.assert_close(
        PixelLoss(PixelOptions(), decoder).estimated(small(), made, near=True),
        PixelLoss(PixelOptions(), decoder).estimated(small(), made),
    )
    predicted, true, _ = cut.latents(made)
    whole = small().double()(predicted, true)
    for row in range(2):
        place = made.draw.window[row]
        top, left = (int(float(p) * 9) * 8 for p in place)
        wanted = (whole[row, :, top : top + 64, left : left + 64] ** 2).mean()
        assert float(cut.estimated(small(), made, near=True)[row]) == pytest.approx(float(wanted), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_does_not_reach_the_estimate(decoder, dtype):
    made = steps.step(dtype=torch.float32)
    loss = PixelLoss(PixelOptions(), decoder)
    wanted = loss.estimated(small(), made)
    with torch.autocast("cpu", dtype):
        assert torch.equal(loss.estimated(small(), made), wanted) and wanted.dtype == torch.float32


# -------------------------------------------------------------------------------------------------------------- cost


def test_the_share_keeps_a_step_within_the_limit_and_is_not_larger_than_it_pays():
    """Of SD1.5 at 512 pixels, SDXL and SD3 at 1024: decoded in full, by a middle crop, without recomputation."""
    goals = ((4.55, 1.3), (5.8, 1.3), (2.78, 1.15), (3.49, 1.15), (1.98, 1.15), (2.18, 1.15), (1.35, 1.15))
    for (full, goal), residual in product(goals, (0.05, 0.15, 0.3)):
        share = metric.share_for(full, residual)
        assert metric.relative_cost("corrected", full, share) <= goal + 1e-9

        def noise_at_equal_cost(s: float, full: float = full, residual: float = residual) -> float:
            return metric.relative_cost("corrected", full, s) * (1 + (1 / s - 1) * residual)

        assert noise_at_equal_cost(share) <= noise_at_equal_cost(share * 0.8) + 1e-9
    assert metric.share_for(4.55, 0.01) < metric.share_for(4.55, 0.15)
    assert metric.relative_cost("surrogate", 4.55) < 1.02
    assert metric.relative_cost("by_size", 4.55) == 4.55
