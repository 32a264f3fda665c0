"""Every registered loss keeps the contract; the latent ones also their formulas; terms, gates and automatic weights."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import steps
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pixelkiln.trainer.config import load
from pixelkiln.trainer.diffusion.types import Draw
from pixelkiln.trainer.losses.decode import Decoder
from pixelkiln.trainer.losses.distances import DISTANCES, focal_frequency, haar_bands
from pixelkiln.trainer.losses.huber import threshold
from pixelkiln.trainer.losses.options import DecodeOptions, HuberOptions, TermOptions
from pixelkiln.trainer.losses.term import Balance, LossParts, Term
from pixelkiln.trainer.registry import losses
from pixelkiln.trainer.training.remedies import PARTS, STEP, Phase, ladder

NAMES = [name for name in losses.names() if name != "dense"]
"""Those of any run; see test_dense_loss for the one of dense runs."""
OPTIONS: dict[str, Any] = {entry.name: entry.options for entry in losses}
LATENT = [name for name in NAMES if not OPTIONS[name].decodes]
SD = [0.0, 400.0, 999.0]
LEVELS = {"epsilon": SD, "v": SD, "sample": [10.0, 400.0, 999.0], "flow": [0.01, 0.4, 0.99]}


@pytest.fixture(scope="session")
def vgg(tmp_path_factory) -> str:
    """Random weights under the names of torchvision's VGG16."""
    torch.manual_seed(0)
    state, channels, at = {}, 3, 0
    for widths in ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)):
        for width in widths:
            state[f"features.{at}.weight"] = torch.randn(width, channels, 3, 3) * (2 / (9 * channels)) ** 0.5
            state[f"features.{at}.bias"] = torch.zeros(width)
            channels, at = width, at + 2
        at += 1
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(state, path)
    return str(path)


@pytest.fixture(scope="session")
def decoder() -> Decoder:
    return Decoder(tiny.vae(), 0.18215, 0.0)


@pytest.fixture(scope="session")
def build(decoder, vgg):
    """build(name, prediction, **options) -> a loss of that name; options that it cannot do without are given."""

    @cache
    def make(name: str, prediction: str = "epsilon", **options):
        needed = {"lpips": {"backbone": vgg}}.get(name, {})
        entry = losses[name]
        in_x0 = options.pop("in_x0", False)
        return entry.build(entry.options(**(needed | options)), LossParts(steps.process(prediction), decoder, in_x0))

    return make


small = partial(steps.step, size=4)
"""32 x 32 pixels."""


def gradient(errors, made):
    return torch.autograd.grad(errors.sum(), made.out)[0]


