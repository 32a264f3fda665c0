"""Names in adapter files: what Kohya's tools write, and what everybody else's files are called."""

from __future__ import annotations

import hashlib
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pixelkiln.trainer.adapters import algebra, keys
from pixelkiln.trainer.adapters.mappings.mapping import known
from pixelkiln.trainer.adapters.names import (
    DENOISER,
    all_sites,
    encoder,
    file_path,
    kernel,
    model_paths,
    unflatten,
)
from pixelkiln.trainer.adapters.options import AdapterOptions
from pixelkiln.trainer.adapters.parse import parse
from pixelkiln.trainer.adapters.plan import plan
from pixelkiln.trainer.families.load import meta

# sha256 of the sorted lines "name [shape]" of files that sd-scripts 48d368fa wrote at rank 16.
KOHYA = {
    "sd15": "5a6e9103f3a59c0287c26e5232cfe77703739dd525a577d813eeeb42d2a61df8",
    "sdxl": "3f4f0a268db89dace1a4c161acd980b64fca6bb9908bc0cb53473517a0620731",
    "sd3-medium": "a8b4de6e9761d6001b21667d36ac7091134973f7e38227019534c8799dc2d21d",
}
COUNTS = {
    "sd15": (72, 192), "sd2": (138, 192), "sdxl": (264, 722), "sd3-medium": (264, 237), "sd3.5-medium": (264, 263),
    "sd3.5-large": (264, 377),
}  # fmt: skip
"""Modules of the CLIP text encoders and of the denoiser, from the same program."""


@cache
def full(family: str) -> dict[str, nn.Module]:
    denoiser, encoders = meta(family)
    return {DENOISER: denoiser, **encoders}


def without_t5(family: str) -> dict[str, nn.Module]:
    return {name: module for name, module in full(family).items() if name != "te3"}


@pytest.mark.parametrize("family", KOHYA)
def test_a_run_writes_kohyas_tensors(family: str) -> None:
    found = keys.file_keys(family, without_t5(family))
    lines = sorted(f"{name} {list(shape)}\n" for name, shape in found)
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == KOHYA[family], lines[:5]


@pytest.mark.parametrize("family", known())
def test_as_many_modules_as_kohya(family: str) -> None:
    found = {name.split(".")[0] for name, _ in keys.file_keys(family, without_t5(family))}
    text = {name for name in found if name.startswith("lora_te")}
    assert (len(text), len(found - text)) == COUNTS[family]


@pytest.mark.parametrize(("family", "more"), [("sd15", 86), ("sdxl", 66)])
def test_conv_rank_takes_the_resnets_too(family: str, more: int) -> None:
    body = {DENOISER: full(family)[DENOISER]}
    found = dict(keys.file_keys(family, body, rank=16, conv_rank=8))
    assert len(found) // 3 == COUNTS[family][1] + more
    block = "down_blocks_1_resnets_0" if family == "sd15" else "input_blocks_4_0"
    conv, linear = ("conv1", "time_emb_proj") if family == "sd15" else ("in_layers_2", "emb_layers_1")
    assert found[f"lora_unet_{block}_{conv}.lora_down.weight"] == (8, 320, 3, 3)
    assert found[f"lora_unet_{block}_{conv}.lora_up.weight"] == (640, 8, 1, 1)
    assert found[f"lora_unet_{block}_{linear}.lora_down.weight"] == (16, 1280)  # a Linear takes the plain rank


def test_sd3_embedders_and_t5() -> None:
    family = "sd3-medium"
    sites = all_sites(family, full(family))
    planned = plan(family, sites, AdapterOptions(embedder_ranks=[4, 0, 5, 6, 7, 8], text_encoders=["t5"]))
    rest = {p.site.name: p.rank for p in planned if p.site.component == DENOISER and p.site.role == "rest"}
    assert rest == {
        "lora_unet_context_embedder": 4, "lora_unet_x_embedder_proj": 5, "lora_unet_y_embedder_mlp_0": 6,
        "lora_unet_y_embedder_mlp_2": 6, "lora_unet_final_layer_adaLN_modulation_1": 7,
        "lora_unet_final_layer_linear": 8,
    }  # fmt: skip
    t5 = [p.site.name for p in planned if p.site.component == "te3"]
    assert len(t5) == 168
    assert "lora_te3_encoder_block_23_layer_1_DenseReluDense_wi_1" in t5


