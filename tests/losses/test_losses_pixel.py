"""The pixel term: what each mode decodes, its gradient through the decoder, and the plans that decode less."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
import steps
import tiny
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.functional import logsigmoid

from pixelkiln.trainer.diffusion.options import NoiseOptions
from pixelkiln.trainer.diffusion.timesteps import draw
from pixelkiln.trainer.errors import UserError
from pixelkiln.trainer.losses.decode import Decoder, Plan, View, decoding_dtype, evaluate_in_chunks, tiny_decoder
from pixelkiln.trainer.losses.distances import DISTANCES
from pixelkiln.trainer.losses.lpl import feature_error
from pixelkiln.trainer.losses.options import DecodeOptions, Mode, PixelOptions
from pixelkiln.trainer.losses.pixel import arrival, compared, latents, plan_for
from pixelkiln.trainer.losses.term import LossParts
from pixelkiln.trainer.losses.tiny import beside
from pixelkiln.trainer.registry import losses

MODES: tuple[Mode, ...] = get_args(Mode)
LEVELS = {"epsilon": [40.0, 500.0], "v": [40.0, 500.0], "sample": [40.0, 500.0], "flow": [0.3, 0.8]}


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(tiny.vae().double(), 0.18215)


def identity(**options) -> Decoder:
    return Decoder(steps.Linear(**options), 1.0, factor=1)


def pixel(decoder: Decoder, prediction: str = "epsilon", name: str = "pixel", **options):
    entry = losses[name]
    return entry.build(entry.options(**options), LossParts(steps.process(prediction), decoder))  # pyright: ignore[reportArgumentType]


def plain_error(made) -> torch.Tensor:
    return ((made.out - made.target) ** 2).mean((1, 2, 3))


def gradient(errors, made):
    return torch.autograd.grad(errors.sum(), made.out)[0]


# ------------------------------------------------------------------------------------------------------------- modes


@pytest.mark.parametrize("prediction", steps.PREDICTIONS)
def test_modes_decode_what_they_say(prediction):
    """Each mode's latents, written as its definition says, without residuals."""
    made = steps.step(prediction, LEVELS[prediction])
    p, level, noise, z0 = made.process, made.draw.level, made.draw.noise, made.clean
    a, s = (x.reshape(-1, 1, 1, 1) for x in arrival(p, level, made.draw.jump, (0.02, 0.05)))
    expected = {
        "mixed": (p.noisy(z0, made.epsilon, level), made.noisy),
        "x0": (made.x0, z0),
        "anchored": (z0 + p.noisy(z0, made.epsilon, level) - made.noisy, z0),
        "stepped": (a * made.x0 + s * made.epsilon, a * z0 + s * noise),
    }
    for mode in MODES:
        predicted, true, c = latents(made, mode)
        torch.testing.assert_close(predicted, expected[mode][0], rtol=0, atol=1e-9)
        torch.testing.assert_close(true, expected[mode][1], rtol=0, atol=1e-9)
        residual = c.reshape(-1, 1, 1, 1) * (made.out - made.target)
        torch.testing.assert_close(predicted - true, residual, rtol=0, atol=1e-9)