# ---------------------------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prediction", steps.PREDICTIONS)
def test_one_float32_error_per_row_with_a_finite_gradient(build, name, prediction):
    made = small(prediction, LEVELS[prediction], rows=3, dtype=torch.float32)
    errors = build(name, prediction)(made)
    assert errors.shape == (3,)
    assert errors.dtype == torch.float32
    assert (errors > 0).all()
    grad = gradient(errors, made)
    assert grad.isfinite().all()
    assert (grad.flatten(1).abs().sum(1) > 0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prediction", ["v", "flow"])
def test_a_right_output_has_exactly_no_error_and_no_gradient(build, name, prediction):
    made = small(prediction, LEVELS[prediction], rows=3, dtype=torch.float32, right=True)
    errors = build(name, prediction)(made)
    assert errors.tolist() == [0, 0, 0]
    assert gradient(errors, made).abs().max() == 0


@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_see_each_other(build, name):
    made, loss = small(levels=SD, rows=3, dtype=torch.float32), build(name)
    order = torch.tensor([2, 0, 1])
    errors = loss(made)
    torch.testing.assert_close(loss(made.pick(order)), errors[order], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss(made.pick(order[:1])), errors[2:], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_outputs_are_judged_in_float32(build, name):
    made, loss = small(levels=SD, rows=3, dtype=torch.float32), build(name)
    half = replace(made, out=made.out.detach().bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        errors = loss(half)
    assert errors.dtype == torch.float32
    torch.testing.assert_close(errors, loss(replace(made, out=half.out.float())), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", LATENT)
def test_a_latent_loss_can_measure_the_clean_latents_that_are_implied(build, name):
    """As on a model that predicts those: of a flow they are sigma times as far apart as the velocities."""
    made = small("flow", LEVELS["flow"], rows=3)
    same = replace(small("sample", LEVELS["sample"], rows=3), out=made.x0, batch=made.batch)
    options = {"schedule": "constant"} if "schedule" in OPTIONS[name].model_fields else {}
    found = build(name, "flow", in_x0=True, **options)(made)
    torch.testing.assert_close(found, build(name, "sample", **options)(same))


@pytest.mark.parametrize("name", NAMES)
def test_masks_weigh_what_counts(build, name):
    loss = build(name)
    plain = small(levels=SD, rows=3, dtype=torch.float32)
    one, none = (replace(plain, batch=replace(plain.batch, mask=torch.full((3, 1, 32, 32), v))) for v in (1.0, 0.0))
    torch.testing.assert_close(loss(one), loss(plain))
    assert loss(none).tolist() == [0, 0, 0]
    assert gradient(loss(none), none).abs().max() == 0
    half = torch.ones(3, 1, 32, 32)
    half[..., 16:] = 0
    some = loss(replace(plain, batch=replace(plain.batch, mask=half)))
    assert (some > 0).all()
    assert (some < loss(plain)).all()


SPREADS = {"focal_frequency"}
"""Losses in which each place depends on all others, so that they have no parts that add up."""


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SPREADS])
def test_masks_do_not_renormalise(build, name):
    """The two halves of a picture add up to the whole, at every term's own resolution: a mean over all places, not over
    those that count. And a term that decodes sees a mask finer than a latent cell."""
    loss, plain = build(name), small(levels=SD, rows=3, dtype=torch.float32)

    def masked(mask):
        return loss(replace(plain, batch=replace(plain.batch, mask=mask)))

    left = (torch.arange(32) < 16).float().expand(3, 1, 32, 32).contiguous()
    torch.testing.assert_close(masked(left) + masked(1 - left), loss(plain), rtol=1e-5, atol=1e-7)
    stripes = (torch.arange(32) % 8 < 4).float().expand(3, 1, 32, 32).contiguous()
    total = masked(stripes) + masked(1 - stripes)
    if name in ("mse", "l1", "huber", "smooth_l1", "pixel", "lpl", "lpips"):
        torch.testing.assert_close(total, loss(plain), rtol=1e-5, atol=1e-7)
    if name == "pixel":
        assert not torch.allclose(masked(stripes), 0.5 * loss(plain), rtol=1e-3), "finer than a cell"


@pytest.mark.parametrize("name", LATENT)
def test_masked_cells_get_no_gradient(build, name):
    made = small(levels=SD, rows=3, dtype=torch.float32)
    mask = torch.ones(3, 1, 32, 32)
    mask[..., 16:] = 0
    made = replace(made, batch=replace(made.batch, mask=mask))
    grad = gradient(build(name)(made), made)
    assert grad[..., 2:].abs().max() == 0
    assert grad[..., :2].abs().min() > 0


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_help_and_defaults_fit(name):
    options = OPTIONS[name]
    assert [n for n, f in options.model_fields.items() if not f.description] == []
    options.model_validate(options().model_dump())
    assert all(isinstance(w, str) for w in options().warnings())


# ---------------------------------------------------------------------------------------------------------- formulas


def test_mse_is_the_mean_over_all_and_masks_do_not_renormalise(build):
    made = steps.step(levels=SD, rows=3)
    d = (made.out - made.target) ** 2
    torch.testing.assert_close(build("mse")(made), d.mean((1, 2, 3)))
    mask = torch.rand(3, 1, 64, 64)
    cells = torch.nn.functional.avg_pool2d(mask, 8).double()
    masked = build("mse")(replace(made, batch=replace(made.batch, mask=mask)))
    torch.testing.assert_close(masked, (d * cells).mean((1, 2, 3)), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("schedule", "c"),
    [
        ("constant", [0.2, 0.2, 0.2]),
        ("exponential", [2 * 1.0, 2 * 0.1**0.4, 2 * 0.1**0.999]),
        ("snr", [0.9 / (1 + s) ** 2 + 0.1 for s in (0.029153, 0.868767, 14.6146)]),
    ],
)
def test_huber_schedules_are_kohyas(build, schedule, c):
    options = HuberOptions(c=0.1, scale=2.0, schedule=schedule)
    made = steps.step(levels=SD, rows=3)
    sigma = (1 / made.process.snr(made.draw.level)).sqrt()
    if schedule == "snr":
        c = (0.9 / (1 + sigma) ** 2 + 0.1).tolist()
    assert threshold(made.draw.level, made.process, options).tolist() == pytest.approx(c, rel=1e-9)
    c = torch.tensor(c, dtype=torch.float64).reshape(3, 1, 1, 1)
    d = (made.out - made.target).detach()
    theirs = 2 * ((d**2 + c**2).sqrt() - c)
    own = {"c": 0.1, "scale": 2.0, "schedule": schedule}
    torch.testing.assert_close(build("smooth_l1", **own)(made).detach(), theirs.mean((1, 2, 3)))
    torch.testing.assert_close(build("huber", **own)(made).detach(), (c * theirs).mean((1, 2, 3)))


def test_huber_of_a_flow():
    level = torch.tensor([0.0, 0.5, 1.0])
    flow = steps.process("flow")
    assert threshold(level, flow, HuberOptions(schedule="snr")).tolist() == pytest.approx([1, 0.325, 0.1])
    exponential = HuberOptions(schedule="exponential")
    assert threshold(level, flow, exponential).tolist() == pytest.approx([1, math.sqrt(0.1), 0.1])


def test_l1_and_haar_and_focal_frequency_of_known_residuals(build):
    made = steps.step(levels=SD, rows=3)
    d = (made.out - made.target).detach()
    torch.testing.assert_close(build("l1")(made).detach(), d.abs().mean((1, 2, 3)))
    mse = (d**2).mean((1, 2, 3))
    equal = build("haar", low=1.0, edges=1.0, diagonal=1.0)(made).detach()
    torch.testing.assert_close(equal, mse)
    torch.testing.assert_close(build("focal_frequency", alpha=0.0)(made).detach(), mse)
    assert (build("haar")(made) < mse).all()


# --------------------------------------------------------------------------------------------------------- distances


@pytest.mark.parametrize("name", DISTANCES)
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9), st.floats(0.1, 10))
def test_distances(name, seed, h, w, k):
    """Zero at equality with zero gradient, symmetric, of the stated degree, any size."""
    d = torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    distance = DISTANCES[name]
    if h * w == 1 and name == "gradient":
        return  # one pixel has no neighbours
    if name == "gradient" and 1 in (h, w):
        d = d.repeat(1, 1, 2, 2)
    zero = torch.zeros_like(d).requires_grad_()
    at_zero = distance(zero)
    assert at_zero.tolist() == [0, 0]
    assert torch.autograd.grad(at_zero.sum(), zero)[0].abs().max() == 0
    torch.testing.assert_close(distance(d), distance(-d))
    if name != "charbonnier":
        torch.testing.assert_close(distance(k * d), k ** DISTANCES[name].degree * distance(d))
    assert (distance(d) > 0).all()


