"""An adapter file by the names of a host: nothing is dropped silently. Beside ComfyUI: nodes/test_nodes_host.py."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pixelkiln.nodes import adapter
from pixelkiln.trainer.adapters import algebra, files, keys, loading, recognize
from pixelkiln.trainer.adapters.loading import for_host
from pixelkiln.trainer.errors import UserError

BLOCK = "lora_unet_mid_block_attentions_0_transformer_blocks_0"
DOTTED = "unet.mid_block.attentions.0.transformer_blocks.0"
KNOWN = {f"{BLOCK}_attn1_to_q", f"{BLOCK}_attn2_to_k", "lora_te_text_model_encoder_layers_0_mlp_fc1"}


def lora(out: int = 8, width: int = 4, rank: int = 2) -> dict[str, Tensor]:
    return {"lora_down.weight": torch.randn(rank, width), "lora_up.weight": torch.randn(out, rank)}


def named(start: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{start}.{name}": value for name, value in tensors.items()}


def modules(tensors: dict[str, Tensor]) -> set[str]:
    return set(adapter.by_module(tensors))


@pytest.mark.parametrize("start", [f"{BLOCK}_attn2_to_k", f"{DOTTED}.attn2.to_k", f"{BLOCK}_attn2_to_k_",
                                   "lycoris_mid_block_attentions_0_transformer_blocks_0_attn2_to_k",
                                   "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k",
                                   "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k"])  # fmt: skip
def test_every_spelling_that_convert_reads_is_read_here(start: str) -> None:
    found = for_host(named(start, lora()), {}, KNOWN)
    assert modules(found.tensors) == {f"{BLOCK}_attn2_to_k"}
    assert found.problems == [] and found.lost == []


def test_text_encoders_of_onetrainer_are_found() -> None:
    found = for_host({**named(f"{DOTTED}.attn2.to_k", lora()),
                      **named("clip_l.text_model.encoder.layers.0.mlp.fc1", lora())}, {}, KNOWN)  # fmt: skip
    assert modules(found.tensors) == {f"{BLOCK}_attn2_to_k", "lora_te_text_model_encoder_layers_0_mlp_fc1"}


def test_what_the_host_has_no_name_for_stays_to_be_counted() -> None:
    """Whatever is renamed: a foreign key, a module of no name and another family's module are not dropped."""
    other = {**named("unet.mid_block.attentions.9.proj_in", lora()), "junk": torch.ones(1),
             **named("lora_unet_double_blocks_0_img_attn_qkv", lora())}  # fmt: skip
    found = for_host({**named(f"{DOTTED}.attn2.to_k", lora()), **other}, {}, KNOWN)
    assert modules(found.tensors) == {f"{BLOCK}_attn2_to_k", "junk", "unet.mid_block.attentions.9.proj_in",
                                      "lora_unet_double_blocks_0_img_attn_qkv"}  # fmt: skip