def test_stepping_a_flow_is_an_euler_step():
    made = steps.step("flow", [0.3, 0.8])
    predicted, true, c = latents(made, "stepped", (0.1, 0.1))
    torch.testing.assert_close(c, torch.full((2,), -0.1, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(predicted, made.noisy - 0.1 * made.out, rtol=0, atol=1e-8)
    torch.testing.assert_close(predicted - true, -0.1 * (made.out - made.target), rtol=0, atol=1e-8)


def test_stepping_below_the_schedule_arrives_at_clean_data():
    made = steps.step("epsilon", [10.0, 500.0])
    assert arrival(made.process, made.draw.level, made.draw.jump, (0.02, 0.02))[:, 0].tolist() == [1, 0]
    assert arrival(steps.process("flow"), torch.tensor([0.01]), torch.zeros(1), (0.02, 0.02)).tolist() == [[1], [0]]
    at = arrival(made.process, torch.tensor([520.0]), torch.zeros(1), (0.02, 0.02))
    assert at[0].item() == pytest.approx(made.process.scales(torch.tensor([500.0]))[0].item())


def test_identity_decoder_gives_the_gain():
    made = steps.step("epsilon", [500.0, 0.0], channels=3)
    ratio = pixel(identity())(made) / plain_error(made)
    assert ratio[0].item() == pytest.approx(0.7237, abs=5e-5)
    assert ratio[1].item() == pytest.approx(0.00085, abs=1e-6)


@pytest.mark.parametrize("prediction", steps.PREDICTIONS)
@pytest.mark.parametrize("mode", MODES)
def test_linear_decoder_gives_the_gain_times_the_decoded_residual(prediction, mode):
    made = steps.step(prediction, LEVELS[prediction])
    linear = steps.Linear(4, identity=False).double()
    errors = pixel(Decoder(linear, 1.0, factor=1), prediction, mode=mode)(made)
    c = latents(made, mode)[2]
    decoded = (linear.decode(made.out - made.target).sample - linear.b[:, None, None]) ** 2
    torch.testing.assert_close(errors, c**2 * decoded.mean((1, 2, 3)), rtol=1e-9, atol=0)
    if mode in ("mixed", "x0"):
        torch.testing.assert_close(c.abs(), made.process.gain(made.draw.level, mode))


def test_an_offset_of_the_decoder_cancels_and_a_factor_is_squared():
    made = steps.step("v", channels=3)
    shifted, scaled = identity(), identity(gain=3.0)
    shifted.vae.b.data += 7
    one = pixel(identity())(made)
    torch.testing.assert_close(pixel(shifted)(made), one, rtol=1e-9, atol=0)
    torch.testing.assert_close(pixel(scaled)(made), 9 * one, rtol=1e-9, atol=0)


def test_the_decoder_undoes_scale_and_shift():
    """Without the shift SD3 would decode other latents than it was trained on."""
    made = steps.step("flow", channels=16)
    vae = tiny.vae(16, 1.5305, 0.0609).double()
    theirs = vae.decode(made.clean / 1.5305 + 0.0609).sample
    torch.testing.assert_close(Decoder(vae, 1.5305, 0.0609)(made.clean), theirs, rtol=0, atol=1e-12)
    assert (Decoder(vae, 1.5305, 0.0)(made.clean) - theirs).abs().max() > 1e-4


@pytest.mark.parametrize("prediction", steps.PREDICTIONS)
@pytest.mark.parametrize("mode", MODES)
def test_gain_norm_evens_out_the_levels(prediction, mode):
    """With the identity as decoder the error becomes the output's own, for every level whose gain^2 is above 0.01."""
    levels = torch.linspace(0.2, 0.8, 7).tolist() if prediction == "flow" else [100.0, 300.0, 500.0, 700.0, 900.0]
    made = steps.step(prediction, levels, rows=len(levels), channels=3)
    c = latents(made, mode, (0.2, 0.2))[2].abs()
    options = {"mode": mode, "gain_norm": True, "step_min": 0.2, "step_max": 0.2}
    ratio = pixel(identity(), prediction, **options)(made) / plain_error(made)
    torch.testing.assert_close(ratio, (c**2 / (c**2).clamp(min=0.01)), rtol=1e-9, atol=0)
    l1 = pixel(identity(), prediction, distance="l1", **options)(made) / (made.out - made.target).abs().mean((1, 2, 3))
    torch.testing.assert_close(l1, ratio.sqrt(), rtol=1e-9, atol=0)
    assert (c > 0.1).any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("plan", "norms"), [("full", "own"), ("window", "own"), ("midcrop", "own"), ("midcrop", "full")]
)
def test_a_right_output_has_exactly_no_error_in_every_mode_and_plan(decoder, mode, plan, norms):
    made = steps.step("v", [300.0], rows=1, size=12, right=True)
    errors = pixel(decoder, "v", mode=mode, decode=plan, window=64, halo=16, crop_norms=norms)(made)
    assert errors.tolist() == [0]
    assert gradient(errors, made).abs().max() == 0


@pytest.mark.parametrize("distance", DISTANCES)
def test_every_distance_falls_when_the_output_gets_better(decoder, distance):
    made = steps.step("epsilon", LEVELS["epsilon"])
    better = replace(made, out=made.target + 0.3 * (made.out - made.target))
    loss = pixel(decoder, mode="anchored", distance=distance)
    assert (loss(better) < loss(made)).all()


def test_input_perturbation_is_not_an_error_of_the_network(decoder):
    made = steps.step("v", LEVELS["v"], right=True)
    drawn = replace(draw(made.batch, 0, 0, made.process, NoiseOptions(ip_noise_gamma=0.3)), level=made.draw.level)
    drawn = replace(drawn, noise=made.draw.noise, added=drawn.added.double())
    noisy = made.process.noisy(made.clean, drawn.added, drawn.level)
    disturbed = replace(made, draw=drawn, noisy=noisy)
    for mode in MODES:
        assert pixel(decoder, "v", mode=mode)(disturbed).tolist() == [0, 0]


# ---------------------------------------------------------------------------------------------------------- gradient


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("mode", MODES)
def test_gradient_equals_one_graph_under_two_log_sigmoids(dtype, mode):
    """Latent and pixel preference added, four pictures: gradients in chunks against one graph through everything."""
    tolerance: dict[str, Any] = {"rtol": 0, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-7}
    decoder = Decoder(tiny.vae().to(dtype), 0.18215)
    made = steps.step("v", [40.0, 500.0] * 2, roles=["winner", "loser"] * 2, dtype=dtype)
    plain = DISTANCES["l2"]

    def total(pixel_errors):
        latent_errors = plain_error(made)
        w, l = made.batch.rows.pairs()  # noqa: E741
        inside = [-5 * (e[w] - e[l]) for e in (latent_errors, pixel_errors)]
        return -(logsigmoid(inside[0]) + 8 * logsigmoid(inside[1])).mean()

    predicted, true, _ = latents(made, mode)
    one_graph = Decoder(decoder.vae, 0.18215, checkpointing=False)
    whole = torch.autograd.grad(total(plain(one_graph(predicted) - one_graph(true))), made.out)[0]
    ours = torch.autograd.grad(total(pixel(decoder, "v", mode=mode)(made)), made.out)[0]
    assert whole.abs().max() > 1e-6
    torch.testing.assert_close(ours, whole, **tolerance)


def test_decoder_weights_get_no_gradient_and_no_graph_is_kept(decoder):
    made = steps.step("v")
    errors = pixel(decoder, "v")(made)
    assert [tensor.shape for tensor in errors.grad_fn.saved_tensors] == [made.out.shape]
    errors.sum().backward()
    assert all(p.grad is None for p in decoder.vae.parameters())
    assert not any(p.requires_grad for p in decoder.vae.parameters())
    with torch.no_grad():
        again = pixel(decoder, "v")(made)
    assert again.grad_fn is None
    torch.testing.assert_close(again, errors.detach(), rtol=0, atol=1e-12)


def test_chunks_pass_on_the_incoming_gradient_only():
    z = torch.randn(3, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    seen: list[list[int]] = []

    def evaluate(part, rows):
        seen.append(rows.tolist())
        return (part**2).sum((1, 2, 3))

    errors = evaluate_in_chunks(z, evaluate, 2)
    assert seen == [[0, 1], [2]]
    (grad,) = torch.autograd.grad((errors * torch.tensor([1.0, 0.0, -3.0])).sum(), z)
    expected = 2 * z.detach() * torch.tensor([1.0, 0.0, -3.0]).reshape(3, 1, 1, 1)
    torch.testing.assert_close(grad, expected)


def test_pictures_decoded_together_or_one_by_one_are_the_same(decoder):
    made = steps.step("v", rows=3)
    one, two = (pixel(decoder, "v", decode_batch=n)(made) for n in (1, 2))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient(one, made), gradient(two, made), rtol=0, atol=1e-12)


# ----------------------------------------------------------------------------------------------------------- decoder


@pytest.mark.parametrize("channels", [4, 16])
def test_decoder_is_diffusers_with_and_without_checkpoints(channels):
    vae = tiny.vae(4, 0.18215) if channels == 4 else tiny.vae(16, 1.5305, 0.0609)
    vae = vae.double()
    z = torch.randn(2, channels, 8, 8, dtype=torch.float64, requires_grad=True)
    theirs = vae.decode(z).sample
    wanted = torch.autograd.grad(theirs.square().sum(), z)[0]
    for checkpointing in (True, False):
        ours = Decoder(vae, 1.0, checkpointing=checkpointing)(z)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        torch.testing.assert_close(torch.autograd.grad(ours.square().sum(), z)[0], wanted, rtol=0, atol=1e-12)


def test_checkpoints_keep_far_less(decoder):
    def kept(checkpointing: bool) -> int:
        seen: dict[int, int] = {}

        def pack(x):
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        z = torch.randn(1, 4, 8, 8, dtype=torch.float64, requires_grad=True)
        weights = {p.untyped_storage().data_ptr() for p in decoder.vae.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            out = Decoder(decoder.vae, 1.0, checkpointing=checkpointing)(z)
        assert out.requires_grad
        return sum(size for at, size in seen.items() if at not in weights)

    assert kept(True) < 0.35 * kept(False)


def test_half_precision_is_refused_for_decoding():
    cpu = torch.device("cpu")
    assert decoding_dtype(torch.bfloat16, cpu) == (torch.bfloat16, None)
    dtype, note = decoding_dtype(torch.float16, cpu)
    assert dtype == torch.float32
    assert note is not None
    assert "float16" in note


def test_half_precision_decodes_where_it_is_given_and_the_loss_is_scaled():
    cpu = torch.device("cpu")
    assert decoding_dtype(torch.float16, cpu, "fp16") == (torch.float16, None)
    with pytest.raises(UserError, match=r"vae_precision: fp16 needs the loss scaling of run\.precision = 'fp16'"):
        decoding_dtype(torch.bfloat16, cpu, "fp16")
    made = steps.step("v", dtype=torch.float32)
    exact, half = (Decoder(tiny.vae(), 0.18215, dtype=d) for d in (torch.float32, torch.float16))
    scale = 2.0**16  # what torch's scaler begins with
    one, two = (gradient(pixel(d, "v")(made) * scale, made) for d in (exact, half))
    assert torch.cosine_similarity(one.flatten(), two.flatten(), dim=0) > 0.99
    assert float((one - two).norm() / one.norm()) < 0.05


def test_bfloat16_decoder_gives_float32_errors_and_nearly_the_same_gradient():
    made = steps.step("v", dtype=torch.float32)
    exact, half = (Decoder(tiny.vae(), 0.18215, dtype=d) for d in (torch.float32, torch.bfloat16))
    assert next(half.vae.decoder.parameters()).dtype == torch.bfloat16
    one, two = (gradient(pixel(d, "v")(made), made) for d in (exact, half))
    assert pixel(half, "v")(made).dtype == torch.float32
    assert torch.cosine_similarity(one.flatten(), two.flatten(), dim=0) > 0.9


def test_tiny_autoencoder_takes_scaled_latents(tmp_path):
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    torch.manual_seed(3)
    small: Any = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1),
    )  # fmt: skip
    small.save_pretrained(tmp_path)
    made = steps.step("v", dtype=torch.float32)
    loaded = tiny_decoder(str(tmp_path), torch.device("cpu"), torch.float32)
    theirs = small.decode(made.clean).sample
    torch.testing.assert_close(loaded(made.clean), theirs)
    errors = pixel(Decoder(tiny.vae(), 0.18215), "v", decode="tiny", tiny=str(tmp_path))(made)
    assert gradient(errors, made).abs().max() > 0
    with pytest.raises(ValueError, match=r"config\.json"):
        tiny_decoder(str(tmp_path / "nowhere"), torch.device("cpu"), torch.float32)
    (weights,) = tmp_path.glob("*.safetensors")
    for damage in (lambda: weights.write_bytes(weights.read_bytes()[:100]), weights.unlink):
        damage()
        with pytest.raises(UserError, match=r"^loss\.pixel\.tiny: .* cannot be loaded \(.*\); give another folder$"):
            tiny_decoder(str(tmp_path), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("channels", [4, 16])
def test_a_tiny_decoder_is_read_from_the_files_that_comfyui_has(tmp_path, channels):
    """Its author's layout, where a clamp without weights comes first, as safetensors and as a pickle of tensors."""
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
    from safetensors.torch import save_file

    torch.manual_seed(3)
    whole: Any = AutoencoderTiny(latent_channels=channels)
    theirs = {}
    for name, value in whole.decoder.layers.state_dict().items():
        number, _, rest = name.partition(".")
        theirs[f"{int(number) + 1}.{rest}"] = value
    models = tmp_path / "models"
    for folder in ("checkpoints", "vae_approx"):
        (models / folder).mkdir(parents=True)
    family, base = ("sd15", "taesd") if channels == 4 else ("sd3.5-medium", "taesd3")
    checkpoint, single = models / "checkpoints" / "m.safetensors", models / "vae_approx" / f"{base}_decoder.pth"
    assert beside(str(checkpoint), family) is None
    torch.save(theirs, single)
    assert beside(str(checkpoint), family) == str(single)
    assert beside(str(checkpoint), "sdxl") is None and beside(None, family) is None
    other = models / "vae_approx" / f"{base}_decoder.safetensors"
    save_file(theirs, other)
    save_file(
        {f"decoder.layers.{n}": v for n, v in whole.decoder.layers.state_dict().items()}, tmp_path / "d.safetensors"
    )
    z = torch.randn(1, channels, 4, 4)
    for path in (single, other, tmp_path / "d.safetensors"):
        loaded = tiny_decoder(str(path), torch.device("cpu"), torch.float32)
        torch.testing.assert_close(loaded(z), whole.decode(z).sample)


def test_a_tiny_decoder_of_another_family_or_shape_is_one_line(tmp_path):
    from safetensors.torch import save_file

    save_file({"1.weight": torch.zeros(8, 4, 3, 3)}, tmp_path / "shape.safetensors")
    save_file({"lora_up": torch.zeros(8)}, tmp_path / "lora.safetensors")
    (tmp_path / "torn.pth").write_bytes(b"PK\x03\x04no")
    for name, reason in (("shape", "another shape"), ("lora", "no decoder of a TAESD")):
        with pytest.raises(UserError, match=rf"^loss\.pixel\.tiny: .*{reason}"):
            tiny_decoder(str(tmp_path / f"{name}.safetensors"), torch.device("cpu"), torch.float32)
    with pytest.raises(UserError, match=r"^loss\.pixel\.tiny: .* cannot be loaded"):
        tiny_decoder(str(tmp_path / "torn.pth"), torch.device("cpu"), torch.float32)
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    AutoencoderTiny(latent_channels=16).save_pretrained(tmp_path / "sd3")
    with pytest.raises(UserError, match="16 channels, the model's have 4"):
        pixel(Decoder(tiny.vae(), 0.18215), decode="tiny", tiny=str(tmp_path / "sd3"))


# ------------------------------------------------------------------------------------------------------------- plans


def big_vae(attention: bool = True) -> Any:
    """Two layers per block as the real one has, so that the halos are the real ones."""
    import diffusers.models.autoencoders.autoencoder_kl as module

    torch.manual_seed(2)
    kind: Any = module.AutoencoderKL
    return kind(
        block_out_channels=(4, 4, 4, 4), layers_per_block=2, norm_num_groups=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        mid_block_add_attention=attention,
    ).double().eval()  # fmt: skip


def test_halos_of_the_real_shape_are_18_and_13_cells():
    """The cells that a pixel depends on, by gradient, with norms and attention taken out."""
    vae = big_vae(attention=False)
    for module in list(vae.decoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    decoder = Decoder(vae, 1.0, checkpointing=False)
    assert (decoder.halo(after_middle=False), decoder.halo(after_middle=True)) == (18, 13)
    for after_middle, start in ((False, lambda z: decoder(z)), (True, lambda z: decoder.upper(z))):
        z = torch.randn(1, 4, 64, 8, dtype=torch.float64, requires_grad=True)
        (grad,) = torch.autograd.grad(start(z)[..., 32 * 8 : 33 * 8, :].abs().sum(), z)
        rows = torch.nonzero(grad.abs().sum((0, 1, 3)))[:, 0]
        halo = decoder.halo(after_middle)
        assert (rows[0].item(), rows[-1].item()) == (32 - halo, 32 + halo)


def test_midcrop_with_full_norms_is_exact_and_its_halo_is_needed():
    """The target's statistics on the target itself: the crop is the full decode's, and with one cell less it is not."""
    decoder = Decoder(big_vae(), 1.0)
    z = torch.randn(1, 4, 44, 40, dtype=torch.float64)
    with torch.no_grad():
        full = decoder(z)
        for halo, exact in ((None, True), (12, False)):
            view = Plan("midcrop", window=8, halo=halo, norms="full").view(decoder, z, torch.tensor([[0.5, 0.99]]))
            crop = full[..., view.rows, view.columns]
            difference = (view.decode(z) - crop).abs().max().item()
            assert crop.shape[-2:] == (64, 64)
            assert (difference < 1e-12) == exact
        own = Plan("midcrop", window=8).view(decoder, z, torch.tensor([[0.5, 0.99]]))
        assert (own.decode(z) - full[..., own.rows, own.columns]).abs().max() > 1e-6


@pytest.mark.parametrize("kind", ["window", "midcrop"])
def test_a_window_that_covers_the_picture_is_the_full_plan(decoder, kind):
    made = steps.step("v")
    torch.testing.assert_close(
        pixel(decoder, "v", decode=kind, window=64)(made), pixel(decoder, "v", decode="full")(made), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("kind", ["window", "midcrop"])
def test_windows_stay_inside_at_any_place_and_shape(decoder, kind):
    z = torch.randn(1, 4, 12, 9, dtype=torch.float64)
    for place in ((0.0, 0.0), (0.999, 0.999), (0.3, 0.8)):
        view: View = Plan(kind, window=10, halo=2).view(decoder, z, torch.tensor([place]))
        assert view.decode(z).shape[-2:] == (80, 72)
        assert (view.rows.stop - view.rows.start, view.columns.stop - view.columns.start) == (80, 72)
        assert 0 <= view.rows.start <= 16
        assert view.columns.start == 0


def test_windows_are_each_rows_own_and_reach_every_place():
    made = steps.step("v", rows=200, channels=3, size=4)
    decoder = identity()
    starts = {
        (v.rows.start, v.columns.start)
        for place in made.draw.window
        for v in [Plan("window", 2, 0).view(decoder, made.clean[:1], place[None])]
    }
    assert starts == {(y, x) for y in range(3) for x in range(3)}


def test_window_scores_the_same_place_of_prediction_target_and_mask():
    """Identity decoder: an error in one cell is seen by exactly the windows that hold it, unless it is masked."""
    made = steps.step("flow", [0.5], rows=1, channels=3, size=16, right=True)
    out = made.out.detach().clone()
    out[0, :, 5, 6] += 1
    mask = torch.ones(1, 1, 16, 16)
    mask[..., 5, 6] = 0
    made = replace(made, out=out)
    options = DecodeOptions(decode="window", halo=0).model_copy(update={"window": 8})
    decoder, l2 = identity(), DISTANCES["l2"]
    for y in (0.0, 0.2, 0.5, 0.9):
        at = replace(made, draw=replace(made.draw, window=torch.tensor([[y, 0.1]])))
        view = Plan("window", 8, 0).view(decoder, made.clean, at.draw.window)
        inside = view.rows.start <= 5 < view.rows.stop and view.columns.start <= 6 < view.columns.stop
        for given, seen in ((None, inside), (mask, False)):
            scored = replace(at, batch=replace(at.batch, mask=given))
            predicted, true, _ = latents(scored, "x0")
            errors = compared(predicted, true, scored, options, decoder, lambda p, t, m: l2(p - t, m))
            assert (errors.item() > 0) == seen


def test_auto_plan_goes_by_resolution(decoder):
    auto = DecodeOptions()
    assert plan_for(auto, decoder, 96, 96).kind == "full"
    assert plan_for(auto, decoder, 128, 128) == Plan("midcrop", 32, None, "own")
    assert plan_for(auto, identity(), 2000, 2000).kind == "full"
    assert plan_for(DecodeOptions(decode="window", window=128), decoder, 128, 128) == Plan("window", 16, 8, "own")


@pytest.mark.parametrize(("plan", "cosine"), [("midcrop", 0.9), ("window", 0.9)])
def test_a_windows_gradient_points_where_the_full_decodes_does(decoder, plan, cosine):
    """Against the error of a full decode scored on the same window only."""
    made = steps.step("v", [400.0], rows=1, size=24)
    predicted, true, _ = latents(made, "mixed")
    z, place = predicted.detach().requires_grad_(), torch.tensor([[0.5, 0.5]])
    view = Plan(plan, window=4, halo=None if plan == "midcrop" else 4).view(decoder, true, place)
    full = (decoder(z) - decoder(true))[..., view.rows, view.columns].square().mean()
    part = (view.decode(z) - view.decode(true)).square().mean()
    grads = [torch.autograd.grad(error, z)[0].flatten() for error in (full, part)]
    assert cosine < torch.cosine_similarity(*grads, dim=0) < 0.99999


# --------------------------------------------------------------------------------------------------- words and errors


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"distance": "l1"}, "noise"), ({"mode": "stepped", "distance": "haar"}, "noise"),
        ({"mode": "x0"}, "max_level"), ({"decode": "tiny"}, "tiny"), ({"decode": "window"}, "midcrop"),
    ],
)  # fmt: skip
def test_unwise_choices_are_said(options, word):
    (note,) = PixelOptions(**options).warnings()
    assert word in note


