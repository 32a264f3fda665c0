"""Files as other tools write them, or as they get damaged: what is kept, what is named, what is refused, by kind."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from pixelkiln.trainer.adapters import algebra, convert, files, keys
from pixelkiln.trainer.adapters.inject import read_start
from pixelkiln.trainer.adapters.names import network_names
from pixelkiln.trainer.adapters.options import AdapterOptions
from pixelkiln.trainer.adapters.recognize import what_is
from pixelkiln.trainer.adapters.verify import difference, verify_file
from pixelkiln.trainer.errors import UserError
from pixelkiln.trainer.families.load import meta

BLOCK = "lora_unet_mid_block_attentions_0_transformer_blocks_0"
SDXL = "lora_unet_middle_block_1_transformer_blocks_0"
Tensors = dict[str, Tensor]


@cache
def network(family: str) -> dict[str, Any]:
    denoiser, encoders = meta(family)
    return {"unet": denoiser, **encoders}


@cache
def names(family: str) -> dict[str, tuple[int, ...]]:
    return network_names(family, network(family))


def lora(out: int, width: int, rank: int = 4, alpha: float | None = 2.0, seed: int = 0) -> Tensors:
    random = torch.Generator().manual_seed(seed)
    found = {"lora_down.weight": torch.randn(rank, width, generator=random) * 0.1,
             "lora_up.weight": torch.randn(out, rank, generator=random) * 0.1}  # fmt: skip
    return found if alpha is None else {**found, "alpha": torch.tensor(alpha)}


def named(start: str, tensors: Tensors) -> Tensors:
    return {f"{start}.{name}": value for name, value in tensors.items()}


def written(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata)
    return path


def modules(path: Path) -> dict[str, Tensors]:
    tensors, metadata = files.read(path)
    return keys.read(tensors, metadata).modules


SD15 = named(f"{BLOCK}_attn2_to_k", lora(1280, 768))


# ------------------------------------------------------------------------------------------ differences beside a LoRA


def beside() -> Tensors:
    """As LyCORIS and ComfyUI write them: biases on a LoRA's module and on others, norms, a whole weight."""
    return {
        **SD15, **named(f"{BLOCK}_attn1_to_out_0", {**lora(1280, 1280), "diff_b": torch.randn(1280)}),
        **named(f"{BLOCK}_ff_net_2", {"diff_b": torch.randn(1280)}),
        **named(f"{BLOCK}_norm1", {"w_norm": torch.randn(1280), "b_norm": torch.randn(1280)}),
        **named(f"{BLOCK}_norm2", {"diff": torch.randn(1280), "diff_b": torch.randn(1280)}),
        **named(f"{BLOCK}_attn1_to_q", {"diff": torch.randn(1280, 1280) * 0.01}),
    }  # fmt: skip


@pytest.mark.parametrize("rank", [None, 2])
def test_differences_of_biases_norms_and_weights_are_kept(rank: int | None, tmp_path: Path) -> None:
    source = written(tmp_path / "a.safetensors", beside())
    target = tmp_path / "b.safetensors"
    convert.convert(source, target, rank=rank, names=names)
    was, found = modules(source), modules(target)
    assert found.keys() == was.keys()
    for name, module in was.items():
        for part in ("diff_b", "w_norm", "b_norm"):
            assert (part in found[name]) == (part in module)
            assert part not in module or torch.equal(found[name][part], module[part]), (name, part)
    assert torch.equal(found[f"{BLOCK}_norm2"]["diff"], was[f"{BLOCK}_norm2"]["diff"])
    assert convert.inspect(source)["kind"] == "mixed" and (rank is None or convert.inspect(target)["kind"] == "lora")


def test_differences_add_up_when_merged(tmp_path: Path) -> None:
    source = written(tmp_path / "a.safetensors", beside())
    target = tmp_path / "b.safetensors"
    convert.merge([(source, 1.0), (source, 0.5)], target, names=names)
    was, found = modules(source), modules(target)
    assert found.keys() == was.keys()
    for name, module in was.items():
        for part in ("diff_b", "w_norm", "b_norm", "diff"):
            assert part not in module or torch.allclose(found[name][part], 1.5 * module[part], atol=1e-6), (name, part)
        if algebra.method(module) == "lora":
            assert torch.allclose(algebra.delta(found[name]), 1.5 * algebra.delta(module), atol=1e-5)