@pytest.mark.parametrize("family", known())
def test_every_name_leads_back_to_its_module(family: str) -> None:
    for site in all_sites(family, full(family)):
        ref = parse(f"{site.name}.alpha")
        if site.role == "rest" and site.component != DENOISER:
            continue
        assert ref is not None, site.name
        assert ref.component == site.component
        flat = unflatten(site.name.removeprefix(f"lora_{site.component}_"))
        paths = tuple(f"text_model.{p}" if p.startswith("encoder.layers") else p for p in site.paths)
        assert model_paths(family, site.component, flat) == paths
        assert kernel(family, site.name) == site.shape[2:]


def test_families_without_a_text_encoder_say_which_they_have() -> None:
    assert (encoder("sdxl", "clip_g"), encoder("sd15", "clip_l"), encoder("sd3.5-large", "te3")) == ("te2", "te", "te3")
    with pytest.raises(ValueError, match="sdxl has no text encoder 't5'; there is: clip_l, clip_g"):
        encoder("sdxl", "t5")


# ----------------------------------------------------------------------------------------------- family and kind


@pytest.mark.parametrize("family", known())
@pytest.mark.parametrize("kind", keys.KINDS)
def test_family_and_kind_are_told_from_shapes(family: str, kind: str) -> None:
    body = {DENOISER: full(family)[DENOISER]}
    facts = keys.identify(dict(keys.file_keys(family, body, rank=4, kind=kind)))
    assert (facts.family, facts.kind, facts.naming, facts.foreign) == (family, kind, "kohya", ())
    assert facts.modules == {DENOISER: COUNTS[family][1]}


def test_text_encoders_alone_tell_the_family_only_with_metadata() -> None:
    found = dict(keys.file_keys("sdxl", {"te1": full("sdxl")["te1"]}))
    assert keys.identify(found).family is None
    assert keys.identify(found, {"ss_base_model_version": "sdxl_base_v1-0"}).family == "sdxl"
    both = {name: full("sd3-medium")[name] for name in ("te1", "te2")}
    facts = keys.identify(
        dict(keys.file_keys("sd3-medium", both)), {"modelspec.architecture": "stable-diffusion-3-medium/lora"}
    )
    assert facts.family == "sd3-medium"
    assert facts.modules == {"te1": 72, "te2": 192}