@pytest.mark.parametrize(
    "options",
    [{}, {"mode": "anchored", "distance": "l1"}, {"mode": "x0", "gain_norm": True}, {"mode": "x0", "max_level": 0.3}],
)
def test_wise_choices_are_not(options):
    assert PixelOptions(**options).warnings() == []


def test_pixel_needs_what_it_needs(decoder):
    with pytest.raises(ValueError, match=r"^loss\.pixel: .*; give"):
        pixel(None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"^loss\.pixel\.tiny: .*; give"):
        pixel(decoder, decode="tiny")
    with pytest.raises(ValueError, match=r"^loss\.pixel\.decode: .*; use"):
        pixel(identity(), decode="midcrop")
    with pytest.raises(ValueError, match=r"^loss\.lpl: "):
        pixel(identity(), name="lpl")
    with pytest.raises(ValidationError, match="step_min"):
        PixelOptions(step_min=0.5, step_max=0.1)


# --------------------------------------------------------------------------------------------------------------- lpl


def test_lpl_is_a_weighted_relative_error_of_features():
    true = [torch.ones(1, 4, 2, 2), torch.full((1, 4, 4, 4), 2.0)]
    predicted = [true[0] * 1.5, true[1] * 1.5]
    layer = 0.25
    assert feature_error(predicted, true, None, False).item() == pytest.approx((layer + layer / 2) / 2)
    mask = torch.tensor([1.0, 0.0]).repeat_interleave(4).expand(1, 1, 8, 8)
    assert feature_error(predicted, true, mask, False).item() == pytest.approx((layer + layer / 2) / 4)


def test_lpl_leaves_out_outliers_of_later_layers():
    torch.manual_seed(0)
    true = [torch.randn(1, 2, 16, 16) for _ in range(3)]
    true[2][0, 0, 3, 3] = 100
    predicted = [t.clone() for t in true]
    predicted[2][0, 0, 3, 3] = 0
    assert feature_error(predicted, true, None, True).item() == 0
    assert feature_error(predicted, true, None, False).item() > 0


def test_lpl_never_runs_the_blocks_it_does_not_compare(decoder):
    ran: list[int] = []
    hooks = [
        block.resnets[0].conv1.register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, block in enumerate(decoder.vae.decoder.up_blocks)
    ]
    pixel(decoder, "v", name="lpl", blocks=2)(steps.step("v", rows=1))
    for hook in hooks:
        hook.remove()
    assert set(ran) == {0, 1}
