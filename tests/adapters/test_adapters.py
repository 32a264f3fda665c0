"""Adapters on tiny real models: what is trained, what is saved, what a reference sees."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from pixelkiln.trainer.adapters import algebra, files, keys
from pixelkiln.trainer.adapters.inject import Adapter, inject, to_show
from pixelkiln.trainer.adapters.layers import NAME, START
from pixelkiln.trainer.adapters.options import AdapterOptions, block_numbers, curve
from pixelkiln.trainer.adapters.verify import probe

MIDDLE = ["mid_block", "conv_out"]
"""A few modules of a U-Net, where a test needs no more."""
nightly = pytest.mark.nightly


def made(family: str, seed: int | None = 1, **options: Any) -> tuple[tiny.Parts, Adapter]:
    parts = tiny.parts(family)
    return parts, inject(parts.denoiser, parts.text_encoders, family, AdapterOptions(**options), seed=seed)


def shake(adapter: Adapter, scale: float = 0.1, seed: int = 5) -> None:
    """An adapter that does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * scale)


def forward(adapter: Adapter) -> Tensor:
    return adapter.modules["unet"](**probe(adapter.modules["unet"])).sample


def test_q_k_and_v_keep_one_input_also_where_pefts_forward_computes() -> None:
    parts, adapter = made("sd15", rank=2)
    shake(adapter)
    parts.denoiser.bfloat16()
    for one in adapter.mounted:
        one.to(torch.float32)

    def run() -> tuple[int, list[Tensor]]:
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            out = forward(adapter)
        return sum(kept.values()), [out, *torch.autograd.grad(out.float().square().sum(), adapter.parameters())]

    lean, _ = run()
    for layer in adapter.layers:
        del layer.forward
    ours, numbers = run()
    for layer in adapter.layers:
        del layer._cast_input_dtype
    pefts, same = run()
    assert all(torch.equal(a, b) for a, b in zip(numbers, same, strict=True))
    assert max(ours, lean) < 0.95 * pefts, (lean, ours, pefts)
    assert forward(adapter).isfinite().all()  # without autocast PEFT's cast is needed, and there


# -------------------------------------------------------------------------------------------- what is trained and saved


@pytest.mark.parametrize("family", ["sd15", pytest.param("sdxl", marks=nightly), "sd3.5-medium"])
@pytest.mark.parametrize("kind", keys.KINDS)
def test_the_file_is_what_file_keys_says_and_loads_back_exactly(family: str, kind: str) -> None:
    parts, adapter = made(family, kind=kind, rank=3, alpha=1.5, conv_rank=None if "sd3" in family else 2)
    conv = None if "sd3" in family else 2
    found = adapter.state_dict()
    assert {name: tuple(value.shape) for name, value in found.items()} == dict(
        keys.file_keys(family, {"unet": parts.denoiser}, 3, conv, kind)
    )
    with adapter.off():
        bare = forward(adapter)
    assert torch.allclose(forward(adapter), bare, atol=1e-5), "a fresh adapter does nothing"
    shake(adapter)
    saved = adapter.state_dict()
    after = forward(adapter)
    assert (after - bare).norm() > 1e-3 * bare.norm()
    shake(adapter, seed=6)
    adapter.load(saved)
    assert all(torch.equal(value, saved[name]) for name, value in adapter.state_dict().items())
    assert torch.equal(forward(adapter), after)


def test_text_encoders_are_trained_by_name() -> None:
    _, adapter = made("sdxl", rank=2, text_encoders=["clip_g"], denoiser=False)
    assert set(adapter.modules) == {"te2"}
    assert len(adapter.mounted) == 3 * 6
    _, adapter = made("sd3-medium", rank=2, text_encoders=True)
    assert {one.component for one in adapter.mounted} == {"te1", "te2", "unet"}
    assert all(name.startswith(("lora_te1_text_model_encoder_layers_", "lora_te2_", "lora_unet_joint_blocks_"))
               for name in adapter.state_dict())  # fmt: skip