def test_focal_frequency_doubles_to_four_times():
    d = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3)).double() * 0.2
    one, two = DISTANCES["focal_frequency"](d), DISTANCES["focal_frequency"](2 * d)
    assert (two / one).item() == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("alpha", "numbers"),
    [(0.5, [0.1162358, 0.1207715]), (1.0, [0.0867217, 0.0931806]), (2.0, [0.0534193, 0.0608648])],
)
def test_focal_frequency_is_its_authors(alpha, numbers):
    """Numbers of the authors' package focal-frequency-loss 0.3.0 for the same two pairs of pictures, one at a time."""
    generator = torch.Generator().manual_seed(5)
    predicted, true = (torch.rand(2, 3, 16, 12, generator=generator) for _ in range(2))
    assert focal_frequency(predicted - true, alpha).tolist() == pytest.approx(numbers, rel=1e-5)


def test_haar_is_orthonormal():
    d = torch.randn(2, 3, 8, 6, dtype=torch.float64)
    energy = sum((band**2).sum().item() for band in haar_bands(d))
    assert energy == pytest.approx((d**2).sum().item())
    low, *details = haar_bands(torch.ones(1, 1, 4, 4))
    assert low.unique().tolist() == [2]
    assert all(band.abs().max() == 0 for band in details)