@pytest.mark.parametrize("form", ["diffusers", "peft"])
def test_what_another_form_cannot_hold_is_named(form: Any, tmp_path: Path) -> None:
    tensors = beside()
    source = written(tmp_path / "a.safetensors", {k: v for k, v in tensors.items() if "attn1_to_q" not in k})
    target = tmp_path / ("b.safetensors" if form == "diffusers" else "b")
    notes = convert.convert(source, target, form, names=names)
    assert any(note.startswith("5 tensors (b_norm, diff, diff_b, w_norm) have no form in") for note in notes)
    found, metadata = files.read(target)
    again = keys.read(found, metadata, "sd15").modules
    key = f"{BLOCK}_attn1_to_out_0"
    assert torch.allclose(again[key]["diff_b"], tensors[f"{key}.diff_b"])
    whole = written(tmp_path / "c.safetensors", tensors)
    with pytest.raises(UserError, match=r"reads .*give --rank to make it a LoRA"):
        convert.convert(whole, tmp_path / "d", form, names=names)


def test_diffusers_applies_the_bias(tmp_path: Path) -> None:
    """The converted file in diffusers' own loader shifts the output by the bias."""
    import tiny

    bare = tiny.parts("sd15").denoiser
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
    layer = bare.get_submodule(name)
    out, width = layer.weight.shape
    module = {**lora(out, width, 2), "diff_b": torch.randn(out)}
    found, _ = convert.to_diffusers({"lora_unet_" + name.replace(".", "_"): module}, "sd15")
    x = torch.randn(3, width)
    wanted = layer(x) + x @ algebra.delta(module).T + module["diff_b"]
    bare.load_lora_adapter(found, prefix="unet")
    assert torch.allclose(bare.get_submodule(name)(x), wanted, atol=1e-5)


def test_a_bias_of_pefts_up_matrix_is_a_difference_of_the_bias() -> None:
    start = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
    bias = torch.randn(1280)
    given_ = {**named(start, lora(1280, 1280, alpha=None)), f"{start}.lora_B.bias": bias}
    config = '{"unet.r": 4, "unet.lora_alpha": 8}'
    found = keys.read(given_, {"lora_adapter_metadata": config}, "sd15").modules[f"{BLOCK}_attn1_to_out_0"]
    assert torch.allclose(found["diff_b"], 2 * bias)


# ------------------------------------------------------------------------------------------------------- what is lost


def test_names_that_fall_on_one_module_are_refused() -> None:
    same = named("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k", lora(1280, 768, seed=1))
    with pytest.raises(UserError, match="are the same tensor of one module"):
        keys.read({**SD15, **same}, {}, "sd15")
    with pytest.raises(UserError, match="is a second adapter for the same module"):
        keys.read({**named("lora_unet_joint_blocks_3_x_block_attn_qkv", lora(4608, 1536)),
                   **named("transformer.transformer_blocks.3.attn.to_q", lora(1536, 1536))})  # fmt: skip


@pytest.mark.parametrize("spelling", ["attn1.to_k", "attn1_to_k_", "attn1.to_k."])
def test_half_flattened_names_join_their_module(spelling: str, tmp_path: Path) -> None:
    """ComfyUI issue 3494: the magnitudes keep their dots. Both spellings are one module."""
    start = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_"
    scale = torch.rand(640) + 0.5
    tensors = {**named(f"{start}attn1_to_k", lora(640, 640)),
               f"{start}{spelling.rstrip('.')}.lora_magnitude_vector": scale,
               **named(f"{start}attn2_to_k", {**lora(640, 2048), "dora_scale": torch.ones(640, 1)})}  # fmt: skip
    source, target = written(tmp_path / "a.safetensors", tensors), tmp_path / "b.safetensors"
    convert.convert(source, target, names=names)
    found = modules(target)["lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k"]
    assert torch.equal(found["dora_scale"].flatten(), scale) and "lora_up.weight" in found