def test_the_start_follows_from_its_seed_alone() -> None:
    found = []
    for seed in (1, 2):
        parts = tiny.parts("sd15")
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        found.append(inject(parts.denoiser, {}, "sd15", AdapterOptions(rank=2, targets=MIDDLE), seed=7).state_dict())
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, found[0][name]) for name, value in found[1].items())


def test_alpha_is_the_rank_unless_given() -> None:
    _, adapter = made("sd15", rank=8, targets=MIDDLE)
    assert {one.alpha for one in adapter.mounted} == {8.0}
    _, adapter = made("sd15", rank=8, alpha=2.0, conv_rank=4, targets=MIDDLE)
    assert {(one.plan.site.is_kxk, one.alpha, one.layers[0].scaling[NAME]) for one in adapter.mounted} == {
        (False, 2.0, 0.25), (True, 4.0, 1.0),
    }  # fmt: skip


def test_targets_choose_modules_by_name() -> None:
    _, adapter = made("sd15", rank=2, targets=[r"attn2\.to_k", "conv_in"])
    assert {one.plan.site.paths[0].split(".")[-1] for one in adapter.mounted} == {"to_k", "conv_in"}
    with pytest.raises(ValueError, match=r"adapter.targets: nothing in the model has 'attn9'"):
        made("sd15", targets=["attn9"])


def test_q_k_v_of_sd3_are_one_adapter_on_the_fused_projection() -> None:
    """down = A, up = [Bq; Bk; Bv]: the same outputs, and the same gradients as one fused LoRA in float64."""
    parts = tiny.parts("sd3.5-medium")
    parts.denoiser.double()
    adapter = inject(parts.denoiser, {}, "sd3.5-medium", AdapterOptions(rank=3, alpha=1.5), dtype=torch.float64, seed=1)
    shake(adapter)
    one = next(m for m in adapter.mounted if m.plan.site.name.endswith("0_x_block_attn2_qkv"))
    assert one.layers[0].lora_A[NAME] is one.layers[1].lora_A[NAME] is one.layers[2].lora_A[NAME]
    file = {
        name.partition(".")[2]: v
        for name, v in adapter.state_dict().items()
        if name.startswith(one.plan.site.name + ".")
    }
    down = file["lora_down.weight"].clone().requires_grad_()
    up = file["lora_up.weight"].clone().requires_grad_()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    base = torch.cat([layer.get_base_layer()(x) for layer in one.layers], -1)
    fused = base + x @ down.T @ up.T * 0.5
    tied = torch.cat([layer(x) for layer in one.layers], -1)
    assert torch.allclose(tied, fused, atol=1e-12)
    weights = torch.randn_like(fused)
    (fused * weights).sum().backward()
    (tied * weights).sum().backward()
    parameters = one.parameters()
    assert len(parameters) == 4
    assert down.grad is not None and up.grad is not None
    assert torch.allclose(parameters["lora_down.weight"].grad, down.grad, atol=1e-12)
    gradient = torch.cat([parameters[name].grad for name in ("lora_up.weight", "lora_up.weight.1", "lora_up.weight.2")])
    assert torch.allclose(gradient, up.grad, atol=1e-12)


@pytest.mark.parametrize("kind", keys.KINDS)
def test_tied_weights_stay_tied_when_the_model_moves_and_learns(kind: str) -> None:
    _, adapter = made("sd3-medium", kind=kind, rank=2)
    adapter.modules["unet"].to(torch.bfloat16).to(torch.float32)
    parameters = adapter.parameters()
    assert len({id(p) for p in parameters}) == len(parameters)
    optimizer = torch.optim.AdamW([{"params": g["params"]} for g in adapter.parameter_groups()], lr=0.01)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(parameters)
    shake(adapter)
    for _ in range(2):
        optimizer.zero_grad()
        forward(adapter).square().mean().backward()
        optimizer.step()
    one = next(m for m in adapter.mounted if len(m.layers) == 3)
    whole = torch.cat([layer.get_delta_weight(NAME) for layer in one.layers])
    file = {n: v for n, v in one.tensors().items() if n != "dora_scale"}
    assert torch.allclose(algebra.delta(file), whole, atol=1e-5)