def test_gradient_distance_does_not_see_a_constant():
    assert DISTANCES["gradient"](torch.full((1, 3, 4, 4), 0.7)).item() == 0
    ramp = torch.arange(4.0).expand(1, 3, 4, 4)
    assert DISTANCES["gradient"](ramp).item() == pytest.approx(1)


# ------------------------------------------------------------------------------------------------------------- terms


def term(name: str = "mse", **options) -> Term:
    return Term(name, lambda step: step.out, None, TermOptions(**options))  # pyright: ignore[reportArgumentType]


def drawn(level: list[float], coin: list[float]) -> Draw:
    made = steps.step(rows=len(level)).draw
    return replace(made, level=torch.tensor(level), coin=torch.tensor(coin))


def test_gate_and_coin_choose_rows():
    sd, flow = steps.process("epsilon"), steps.process("flow")
    gate = term(min_level=0.1, max_level=0.2)
    assert gate.active(drawn([99, 100, 199, 200], [0] * 4), sd, ["plain"] * 4).tolist() == [False, True, True, False]
    assert gate.active(drawn([0.05, 0.1, 0.19, 0.2], [0] * 4), flow, ["plain"] * 4).tolist() == [
        False,
        True,
        True,
        False,
    ]
    assert term().active(drawn([0, 999], [0, 0.999]), sd, ["plain"] * 2).all()
    assert term().active(drawn([1.0], [0.5]), flow, ["plain"]).all()
    assert term(probability=0.3).active(drawn([5, 5], [0.29, 0.3]), sd, ["plain"] * 2).tolist() == [True, False]


def test_probability_over_its_share_is_unbiased():
    made = steps.step(rows=4000, channels=1, size=1)
    chosen = term(probability=0.25).active(made.draw, made.process, made.batch.rows.role).float().mean().item()
    assert chosen / 0.25 == pytest.approx(1, abs=0.1)


def test_automatic_weight_balances_magnitudes():
    balance = Balance([term("mse"), term("l1", weight=0.5), term("pixel", weight="auto", auto_ratio=2.0)])
    assert [balance.weight(n) for n in ("mse", "l1", "pixel")] == [1, 0.5, 0]
    balance.update({"mse": 4.0, "l1": 8.0}, {"mse": 4, "l1": 4})
    assert balance.weight("pixel") == 0, "it is not measured yet"
    balance.update({"mse": 4.0, "l1": 8.0, "pixel": 0.5}, {"mse": 4, "l1": 4, "pixel": 2})
    assert balance.weight("pixel") == pytest.approx(2.0 * (1 * 1 + 0.5 * 2) / 0.25)
    restored = Balance([term("mse"), term("l1", weight=0.5), term("pixel", weight="auto", auto_ratio=2.0)])
    restored.state = dict(balance.state)
    assert restored.weight("pixel") == balance.weight("pixel")


def test_automatic_weight_starts_as_the_plain_mean_and_forgets():
    balance = Balance([term("mse"), term("pixel", weight="auto")], decay=0.5)
    for value in (1.0, 3.0):
        balance.update({"mse": 1.0, "pixel": value}, {"mse": 1, "pixel": 1})
    assert 1 / balance.weight("pixel") == pytest.approx((0.5 * 1 + 3) / 1.5)
    for _ in range(60):
        balance.update({"mse": 1.0, "pixel": 5.0}, {"mse": 1, "pixel": 1})
    assert 1 / balance.weight("pixel") == pytest.approx(5)


def test_automatic_weight_ignores_what_is_not_finite_or_not_there():
    balance = Balance([term("mse"), term("pixel", weight="auto")])
    balance.update({"mse": 1.0, "pixel": 1.0}, {"mse": 1, "pixel": 1})
    balance.update({"mse": math.nan, "pixel": math.inf}, {"mse": 1, "pixel": 1})
    balance.update({"mse": 0.0, "pixel": 0.0}, {"mse": 0, "pixel": 0})
    assert balance.weight("pixel") == 1