@pytest.mark.parametrize(
    ("key", "component", "path", "tensor", "naming"),
    [
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight", "unet",
         "mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "lora_down.weight", "diffusers"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight", "unet",
         "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0", "lora_up.weight", "diffusers"),
        ("unet.down_blocks.0.attentions.0.proj_in.lora.down.weight", "unet", "down_blocks.0.attentions.0.proj_in",
         "lora_down.weight", "diffusers"),
        ("text_encoder.text_model.encoder.layers.3.self_attn.to_q_lora.down.weight", "te",
         "text_model.encoder.layers.3.self_attn.q_proj", "lora_down.weight", "diffusers"),
        ("text_encoder_2.text_model.encoder.layers.3.mlp.fc1.lora_linear_layer.up.weight", "te2",
         "text_model.encoder.layers.3.mlp.fc1", "lora_up.weight", "diffusers"),
        ("text_encoder.encoder.layers.3.mlp.fc1.lora_A.weight", "te", "text_model.encoder.layers.3.mlp.fc1",
         "lora_down.weight", "diffusers"),
        ("base_model.model.up_blocks.1.attentions.2.proj_out.lora_B.default.weight", "unet",
         "up_blocks.1.attentions.2.proj_out", "lora_up.weight", "peft"),
        ("transformer.transformer_blocks.7.attn.add_k_proj.lora_A.weight", "unet",
         "transformer_blocks.7.attn.add_k_proj", "lora_down.weight", "diffusers"),
        ("transformer.transformer_blocks.7.attn.to_q.lora_magnitude_vector", "unet", "transformer_blocks.7.attn.to_q",
         "dora_scale", "diffusers"),
        ("lora_transformer_transformer_blocks_7_attn_to_out_0.alpha", "unet", "transformer_blocks.7.attn.to_out.0",
         "alpha", "kohya"),
        ("lycoris_down_blocks_0_resnets_0_time_emb_proj.lokr_w1", "unet", "down_blocks.0.resnets.0.time_emb_proj",
         "lokr_w1", "kohya"),
        ("diffusion_model.input_blocks.4.1.proj_in.lora_up.weight", "unet", "down_blocks.1.attentions.0.proj_in",
         "lora_up.weight", "comfyui"),
        ("lora_unet_output_blocks_5_2_conv.lora_down.weight", "unet", "up_blocks.1.upsamplers.0.conv",
         "lora_down.weight", "kohya"),
        ("unet.down_blocks.0.attentions.0.proj_in.lora_B.bias", "unet", "down_blocks.0.attentions.0.proj_in",
         "lora_up.bias", "diffusers"),
        ("clip_g.text_model.encoder.layers.3.mlp.fc1.lora_up.weight", "te2", "text_model.encoder.layers.3.mlp.fc1",
         "lora_up.weight", "omi"),
        ("transformer.joint_blocks.3.context_block.attn.qkv.1.lora_down.weight", "unet",
         "transformer_blocks.3.attn.add_k_proj", "lora_down.weight", "diffusers"),
        ("lora_unet_transformer_blocks_0_attn2_to_out_0_.alpha", "unet", "transformer_blocks.0.attn2.to_out.0", "alpha",
         "kohya"),
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1.to_out.0.lora_magnitude_vector", "unet",
         "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0", "dora_scale", "kohya"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc2.hada_w1_a", "te", "text_model.encoder.layers.0.mlp.fc2",
         "hada_w1_a", "kohya"),
    ],
)  # fmt: skip
def test_keys_of_other_programs(key: str, component: str, path: str, tensor: str, naming: str) -> None:
    ref = parse(key)
    assert ref is not None
    assert (ref.component, ref.path, ref.tensor, ref.naming) == (component, path, tensor, naming)


@pytest.mark.parametrize("key", ["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight", "epoch", "model.weight",
                                 "unet.down_blocks.0.attentions.0.proj_in.bias"])  # fmt: skip
def test_keys_that_belong_to_no_adapter_of_ours(key: str) -> None:
    assert parse(key) is None


# ------------------------------------------------------------------------------------------- any file -> Kohya's


def lora(out: int, width: int, rank: int = 2, alpha: float | None = None) -> dict[str, Tensor]:
    found = {"lora_down.weight": torch.randn(rank, width), "lora_up.weight": torch.randn(out, rank)}
    return found if alpha is None else {**found, "alpha": torch.tensor(alpha)}