def test_a_quantised_base_carries_an_adapter() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    parts = tiny.parts("sd3-medium")
    for block in parts.denoiser.transformer_blocks:
        for name in ("to_q", "to_k", "to_v"):
            plain = getattr(block.attn, name)
            packed = bitsandbytes.nn.Linear4bit(plain.in_features, plain.out_features, quant_type="nf4")
            packed.load_state_dict(plain.state_dict())
            setattr(block.attn, name, packed.to("cpu"))
    adapter = inject(parts.denoiser, {}, "sd3-medium", AdapterOptions(rank=2), seed=1)
    assert adapter.state_dict()["lora_unet_joint_blocks_0_x_block_attn_qkv.lora_up.weight"].shape == (48, 2)
    shake(adapter)
    forward(adapter).mean().backward()
    assert all(p.grad is not None for p in adapter.parameters() if p.requires_grad)
    with pytest.raises(ValueError, match="lokr cannot sit on 4-bit weights"):
        inject(parts.denoiser, {}, "sd3-medium", AdapterOptions(kind="lokr"))


# ------------------------------------------------------------------------------------------------------ the reference


@pytest.mark.parametrize("kind", keys.KINDS)
def test_off_is_the_bare_model_and_restores_everything_after_an_error(kind: str) -> None:
    parts = tiny.parts("sd15")
    inputs = probe(parts.denoiser)
    bare = parts.denoiser(**inputs).sample
    adapter = inject(parts.denoiser, {}, "sd15", AdapterOptions(kind=kind, rank=2, targets=MIDDLE), seed=1)
    shake(adapter)
    frozen = adapter.parameters()[0].requires_grad_(False)
    before = {id(p): p.requires_grad for p in parts.denoiser.parameters()}
    adapted = forward(adapter)
    with pytest.raises(RuntimeError, match="inside"), adapter.off():
        assert torch.equal(forward(adapter), bare)
        with adapter.off():
            assert torch.equal(forward(adapter), bare)
        assert torch.equal(forward(adapter), bare), "the outer one still holds"
        raise RuntimeError("inside")
    assert torch.equal(forward(adapter), adapted)
    assert {id(p): p.requires_grad for p in parts.denoiser.parameters()} == before
    assert not frozen.requires_grad


@pytest.mark.parametrize("kind", keys.KINDS)
def test_the_reference_can_be_what_the_run_started_from(kind: str) -> None:
    _, adapter = made("sd3-medium", kind=kind, rank=2)
    shake(adapter)
    start = forward(adapter)
    names, count = set(adapter.state_dict()), len(adapter.parameters())
    adapter.keep_start()
    assert torch.allclose(forward(adapter), start, atol=1e-6)
    shake(adapter, seed=8)
    later = forward(adapter)
    assert (later - start).norm() > 1e-3
    with adapter.reference():
        assert torch.allclose(forward(adapter), start, atol=1e-6)
    with adapter.reference("base"), adapter.off():
        bare = forward(adapter)
    assert (bare - start).norm() > 1e-3
    assert torch.equal(forward(adapter), later)
    assert (set(adapter.state_dict()), len(adapter.parameters())) == (names, count), "the copy is not saved or trained"
    assert not any(p.requires_grad for one in adapter.mounted for p in one.parameters(START).values())
    assert all(p.requires_grad for p in adapter.parameters())


def test_a_reference_has_no_dropout() -> None:
    _, adapter = made("sd3-medium", rank=2, text_encoders=["t5"], dropout=0.5)
    adapter.train(True)
    assert any(isinstance(m, nn.Dropout) and m.training and m.p for m in adapter.modules["te3"].modules())
    with adapter.reference():
        words = torch.arange(5)[None]
        encoder = adapter.modules["te3"]
        assert torch.equal(encoder(words).last_hidden_state, encoder(words).last_hidden_state)
    assert any(isinstance(m, nn.Dropout) and m.training and m.p for m in adapter.modules["te3"].modules())