def test_magnitudes_over_the_inputs_stay_so_or_are_refused(tmp_path: Path) -> None:
    """LyCORIS's wd_on_output = False, OneTrainer's default."""
    name = f"{SDXL}_attn2_to_k"
    given_ = named(name, {**lora(1280, 2048), "dora_scale": torch.rand(1, 2048) + 0.5})
    source = written(tmp_path / "a.safetensors", given_)
    convert.convert(source, tmp_path / "b.safetensors", names=names)
    assert torch.equal(modules(tmp_path / "b.safetensors")[name]["dora_scale"], given_[f"{name}.dora_scale"])
    for form, target in (("diffusers", "c.safetensors"), ("peft", "c")):
        with pytest.raises(UserError, match="magnitudes are of the inputs"):
            convert.convert(source, tmp_path / target, form, names=names)
    parts = [{**lora(8, 6, seed=i), "dora_scale": torch.ones(1, 6)} for i in range(3)]
    with pytest.raises(UserError, match="magnitudes over their inputs"):
        algebra.fuse(parts)
    with pytest.raises(UserError, match="magnitudes over the inputs"):
        algebra.thirds({**lora(24, 6), "dora_scale": torch.ones(1, 6)}, 3)
    swapped = algebra.swap_halves({**lora(8, 6), "dora_scale": torch.rand(1, 6)})
    assert swapped["dora_scale"].shape == (1, 6)


def test_onetrainers_names_become_the_familys(tmp_path: Path) -> None:
    """OMI: q, k and v of SD3 numbered, the text encoders by what they are."""
    start = "transformer.joint_blocks.3.x_block.attn.qkv"
    parts = [lora(1536, 1536, seed=i) for i in range(3)]
    sd3 = {k: v for i, part in enumerate(parts) for k, v in named(f"{start}.{i}", part).items()}
    sd3 |= named("clip_l.text_model.encoder.layers.3.mlp.fc1", lora(3072, 768))
    source = written(tmp_path / "a.safetensors", sd3)
    convert.convert(source, tmp_path / "b.safetensors", names=names)
    found = modules(tmp_path / "b.safetensors")
    assert set(found) == {"lora_unet_joint_blocks_3_x_block_attn_qkv", "lora_te1_text_model_encoder_layers_3_mlp_fc1"}
    whole = torch.cat([algebra.delta(part) for part in parts])
    assert torch.allclose(algebra.delta(found["lora_unet_joint_blocks_3_x_block_attn_qkv"]), whole, atol=1e-5)
    xl = {**named("unet.middle_block.1.transformer_blocks.0.attn2.to_k", lora(1280, 2048)),
          **named("clip_g.text_model.encoder.layers.3.mlp.fc1", lora(5120, 1280))}  # fmt: skip
    found = keys.read(xl).modules
    assert set(found) == {f"{SDXL}_attn2_to_k", "lora_te2_text_model_encoder_layers_3_mlp_fc1"}


def test_names_outside_the_network_are_left_out_and_named(tmp_path: Path) -> None:
    strange = named("lora_unet_mid_block_attentions_7_proj_in", lora(1280, 1280))
    source = written(tmp_path / "a.safetensors", {**SD15, **strange, "epoch": torch.ones(1)})
    notes = convert.convert(source, tmp_path / "b.safetensors", names=names)
    assert any("1 keys belong to no adapter: 'epoch'" in note for note in notes)
    assert any(
        "1 modules are none of sd15 and are left out: lora_unet_mid_block_attentions_7_proj_in" in n for n in notes
    )
    assert set(modules(tmp_path / "b.safetensors")) == {f"{BLOCK}_attn2_to_k"}
    with pytest.raises(UserError, match="sd15 has none of its modules"):
        convert.convert(
            written(tmp_path / "c.safetensors", strange), tmp_path / "d.safetensors", family="sd15", names=names
        )


KEYS = st.dictionaries(
    st.sampled_from([
        f"{BLOCK}_attn2_to_k", "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k", f"{BLOCK}_attn2_to_k_",
        f"{BLOCK}_norm1", f"{BLOCK}_ff_net_2", "lora_te_text_model_encoder_layers_0_mlp_fc2", "bundle_emb.cat", "junk",
        "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q",
    ]),
    st.sets(st.sampled_from(["alpha", "lora_up.weight", "lora_down.weight", "diff_b", "w_norm", "dora_scale", "clip_l",
                             "lora_B.bias", "hada_w1_a"]), min_size=1, max_size=6), min_size=1, max_size=4,
)  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(KEYS)
def test_each_tensor_is_in_the_result_or_named(drawn: dict[str, set[str]]) -> None:
    """Whatever the names: a refusal, or every key is in a module of the family or among those that are left, named."""
    sizes = {"alpha": (), "lora_up.weight": (8, 2), "lora_down.weight": (2, 768), "lora_B.bias": (8,)}
    tensors = {f"{m}.{t}": torch.rand(sizes.get(t, (8,))) for m, parts in drawn.items() for t in parts}
    try:
        found = keys.read(tensors, {}, "sd15")
    except UserError as error:
        assert any(key in str(error) for key in tensors), error
        return
    count = sum(len(module) + ("diff_b" in module) for module in found.modules.values())
    used = len(tensors) - len(found.left)
    assert used <= count <= used + len(found.modules)
    assert set(found.left) <= set(tensors)
    named_ = " ".join(found.notes)
    assert all(
        "bundle_emb" in key or "equals" in why or "keys belong to no adapter" in named_
        for key, why in found.left.items()
    )
    assert set(found.modules) <= set(names("sd15"))