def named(start: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{start}.{name}": value for name, value in tensors.items()}


def test_kohyas_own_tensors_pass_as_they_are() -> None:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    given_ = {**named(name, lora(320, 768)), f"{name}.alpha": torch.tensor(2, dtype=torch.int64)}
    found, notes = keys.to_kohya(given_)
    assert notes == []
    assert all(found[key] is value for key, value in given_.items())
    assert (
        algebra.scale_of({"alpha": found[f"{name}.alpha"], "lora_down.weight": found[f"{name}.lora_down.weight"]}) == 1
    )


def test_sdxl_in_diffusers_names_becomes_kohyas() -> None:
    found, _ = keys.to_kohya(named("unet.down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k", lora(640, 2048)))
    assert sorted(found) == [
        "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k.lora_down.weight",
        "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k.lora_up.weight",
    ]


def test_peft_alphas_come_from_its_configuration() -> None:
    config = '{"unet.r": 2, "unet.lora_alpha": 8, "unet.alpha_pattern": {"attn2.to_k": 4}, "unet.use_rslora": false}'
    start = "unet.mid_block.attentions.0.transformer_blocks.0"
    given_ = named(f"{start}.attn2.to_k", lora(320, 768)) | named(f"{start}.attn1.to_q", lora(320, 320))
    found, _ = keys.to_kohya(given_, {"lora_adapter_metadata": config})
    start = start.removeprefix("unet.").replace(".", "_")
    assert float(found[f"lora_unet_{start}_attn2_to_k.alpha"]) == 4
    assert float(found[f"lora_unet_{start}_attn1_to_q.alpha"]) == 8
    found, _ = keys.to_kohya(given_, {"lora_adapter_metadata": config.replace("false", "true")})
    assert float(found[f"lora_unet_{start}_attn1_to_q.alpha"]) == pytest.approx(8 * 2**0.5)  # rsLoRA: alpha / sqrt(r)


def test_a_file_of_no_family_is_refused() -> None:
    with pytest.raises(ValueError, match="fit none of the families"):
        keys.to_kohya({"lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": torch.zeros(2, 2)})


ATTENTION = "transformer.transformer_blocks.3.attn.to_"
FUSED = "lora_unet_joint_blocks_3_x_block_attn_qkv"


def test_tied_q_k_v_fuse_exactly() -> None:
    parts = [lora(1536, 1536, alpha=1.0) for _ in "qkv"]
    for part in parts[1:]:
        part["lora_down.weight"] = parts[0]["lora_down.weight"].clone()
    found, notes = keys.to_kohya({k: v for n, p in zip("qkv", parts) for k, v in named(ATTENTION + n, p).items()})
    assert notes == []
    assert found[f"{FUSED}.lora_down.weight"].shape == (2, 1536)
    assert torch.equal(found[f"{FUSED}.lora_up.weight"], torch.cat([p["lora_up.weight"] for p in parts]))
    assert float(found[f"{FUSED}.alpha"]) == 1


def test_untied_q_k_v_become_one_of_three_times_the_rank_and_alpha() -> None:
    parts = [lora(1536, 1536, alpha=1.0) for _ in "qkv"]
    found, notes = keys.to_kohya({k: v for n, p in zip("qkv", parts) for k, v in named(ATTENTION + n, p).items()})
    assert "three times the rank and alpha" in notes[0]
    fused = {name.partition(".")[2]: value for name, value in found.items()}
    assert (algebra.rank_of(fused), algebra.alpha_of(fused)) == (6, 3.0)
    whole = torch.cat([algebra.delta(part) for part in parts])
    assert torch.allclose(algebra.delta(fused), whole, atol=1e-5)


def test_a_missing_k_adds_nothing() -> None:
    given_ = named(ATTENTION + "q", lora(1536, 1536)) | named(ATTENTION + "v", lora(1536, 1536))
    found, _ = keys.to_kohya(given_)
    fused = {name.partition(".")[2]: value for name, value in found.items()}
    assert algebra.delta(fused).chunk(3)[1].abs().max() == 0


def test_split_qkv_files_say_a_third_of_their_strength() -> None:
    """sd-scripts issue 2204: trained as three of rank 2 at alpha 2, saved as rank 6 with alpha still 2."""
    given_ = named(FUSED, lora(4608, 1536, rank=6, alpha=2.0)) | named(
        "lora_unet_joint_blocks_3_x_block_attn_proj", lora(1536, 1536, alpha=2.0)
    )
    found, notes = keys.to_kohya(given_, {"ss_network_args": '{"split_qkv": "True"}'})
    assert float(found[f"{FUSED}.alpha"]) == 6
    assert float(found["lora_unet_joint_blocks_3_x_block_attn_proj.alpha"]) == 2
    assert "a third of their strength" in notes[0]


def test_last_sd3_blocks_halves_are_exchanged() -> None:
    part = lora(3072, 1536)
    found, _ = keys.to_kohya(named("transformer.transformer_blocks.23.norm1_context.linear", part))
    up = found["lora_unet_joint_blocks_23_context_block_adaLN_modulation_1.lora_up.weight"]
    assert torch.equal(up, torch.cat(part["lora_up.weight"].chunk(2)[::-1]))
    other = lora(9216, 1536)
    found, _ = keys.to_kohya(named("transformer.transformer_blocks.22.norm1_context.linear", other))
    up = found["lora_unet_joint_blocks_22_context_block_adaLN_modulation_1.lora_up.weight"]
    assert torch.equal(up, other["lora_up.weight"])


# ------------------------------------------------------------------------------------------------------- the algebra

KIND = st.sampled_from(keys.KINDS)


def drawn(kind: str, shape: tuple[int, ...], rank: int, parts: int = 1, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(size, generator=generator) if size else torch.tensor(float(rank) / 2)
        for name, size in algebra.shapes(kind, shape, rank, parts).items()
    }


@settings(deadline=None, max_examples=20)
@given(KIND, st.integers(1, 12), st.sampled_from([(24, 10), (36, 16), (12, 9)]), st.integers(0, 99))
def test_taking_q_k_v_apart_and_together_again(kind: str, rank: int, shape: tuple[int, int], seed: int) -> None:
    whole = drawn(kind, shape, rank, 3, seed)
    parts = algebra.thirds(whole, 3)
    assert algebra.tied(parts)
    again, was_tied = algebra.fuse(parts)
    assert was_tied
    assert all(torch.equal(again[name], value) for name, value in whole.items())
    if kind != "dora":
        assert torch.allclose(torch.cat([algebra.delta(p) for p in parts]), algebra.delta(whole), atol=1e-4)


@settings(deadline=None, max_examples=20)
@given(KIND, st.integers(1, 12), st.sampled_from([(24, 10), (36, 16), (8, 9)]), st.integers(0, 99))
def test_exchanging_halves_exchanges_the_differences_rows(
    kind: str, rank: int, shape: tuple[int, int], seed: int
) -> None:
    one = drawn(kind, shape, rank, 1, seed)
    if "lokr_w1" in one and one["lokr_w1"].shape[0] % 2:
        return
    swapped = algebra.swap_halves(one)
    assert torch.allclose(algebra.delta(swapped), torch.cat(algebra.delta(one).chunk(2)[::-1]), atol=1e-5)
    assert all(torch.equal(algebra.swap_halves(swapped)[name], value) for name, value in one.items())


def test_untied_split_gives_back_what_was_fused() -> None:
    parts = [lora(8, 6, alpha=1.0) for _ in "qkv"]
    fused, _ = algebra.fuse(parts)
    for part, was in zip(algebra.split(fused, 3), parts):
        assert all(torch.equal(part[name], was[name]) for name in ("lora_down.weight", "lora_up.weight"))
        assert algebra.scale_of(part) == pytest.approx(algebra.scale_of(was))


def test_a_kernel_in_the_middle_is_the_same_function() -> None:
    tucker = {
        "lora_down.weight": torch.randn(4, 6, 1, 1), "lora_mid.weight": torch.randn(4, 4, 3, 3),
        "lora_up.weight": torch.randn(5, 4, 1, 1), "alpha": torch.tensor(2.0),
    }  # fmt: skip
    x = torch.randn(1, 6, 5, 5)
    inner = nn.functional.conv2d(nn.functional.conv2d(x, tucker["lora_down.weight"]), tucker["lora_mid.weight"])
    wanted = nn.functional.conv2d(inner, tucker["lora_up.weight"]) * 2.0 / 4
    plain, changed = algebra.as_plain(tucker)
    assert changed
    for tensors in (tucker, plain):
        assert torch.allclose(nn.functional.conv2d(x, algebra.delta(tensors)), wanted, atol=1e-4)


def test_lokr_widths_split_as_in_peft() -> None:
    from peft.tuners.lokr.layer import factorization

    for dimension in (1, 7, 60, 127, 128, 250, 360, 1280, 2432, 10240):
        for factor in (-1, 2, 3, 4, 8, 16):
            assert algebra.factorization(dimension, factor) == factorization(dimension, factor)


def test_ldm_paths_of_sd15_are_read_too() -> None:
    assert file_path("sd15", DENOISER, "down_blocks.0.attentions.0.proj_in") == (
        "down_blocks.0.attentions.0.proj_in",
        None,
    )
    found, _ = keys.to_kohya(named("lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k", lora(320, 768)))
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight" in found


@pytest.mark.parametrize("alphas", [(1.0, 2.0, -3.0), (0.0, 2.0, 1.0), (0.0, 0.0, 0.0)])
def test_fused_parts_keep_each_its_strength(alphas: tuple[float, ...]) -> None:
    parts = [lora(8, 6, alpha=alpha) for alpha in alphas]
    fused, _ = algebra.fuse(parts)
    assert torch.allclose(algebra.delta(fused), torch.cat([algebra.delta(part) for part in parts]), atol=1e-5)