@pytest.mark.parametrize("left_out", ["lora_down.weight", "lora_up.weight"])
@pytest.mark.parametrize(
    "start", [f"{BLOCK}_attn2_to_k", f"{DOTTED}.attn2.to_k", "lora_unet_double_blocks_0_img_attn_qkv"]
)
def test_half_a_module_is_lost_and_named(start: str, left_out: str) -> None:
    half = {name: value for name, value in lora().items() if name != left_out}
    found = for_host({**named(f"{BLOCK}_attn1_to_q", lora()), **named(start, half)}, {}, KNOWN)
    assert modules(found.tensors) == {f"{BLOCK}_attn1_to_q"}
    assert len(found.lost) == 1 and f"{start} without {left_out}" in found.problems[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_non_finite_values_are_a_problem(dtype: torch.dtype) -> None:
    bad = {**lora(), "lora_up.weight": torch.full((8, 2), torch.nan).to(dtype)}
    found = for_host(named(f"{BLOCK}_attn2_to_k", bad), {}, KNOWN)
    assert "1 tensors hold NaN or infinite values, as" in found.problems[0]


def test_a_bias_of_the_up_matrix_is_a_difference_of_the_bias() -> None:
    bias = torch.randn(8)
    found = for_host({**named(f"{DOTTED}.attn2.to_k", lora()), f"{DOTTED}.attn2.to_k.lora_B.bias": bias}, {}, KNOWN)
    assert torch.equal(found.tensors[f"{BLOCK}_attn2_to_k.diff_b"], bias)
    none = for_host({**named(f"{DOTTED}.attn2.to_k", lora()), f"{DOTTED}.attn2.to_k.lora_B.bias": bias * 0}, {}, KNOWN)
    assert not any("diff_b" in key for key in none.tensors)


def test_embeddings_are_named_and_no_problem() -> None:
    found = for_host({**named(f"{BLOCK}_attn2_to_k", lora()), "bundle_emb.my cat.clip_l": torch.ones(2, 8)}, {}, KNOWN)
    assert found.problems == [] and found.notes == ["it holds embeddings, which are not applied: my cat"]
    assert modules(found.tensors) == {f"{BLOCK}_attn2_to_k"}


def test_methods_without_a_patch_and_second_adapters_are_named() -> None:
    ia3 = {f"{BLOCK}_attn1_to_q.on_input": torch.ones(1)}
    twice = {**named(f"{BLOCK}_attn2_to_k", lora()), **named(f"{DOTTED}.attn2.to_k", lora())}
    found = for_host({**ia3, **twice}, {}, KNOWN)
    assert "1 modules are of a method that ComfyUI has no patch for" in found.problems[1]
    assert "2 tensors are a second adapter for a module" in found.problems[0]


def test_half_flattened_magnitudes_join_their_module() -> None:
    scale = torch.rand(8)
    found = for_host(
        {f"{BLOCK}_attn2.to_k.lora_magnitude_vector": scale, **named(f"{BLOCK}_attn2_to_k", lora())}, {}, KNOWN
    )
    assert torch.equal(found.tensors[f"{BLOCK}_attn2_to_k.dora_scale"], scale.reshape(8, 1))


def test_a_lokr_of_q_k_and_v_is_applied_by_parts() -> None:
    """No single adapter stands for the three; the host knows the thirds of the fused weight."""
    parts = {n: {"lokr_w1": torch.randn(2, 2), "lokr_w2": torch.randn(4, 4), "alpha": torch.ones(())} for n in "qkv"}
    start = "transformer_blocks_0_attn_to_"
    names = {f"lora_transformer_{start}{n}" for n in "qkv"} | {"lora_unet_joint_blocks_0_x_block_attn_qkv"}
    given = {k: v for n, part in parts.items() for k, v in named(f"lora_unet_{start}{n}_", part).items()}
    found = for_host(given, {}, names)
    assert modules(found.tensors) == {f"lora_transformer_{start}{n}" for n in "qkv"}
    tied = {k: v for n in "qkv" for k, v in named(f"lora_unet_{start}{n}_", lora()).items()}
    assert modules(for_host(tied, {}, names).tensors) == {"lora_unet_joint_blocks_0_x_block_attn_qkv"}


@pytest.mark.parametrize("wrapped", [lambda t: t, lambda t: {"state_dict": t}, lambda t: {"lora": t}])
def test_pickled_adapters_load_weights_only(wrapped, tmp_path: Path) -> None:
    tensors = named(f"{BLOCK}_attn2_to_k", lora())
    for name in ("a.pt", "a.bin"):
        torch.save(wrapped(tensors), tmp_path / name)
        assert adapter.read(tmp_path / name).tensors.keys() == tensors.keys()
    torch.save({"code": re.compile}, tmp_path / "b.pt")
    with pytest.raises(UserError, match=r"b\.pt: it (holds code|cannot be read)"):
        adapter.read(tmp_path / "b.pt")
    torch.save({"string_to_param": {"*": torch.ones(2, 768)}, "name": "cat"}, tmp_path / "c.pt")
    with pytest.raises(UserError, match="it is an embedding"):
        adapter.read(tmp_path / "c.pt")


def test_models_are_called_by_their_names() -> None:
    def block(width: int, second: bool) -> dict[str, tuple[int, ...]]:
        found = {"lora_unet_transformer_blocks_0_attn_to_q_": (width, width)}
        found["lora_unet_joint_blocks_0_x_block_attn_qkv"] = (3 * width, width)
        return {**found, "lora_unet_transformer_blocks_0_attn2_to_k_": (width, width)} if second else found

    assert adapter.model_of(block(1536, True)).startswith("SD3.5 medium (MMDiT, 1 blocks, width 1536")
    assert adapter.model_of(block(1536, False)).startswith("SD3 medium")
    assert adapter.model_of(block(2432, False)).startswith("SD3.5 large")
    only = {"lora_unet_transformer_blocks_0_attn2_to_k_": (1536, 1536)}
    assert adapter.model_of(only) == "SD3.5 medium (MMDiT, 1 blocks, width 1536)"
    unet = {"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k": (640, 2048)}
    assert adapter.model_of(unet) == "SDXL (cross-attention 2048)"


def test_messages_that_nodes_show_name_no_option_and_no_flag() -> None:
    """What the nodes load speaks neither of the configuration's keys nor of command-line flags."""
    shown = (algebra, files, keys, loading, recognize)
    for module in shown:
        tree = ast.parse(Path(module.__file__ or "").read_text("utf-8"))
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
        calls_of_messages = [
            n for n in calls if getattr(n.func, "id", getattr(n.func, "attr", "")) in ("UserError", "append", "_report")
        ]
        texts = [
            n.value
            for call in calls_of_messages
            for n in ast.walk(call)
            if isinstance(n, ast.Constant) and isinstance(n.value, str)
        ]
        assert texts or module is recognize
        for text in texts:
            assert not re.search(r"(^|\W)--\w|\badapter\.[a-z]|`\w+`", text), (module.__name__, text)