# ----------------------------------------------------------------------------------------------------------- crashes


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_is_computed_in_float32_and_written_as_float16(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {key: value if key.endswith("alpha") else value.to(dtype) for key, value in SD15.items()}
    source = written(tmp_path / "a.safetensors", tensors)
    wanted = algebra.delta({key.partition(".")[2]: value.float() for key, value in tensors.items()})
    for name, run in {
        "rank": lambda target: convert.convert(source, target, rank=8, names=names),
        "diffusers": lambda target: convert.convert(source, target, "diffusers", names=names),
        "merge": lambda target: convert.merge([(source, 0.25), (source, 0.75)], target, names=names),
    }.items():
        notes = run(tmp_path / f"{name}.safetensors")
        assert notes.count("its 8-bit floats are written as float16") == 1
        (module,) = modules(tmp_path / f"{name}.safetensors").values()
        assert module["lora_up.weight"].dtype == torch.float16
        assert (algebra.delta(module) - wanted).norm() < 1e-3 * wanted.norm(), name
    convert.convert(source, tmp_path / "same.safetensors", names=names)
    assert files.read(tmp_path / "same.safetensors")[0][f"{BLOCK}_attn2_to_k.lora_up.weight"].dtype == dtype
    assert not verify_file(source, network).problems


@pytest.mark.parametrize(
    ("kind", "left_out"),
    [("lora", "lora_up.weight"), ("lora", "lora_down.weight"), ("dora", "lora_up.weight"), ("loha", "hada_w2_b"),
     ("lokr", "lokr_w1"), ("lokr", "lokr_w2_b")],
)  # fmt: skip
def test_half_a_module_is_named(kind: str, left_out: str, tmp_path: Path) -> None:
    shapes = algebra.shapes(kind, (1280, 768), 4)
    tensors = named(f"{BLOCK}_attn2_to_k", {n: torch.rand(s) for n, s in shapes.items() if n != left_out})
    tensors |= named(f"{BLOCK}_ff_net_2", lora(1280, 5120))
    source = written(tmp_path / "a.safetensors", tensors)
    for options in ({}, {"to": "diffusers"}, {"rank": 2}):
        with pytest.raises(UserError, match=f"{BLOCK}_attn2_to_k.*: {left_out} is missing"):
            convert.convert(source, tmp_path / "b.safetensors", family="sd15", **options)
    with pytest.raises(UserError, match=f"{left_out} is missing"):
        convert.merge([(source, 1.0)], tmp_path / "b.safetensors", rank=4, family="sd15")
    assert f"{left_out} is missing" in verify_file(source, network, "sd15").problems[0]


def test_damaged_numbers_are_named(tmp_path: Path) -> None:
    name = f"{BLOCK}_attn2_to_k"
    nan = written(tmp_path / "a.safetensors", {**SD15, f"{name}.lora_up.weight": torch.full((1280, 4), torch.nan)})
    with pytest.raises(UserError, match=r"lora_up.weight holds NaN or infinite values"):
        convert.convert(nan, tmp_path / "b.safetensors")
    assert "lora_up.weight holds non-finite values" in verify_file(nan, network).problems[0]
    alpha = written(tmp_path / "c.safetensors", {**SD15, f"{name}.alpha": torch.ones(4)})
    with pytest.raises(UserError, match=r"alpha: it is no number but \[4\]"):
        convert.convert(alpha, tmp_path / "b.safetensors")
    peft = named("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k", lora(1280, 768, alpha=None))
    for config in ("[]", "no JSON", '{"unet.lora_alpha": 8, "unet.alpha_pattern": {"(": 3}}'):
        keys.read(peft, {"lora_adapter_metadata": config})
    with pytest.raises(UserError, match="alpha 'x', which is no number"):
        keys.read(peft, {"lora_adapter_metadata": '{"unet.lora_alpha": "x"}'})


# ---------------------------------------------------------------------------------------------------------- refusals


def test_a_lokr_of_q_k_and_v_becomes_a_lora_by_rank(tmp_path: Path) -> None:
    parts = []
    for i in range(3):
        random = torch.Generator().manual_seed(i)
        shapes = {"lokr_w1": (4, 4), "lokr_w2_a": (384, 1), "lokr_w2_b": (1, 384)}
        part = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
        parts.append({**part, "alpha": torch.tensor(1.0)})
    tensors = {
        k: v
        for n, part in zip("qkv", parts)
        for k, v in named(f"lycoris_transformer_blocks_3_attn_to_{n}", part).items()
    }
    source, target = written(tmp_path / "a.safetensors", tensors), tmp_path / "b.safetensors"
    with pytest.raises(UserError, match="--rank makes a LoRA of it"):
        convert.convert(source, target, names=names)
    convert.convert(source, target, rank=12, names=names)
    (found,) = modules(target).values()
    whole = torch.cat([algebra.delta(part) for part in parts])
    assert (algebra.delta(found) - whole).norm() < 1e-3 * whole.norm()
    notes = convert.convert(source, tmp_path / "peft", "peft", names=names)  # there they may stay apart
    assert notes == []


def test_the_family_of_text_encoders_is_named_by_the_caller(tmp_path: Path) -> None:
    source = written(tmp_path / "a.safetensors", named("lora_te_text_model_encoder_layers_0_mlp_fc1", lora(3072, 768)))
    target = tmp_path / "b.safetensors"
    with pytest.raises(UserError, match=r"adapts text encoders only.*--family: .*sd15"):
        convert.convert(source, target, names=names)
    convert.convert(source, target, family="sd15", names=names)
    assert list(keys.read(files.read(target)[0], {}, "sd15").modules) == ["lora_te_text_model_encoder_layers_0_mlp_fc1"]
    with pytest.raises(UserError, match="no key mapping is known for 'sd9'"):
        convert.convert(source, target, family="sd9", names=names)
    unet = written(tmp_path / "c.safetensors", SD15)
    with pytest.raises(UserError, match="is an adapter for sd15, not for sdxl"):
        convert.convert(unet, target, family="sdxl", names=names)


def test_embeddings_beside_an_adapter_are_named(tmp_path: Path) -> None:
    source = written(tmp_path / "a.safetensors", {**SD15, "bundle_emb.my cat.clip_l": torch.ones(2, 768)})
    notes = convert.convert(source, tmp_path / "b.safetensors", names=names)
    assert notes == ["it holds embeddings beside the adapter, which are left out: my cat"]


WEIGHT = {"x.weight": (4, 4)}
FILES: list[tuple[str, dict[str, tuple[int, ...]], str]] = [
    ("an OFT", {f"{BLOCK}_attn2_to_k.oft_blocks": (4, 8, 8)}, "OFT"),
    ("a BOFT", {f"{BLOCK}_attn2_to_k.oft_blocks": (2, 4, 8, 8)}, "BOFT"),
    ("a GLoRA", {f"{BLOCK}_attn2_to_k.{n}.weight": (4, 4) for n in ("a1", "a2", "b1", "b2")}, "GLoRA"),
    ("an (IA)3", {f"{BLOCK}_attn2_to_k.weight": (4, 1), f"{BLOCK}_attn2_to_k.on_input": ()}, "IA3"),
    (
        "a LoRA for Flux",
        {
            "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 3072),
            "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": (9216, 4),
        },
        "Flux, kohya",
    ),
    (
        "a LoRA for Flux",
        {
            "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (4, 3072),
            "transformer.single_transformer_blocks.0.attn.to_q.lora_B.weight": (3072, 4),
        },
        "Flux, diffusers",
    ),
    (
        "a LoRA for Wan",
        {
            "diffusion_model.blocks.0.self_attn.q.lora_A.weight": (4, 1536),
            "diffusion_model.blocks.0.self_attn.q.lora_B.weight": (1536, 4),
        },
        "Wan",
    ),
    ("a ControlLoRA", {"lora_controlnet": (0,), "input_blocks.0.0.weight": (4, 4, 3, 3)}, "ControlLoRA"),
    ("a ControlNet", {"controlnet_cond_embedding.conv_in.weight": (4, 3, 3, 3)}, "ControlNet"),
    ("a ControlNet-LLLite", {"lllite_unet_input_blocks_1_1.down.0.weight": (4, 4)}, "LLLite"),
    ("an IP-Adapter", {"ip_adapter.1.to_k_ip.weight": (4, 4)}, "IP-Adapter"),
    ("a whole checkpoint", {"model.diffusion_model.out.2.weight": (4, 4), "first_stage_model.x": (1,)}, "checkpoint"),
    ("the weights of a whole denoiser", {"down_blocks.0.resnets.0.conv1.weight": (4, 4)}, "U-Net"),
    ("the weights of a whole denoiser", {"joint_blocks.0.x_block.attn.qkv.weight": (4, 4)}, "MMDiT"),
    ("a VAE", {"decoder.up_blocks.0.resnets.0.conv1.weight": (4, 4)}, "VAE"),
    ("a text encoder", {"text_model.encoder.layers.0.mlp.fc1.weight": (4, 4)}, "text encoder"),
    ("an embedding", {"emb_params": (4, 768)}, "embedding, A1111"),
    ("an embedding", {"clip_l": (4, 768), "clip_g": (4, 1280)}, "embedding, SDXL"),
    ("an embedding", {"<cat-toy>": (768,)}, "embedding, diffusers"),
    ("no adapter that we know", {"model.weight": (2,)}, "nothing"),
]


@pytest.mark.parametrize(("what", "shapes"), [pytest.param(what, shapes, id=name) for what, shapes, name in FILES])
def test_other_files_are_named_as_what_they_are(what: str, shapes: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    assert what_is(shapes).startswith(what)
    source = written(tmp_path / "a.safetensors", {key: torch.zeros(shape) for key, shape in shapes.items()})
    for run in (lambda: convert.convert(source, tmp_path / "b.safetensors"),
                lambda: convert.merge([(source, 1.0)], tmp_path / "b.safetensors")):  # fmt: skip
        with pytest.raises(UserError) as error:
            run()
        assert what.replace("(", "").replace(")", "") in str(error.value).replace("(", "").replace(")", "")
    assert convert.inspect(source)["what"].startswith(what)


# ------------------------------------------------------------------------------------------------------ verification


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_any_file_is_verified(family: str, tmp_path: Path) -> None:
    block, width = (BLOCK, 768) if family == "sd15" else (SDXL, 2048)
    good = {**named(f"{block}_attn2_to_k", lora(1280, width)), **named(f"{block}_ff_net_2", lora(1280, 5120))}
    found = verify_file(written(tmp_path / "a.safetensors", good), network)
    assert found.problems == []
    assert found.lines[0] == f"2 of 2 modules fit the network of {family}"
    assert found.lines[-1].startswith("diffusers reads 2 modules with the same effect")
    bad = {**good, **named(f"{block}_attn1_to_q", lora(1280, 99)), **named(f"{block}_nowhere", lora(4, 4)),
           "junk": torch.ones(1)}  # fmt: skip
    problems = " ".join(verify_file(written(tmp_path / "b.safetensors", bad), network).problems)
    for words in (f"{block}_nowhere is no module", f"{block}_attn1_to_q (its tensors do not", "junk is not applied"):
        assert words in problems
    still = {key: torch.zeros_like(value) if "lora_up" in key else value for key, value in good.items()}
    assert "no effect" in verify_file(written(tmp_path / "c.safetensors", still), network).problems[0]


def test_what_is_written_is_compared_with_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(tmp_path / "a.safetensors", SD15)
    honest = convert._flat
    monkeypatch.setattr(
        convert, "_flat", lambda modules: {k: v * 2 if "up" in k else v for k, v in honest(modules).items()}
    )
    with pytest.raises(AssertionError, match="would not have the effect"):
        convert.convert(source, tmp_path / "b.safetensors", names=names)
    assert not (tmp_path / "b.safetensors").exists()
    module = {key.partition(".")[2]: value for key, value in SD15.items()}
    for changed in ({"alpha": torch.tensor(1.0)}, {"diff_b": torch.ones(1280)}):
        assert bool(difference(module, {**module, **changed})[1])


@pytest.mark.parametrize(
    ("part", "message"), [("diff_b", "differences of biases"), ("dora_scale", "magnitudes are of the inputs")]
)
def test_a_start_that_training_cannot_hold_is_refused(part: str, message: str, tmp_path: Path) -> None:
    value = torch.ones(1280) if part == "diff_b" else torch.ones(1, 768)
    source = written(tmp_path / "a.safetensors", {**SD15, f"{BLOCK}_attn2_to_k.{part}": value})
    with pytest.raises(UserError, match=message):
        read_start(AdapterOptions(init_from=str(source)), "sd15")