def test_automatic_weight_beside_terms_without_an_error_is_the_ratio():
    balance = Balance([term("mse"), term("pixel", weight="auto", auto_ratio=0.5)])
    balance.update({"pixel": 3.0}, {"mse": 0, "pixel": 1})
    assert balance.weight("pixel") == 0.0, "mse is not measured"
    balance.update({"mse": 0.0, "pixel": 3.0}, {"mse": 1, "pixel": 1})
    assert balance.weight("pixel") == 0.5
    balance.update({"mse": 1.0, "pixel": 3.0}, {"mse": 1, "pixel": 1})
    assert 0 < balance.weight("pixel") < 0.5


def test_automatic_weights_need_an_anchor():
    with pytest.raises(ValueError, match=r"loss\.pixel\.weight"):
        Balance([term("pixel", weight="auto")])


@pytest.mark.parametrize(
    "options",
    [
        {"weight": -1.0}, {"weight": "automatic"}, {"weight": math.nan}, {"probability": 0.0},
        {"min_level": 0.5, "max_level": 0.2},
    ],
)  # fmt: skip
def test_terms_refuse_what_makes_no_sense(options: dict[str, Any]):
    with pytest.raises(ValidationError):
        TermOptions(**options)


# ------------------------------------------------------------------------------------------------------------- lpips


@pytest.mark.parametrize("make", ["none", "missing", "garbage", "other", "list", "text"])
def test_lpips_says_which_file_it_needs(build, tmp_path, make):
    path = tmp_path / "net.pth"
    if make == "garbage":
        path.write_bytes(b"not a checkpoint")
    if make == "other":
        torch.save({"features.0.weight": torch.zeros(1)}, path)
    if make == "list":
        torch.save([torch.zeros(1)], path)
    if make == "text":
        torch.save({"features.0.weight": "0"}, path)
    with pytest.raises(ValueError, match=r"^loss\.lpips\.backbone: .*; give [^\n]*$"):
        build("lpips", backbone=None if make == "none" else str(path))


def test_lpips_is_its_definition(build, vgg, decoder, tmp_path):
    """Against the same network written out with torch.nn in the order of torchvision's file."""
    from torch import nn

    state = torch.load(vgg, weights_only=True)
    heads = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate((64, 128, 256, 512, 512))}
    torch.save(heads, tmp_path / "heads.pth")
    plan, channels = [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512], 3
    layers: list[nn.Module] = []
    for width in plan:
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()] if width else [nn.MaxPool2d(2)]
        channels = width or channels
    net = nn.Sequential(*layers)
    net.load_state_dict({k.removeprefix("features."): v for k, v in state.items()})
    taps = [3, 8, 15, 22, 29]

    def features(x):
        x = (x - torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)) / torch.tensor([0.458, 0.448, 0.450]).view(
            1, 3, 1, 1
        )
        seen = []
        for i, layer in enumerate(net):
            x = layer(x)
            if i in taps:
                seen.append(x / x.norm(dim=1, keepdim=True).clamp(min=1e-5))
        return seen

    made = steps.step(levels=[300.0], rows=1, dtype=torch.float32)
    with torch.no_grad():
        a, b = features(decoder(made.x0)), features(decoder(made.clean))
        theirs = sum((h * (p - t) ** 2).sum(1).mean() for h, p, t in zip(heads.values(), a, b, strict=True))
        ours = build("lpips", mode="x0", heads=str(tmp_path / "heads.pth"))(made)
    assert ours.item() == pytest.approx(float(theirs), rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_memory_options_are_offered_with_any_loss(name):
    config = load(flags={"model.path": "m", "data.path": "x", f"loss.{name}.weight": 1.0})
    worst = Phase(STEP, dict.fromkeys(PARTS, 1))
    labels = [remedy.label for offer in ladder() if (remedy := offer(config, worst))]
    assert ("decode a window, its middle seeing all" in labels) == issubclass(losses[name].options, DecodeOptions)