# ---------------------------------------------------------------------------------------------- groups and regularisers


def test_parameter_groups_come_text_first_with_loraplus_and_block_rates() -> None:
    options = {"loraplus": 16.0, "loraplus_text": 4.0, "up_lr": "zeros+0.5", "down_lr": [1.0] * 11 + [0.0]}
    _, adapter = made("sd15", rank=2, text_encoders=True, targets=["attn2"], **options)
    groups = adapter.parameter_groups()
    named = {group["name"]: group for group in groups}
    assert [g["component"] for g in groups][:2] == ["te", "te"]
    assert named["te up"]["lr_scale"] == 4.0
    assert named["te"]["lr_scale"] == 1.0
    for name, group in named.items():  # the second matrices begin as zeros, and they alone
        assert all(bool(p.any()) != name.endswith(" up") for p in group["params"]), name
    assert {name: group["lr_scale"] for name, group in named.items() if name.startswith("unet")} == {
        "unet block 1": 1.0, "unet block 1 up": 16.0, "unet block 12": 1.0, "unet block 12 up": 16.0,
        "unet block 16": 0.5, "unet block 16 up": 8.0, "unet block 17": 0.5, "unet block 17 up": 8.0,
    }  # fmt: skip
    assert sum(len(group["params"]) for group in groups) == len(adapter.parameters())


def test_a_block_of_rank_or_rate_0_is_left_out() -> None:
    ranks = [4] * 25
    ranks[12] = 0
    _, adapter = made("sd15", block_ranks=ranks, block_alphas=[2.0] * 25, targets=["attn1"])
    assert not any("mid_block" in one.plan.site.name for one in adapter.mounted)
    assert {(one.plan.rank, one.alpha) for one in adapter.mounted} == {(4, 2.0)}
    _, adapter = made("sd15", mid_lr=[0.0], targets=["attn1"])
    assert not any("mid_block" in one.plan.site.name for one in adapter.mounted)


def test_sd3_parts_have_ranks_of_their_own() -> None:
    _, adapter = made("sd3-medium", rank=4, context_mlp_rank=0, x_attn_rank=2, blocks="0,2")
    ranks = {one.plan.site.name.removeprefix("lora_unet_joint_blocks_"): one.plan.rank for one in adapter.mounted}
    assert {name[0] for name in ranks} == {"0", "2"}
    assert not any("context_block_mlp" in name for name in ranks)
    assert {rank for name, rank in ranks.items() if "x_block_attn" in name} == {2}
    assert {rank for name, rank in ranks.items() if "x_block_mlp" in name} == {4}


def test_kohyas_curves() -> None:
    assert curve("cosine", 3, 0.0, "down_lr") == pytest.approx([1.0, math.sin(math.pi / 4), 0.0])
    assert curve("reverse_linear+0.5", 3, 0.0, "down_lr") == [1.5, 1.0, 0.5]
    assert curve([0.1, 0.5], 2, 0.2, "mid_lr") == [0.0, 0.5]
    assert block_numbers("0-2, 5", 6) == {0, 1, 2, 5}
    with pytest.raises(ValueError, match="there is no block 9"):
        block_numbers("9", 6)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("sd15", {"x_attn_rank": 4}, "adapter.x_attn_rank: it is for SD3"),
        ("sd3-medium", {"conv_rank": 4}, "adapter.conv_rank: it is for the U-Nets"),
        ("sd15", {"block_ranks": [4] * 23}, "it has 23 numbers; sd15 has 25 blocks"),
        ("sdxl", {"down_lr": [1.0] * 12}, "adapter.down_lr: it has 12 numbers; this model needs 9"),
        ("sd15", {"text_encoders": ["t5"]}, "sd15 has no text encoder 't5'"),
    ],
)
def test_options_of_another_family_are_refused(family: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(family, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"denoiser": False}, "nothing is trained"),
        ({"kind": "loha", "dropout": 0.1}, "use rank_dropout"),
        ({"kind": "lokr", "loraplus": 4.0}, "has no up matrix"),
        ({"conv_alpha": 1.0}, "it needs conv_rank"),
        ({"down_lr": "cosin"}, "there is no curve 'cosin'"),
        ({"targets": ["("]}, "is no regular expression"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdapterOptions(**options)


def by_kohya(up: Tensor, down: Tensor, scale: float, most: float) -> float:
    """The ratio by which Kohya's tools scale a module down."""
    norm = ((up.flatten(1) @ down.flatten(1)) * scale).norm().clamp(min=most / 2)
    return float(norm.clamp(max=most) / norm)


def test_weight_norms_are_scaled_as_by_kohya() -> None:
    _, adapter = made("sd15", rank=2, alpha=1.0, conv_rank=2, targets=["up_blocks.1"])
    shake(adapter, 0.3)
    before = adapter.state_dict()
    norms = adapter.scale_weight_norms(0.5)
    after = adapter.state_dict()
    scaled = 0
    for one in adapter.mounted:
        name = one.plan.site.name
        up, down = before[f"{name}.lora_up.weight"], before[f"{name}.lora_down.weight"]
        ratio = by_kohya(up, down, one.alpha / one.plan.rank, 0.5)
        scaled += ratio != 1
        assert torch.allclose(after[f"{name}.lora_up.weight"], up * ratio**0.5, rtol=1e-4)
        assert torch.allclose(after[f"{name}.lora_down.weight"], down * ratio**0.5, rtol=1e-4)
    assert 0 < scaled < len(adapter.mounted)
    assert norms["max_norm/keys_scaled"] == scaled
    assert norms["max_norm/max_key_norm"] == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_weight_norms_of_other_kinds(kind: str) -> None:
    _, adapter = made("sd3-medium", kind=kind, rank=2)
    shake(adapter, 1.0)
    adapter.scale_weight_norms(0.25)
    norms = [float(algebra.delta(one.tensors()).norm()) for one in adapter.mounted]
    assert max(norms) == pytest.approx(0.25, rel=1e-3)


# ------------------------------------------------------------------------------------------------------------ dropout


@pytest.mark.parametrize("kind", keys.KINDS)
@pytest.mark.parametrize("which", ["dropout", "rank_dropout", "module_dropout"])
def test_dropout_is_drawn_once_per_step(kind: str, which: str) -> None:
    if which == "dropout" and kind in ("loha", "lokr"):
        return
    _, adapter = made("sd3-medium", kind=kind, rank=4, **{which: 0.5})
    shake(adapter)
    state = torch.get_rng_state()
    adapter.train(False)
    whole = forward(adapter)
    assert torch.equal(forward(adapter), whole)
    adapter.train(True)
    adapter.new_step(1)
    first = forward(adapter)
    assert not torch.equal(first, whole)
    assert torch.equal(forward(adapter), first), "the same masks until the next step"
    adapter.new_step(2)
    assert not torch.equal(forward(adapter), first)
    adapter.new_step(1)
    assert torch.equal(forward(adapter), first), "masks follow from the seed"
    if kind in ("lora", "dora"):
        assert torch.equal(torch.get_rng_state(), state)
    with adapter.off():
        bare = forward(adapter)
    adapter.train(False)
    with adapter.off():
        assert torch.equal(forward(adapter), bare)


def test_dropout_keeps_the_mean_and_its_meaning() -> None:
    """Kohya: values between the matrices, each kept value divided by 1 - p; a whole rank per sample; a whole module."""
    _, adapter = made("sd15", rank=64, dropout=0.25, targets=[r"down_blocks.0.attentions.0.proj_in"])
    one = adapter.mounted[0]
    seen: list[Tensor] = []
    del one.layers[0].forward  # PEFT's own: the lean one is compared with it in test_lean
    one.layers[0].lora_B[NAME].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    x = torch.randn(2, 8, 16, 16)
    adapter.train(False)
    one.layers[0](x)
    adapter.train(True)
    adapter.new_step(3)
    one.layers[0](x)
    ratio = seen[1] / seen[0]
    kept = ratio != 0
    assert torch.allclose(ratio[kept], torch.tensor(1 / 0.75))
    assert float(kept.float().mean()) == pytest.approx(0.75, abs=0.02)

    _, adapter = made("sd15", rank=64, rank_dropout=0.25, targets=["mid_block.*attn1.to_q"])
    layer = adapter.mounted[0].layers[0]
    del layer.forward
    seen.clear()
    layer.lora_B[NAME].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    x = torch.randn(8, 5, layer.in_features)
    adapter.train(False)
    layer(x)
    adapter.train(True)
    adapter.new_step(3)
    layer(x)
    ratio = seen[1] / seen[0]
    assert torch.equal(ratio != 0, (ratio[:, :1] != 0).expand_as(ratio)), "one mask for all tokens of a sample"
    assert not torch.equal(ratio[0] != 0, ratio[1] != 0)
    assert torch.allclose(ratio[ratio != 0], torch.tensor(1 / 0.75))


@pytest.mark.parametrize("which", ["dropout", "rank_dropout"])
def test_dropout_of_a_row_does_not_depend_on_its_company(which: str) -> None:
    _, adapter = made("sd15", rank=8, **{which: 0.5}, targets=["mid_block.*attn1.to_q"])
    layer = adapter.mounted[0].layers[0]
    shake(adapter)
    adapter.train(True)
    x = torch.randn(1, 5, layer.in_features).expand(4, -1, -1)
    adapter.new_step(1, ["a", "b", "c", "d"])
    together = layer(x)
    assert len({row.sum().item() for row in together}) == 4, "each has its own"
    adapter.new_step(1, ["c"])
    assert torch.allclose(layer(x[:1]), together[2:3])
    adapter.new_step(1, ["a", "b"])  # each caption in two parts
    parts = layer(x)
    adapter.new_step(1, ["b"])
    assert torch.allclose(layer(x[:2]), parts[2:])


def test_dropout_survives_a_recomputed_forward() -> None:
    """Gradient checkpointing runs the forward again: the gradients are those of the first run."""
    gradients = []
    for checkpointing in (False, True):
        parts, adapter = made("sd15", rank=4, dropout=0.3, rank_dropout=0.2, module_dropout=0.2, targets=["attn", "ff"])
        shake(adapter)
        if checkpointing:
            parts.denoiser.enable_gradient_checkpointing()
        adapter.train(True)
        adapter.new_step(11)
        forward(adapter).square().mean().backward()
        gradients.append([None if p.grad is None else p.grad.clone() for p in adapter.parameters()])
    for plain, again in zip(*gradients):
        assert (plain is None) == (again is None)
        if plain is not None and again is not None:
            assert torch.allclose(plain, again, atol=1e-6)


def test_dora_ranks_drop_but_not_where_it_measures_its_weight() -> None:
    """PEFT's DoRA runs its down matrix on an identity to know |W + BA|: with all of B zero, dropout changes nothing."""
    _, adapter = made("sd15", kind="dora", rank=4, dropout=0.5, targets=["mid_block.attentions"])
    adapter.train(False)
    whole = forward(adapter)
    adapter.train(True)
    adapter.new_step(1)
    assert torch.allclose(forward(adapter), whole, atol=1e-5)
    layer = next(m.layers[0] for m in adapter.mounted if m.plan.site.paths[0].endswith("to_q"))
    shake(adapter)
    x = torch.randn(3, 4, layer.in_features)
    norm = layer.lora_magnitude_vector[NAME].get_weight_norm
    seen = []
    layer.lora_magnitude_vector[NAME].get_weight_norm = lambda **kw: seen.append(kw["lora_weight"]) or norm(**kw)
    layer(x)
    assert torch.allclose(seen[0], layer.lora_B[NAME].weight @ layer.lora_A[NAME].weight, atol=1e-6)


# --------------------------------------------------------------------------------------------------------- going on


@pytest.mark.parametrize("kind", keys.KINDS)
def test_a_run_goes_on_from_a_file(kind: str, tmp_path: Path) -> None:
    """The file's kind, ranks and alphas rule, and what is saved again is the same, bit for bit."""
    _, adapter = made("sd15", kind=kind, rank=3, alpha=2.0, text_encoders=True, targets=MIDDLE)
    shake(adapter)
    path = tmp_path / "start.safetensors"
    given = {k: v.to(torch.int64) if k.endswith("alpha") else v for k, v in adapter.state_dict(torch.float16).items()}
    files.save(path, given, {})
    _, again = made("sd15", rank=16, text_encoders=True, init_from=str(path), targets=MIDDLE)
    assert again.kind == kind
    found = again.state_dict(torch.float16)
    assert set(found) == set(given)
    for name, value in given.items():
        assert torch.equal(found[name], value) if not name.endswith("alpha") else float(found[name]) == float(value)
    if kind != "lora":
        assert any(f"adapter.kind: lora is overruled by {path}, which is a {kind}" in note for note in again.notes)
    assert any("adapter.rank: 16 is overruled" in note for note in again.notes) or kind == "lokr"


@pytest.mark.parametrize("kind", keys.KINDS)
def test_a_file_finer_than_the_model_keeps_its_digits(kind: str, tmp_path: Path) -> None:
    """A float32 file on a bfloat16 model, and the frozen copy that a reference shows."""
    _, adapter = made("sd3-medium", kind=kind, rank=3)
    shake(adapter)
    path = tmp_path / "fine.safetensors"
    files.save(path, adapter.state_dict(), files.metadata("sd3-medium", kind, {}, rank=3, alpha=3.0))
    coarse = tiny.parts("sd3-medium").denoiser.bfloat16()
    again = inject(coarse, {}, "sd3-medium", AdapterOptions(kind=kind, rank=3, init_from=str(path)))
    again.keep_start()
    for name, value in adapter.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    for one in again.mounted:
        for name, value in one.tensors().items():
            assert torch.equal(one.tensors(START)[name], value), name


def test_a_preview_shows_the_whole_file(tmp_path: Path) -> None:
    """Text encoders and all, whatever the run at hand would train."""
    parts, adapter = made("sdxl", rank=2, text_encoders=True, targets=MIDDLE)
    shake(adapter)
    words = torch.arange(5)[None]
    wanted = [parts.text_encoders[name](words).last_hidden_state for name in ("te1", "te2")]
    path = tmp_path / "with text.safetensors"
    files.save(path, adapter.state_dict(), files.metadata("sdxl", "lora", {}, rank=2, alpha=2.0))
    bare = tiny.parts("sdxl")
    again = inject(bare.denoiser, bare.text_encoders, "sdxl", to_show(AdapterOptions(targets=MIDDLE), str(path)))
    for name, value in zip(("te1", "te2"), wanted):
        assert torch.allclose(bare.text_encoders[name](words).last_hidden_state, value, atol=1e-6)
    assert torch.allclose(forward(again), forward(adapter), atol=1e-6)
    assert not again.notes or all("left out" not in note for note in again.notes)


def test_a_magnitude_for_comfyui_comes_back(tmp_path: Path) -> None:
    _, adapter = made("sd15", kind="dora", rank=2, dora_for="comfyui", targets=MIDDLE)
    shake(adapter)
    exact, hosts = adapter.state_dict(), adapter.for_file(torch.float32)
    name = next(n for n in exact if n.endswith("attn1_to_q.dora_scale"))
    assert not torch.allclose(exact[name], hosts[name])
    # ComfyUI: W' = dora_scale (W + delta) / |W|; it has the true effect.
    one = next(m for m in adapter.mounted if name.startswith(m.plan.site.name + "."))
    layer = one.layers[0]
    base = layer.get_base_layer().weight
    adapted = base + layer.get_delta_weight(NAME)
    comfy = hosts[name] * adapted / base.norm(dim=1, keepdim=True)
    assert torch.allclose(comfy, exact[name] * adapted / adapted.norm(dim=1, keepdim=True), atol=1e-6)
    path = tmp_path / "comfy.safetensors"
    args = adapter.network_args()
    files.save(path, hosts, files.metadata("sd15", "dora", {}, rank=2, alpha=2.0, network_args=args))
    _, again = made("sd15", init_from=str(path), targets=MIDDLE)
    assert torch.allclose(again.state_dict()[name], exact[name], atol=1e-5)


def test_what_a_file_lacks_starts_fresh_and_what_is_not_trained_is_said(tmp_path: Path) -> None:
    _, adapter = made("sd15", rank=2, text_encoders=True, targets=MIDDLE)
    path = tmp_path / "both.safetensors"
    files.save(path, adapter.state_dict(), {})
    _, only = made("sd15", rank=2, init_from=str(path), targets=MIDDLE)
    assert any("18 modules are of parts that are not trained here" in note for note in only.notes)
    body = {k: v for k, v in adapter.state_dict().items() if k.startswith("lora_unet")}
    files.save(path, body, {})
    _, both = made("sd15", rank=2, text_encoders=True, init_from=str(path), targets=MIDDLE)
    assert any("it has no adapter for 18 modules; they start fresh" in note for note in both.notes)
    assert len(both.mounted) == len(adapter.mounted)


def test_files_that_do_not_fit_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    _, adapter = made("sd15", rank=2, targets=MIDDLE)
    good = adapter.state_dict()

    def refused(tensors: dict[str, Tensor], message: str) -> None:
        files.save(path, tensors, {})
        with pytest.raises(ValueError, match=message) as error:
            made("sd15", init_from=str(path), targets=MIDDLE)
        assert str(error.value).startswith(str(path))
        assert "\n" not in str(error.value)

    name = next(n for n in good if n.endswith("attn2_to_k.lora_down.weight"))
    refused({**good, "epoch": torch.zeros(1)}, "'epoch' and 0 more keys belong to no adapter")
    wide = {n: torch.zeros(2, 2048) if "attn2_to_k.lora_down" in n else v for n, v in good.items()}
    refused(wide, "it is an adapter for sdxl, the model is sd15")
    refused({**good, name: torch.zeros(2, 30)}, "it adapts a weight of 16 x 30, but the model's is 16 x 16")
    stranger = {f"lora_unet_down_blocks_3_attentions_0_proj_in.{n}": v for n, v in
                (("lora_up.weight", torch.zeros(4, 2)), ("lora_down.weight", torch.zeros(2, 4)))}  # fmt: skip
    refused({**good, **stranger}, "the model has no module for 'lora_unet_down_blocks_3_attentions_0_proj_in'")
    refused({"lora_unet_conv_in.diff": torch.zeros(3)}, "it is differences of norms; training starts from lora")
    refused({"something.weight": torch.zeros(3)}, "it is no adapter")
    half = {n: v for n, v in good.items() if n != name}
    refused(half, "lora_down.weight is missing")


def test_load_wants_exactly_what_was_saved() -> None:
    _, adapter = made("sd15", rank=2, targets=MIDDLE)
    found = adapter.state_dict()
    name = next(iter(found)).partition(".")[0]
    with pytest.raises(ValueError, match=f"{name}: it is not in both"):
        adapter.load({key: value for key, value in found.items() if not key.startswith(name + ".")})
    key = f"{name}.lora_up.weight"
    with pytest.raises(ValueError, match="the file is for another model"):
        adapter.load({**found, key: found[key][:1]})
