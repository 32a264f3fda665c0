"""Adapter files of any shape, type and age: a result of the same effect, or one line. No traceback, no code is run."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from pixelkiln.trainer.adapters import algebra, convert, files, keys, ranks
from pixelkiln.trainer.adapters.loading import for_host
from pixelkiln.trainer.adapters.verify import verify_file
from pixelkiln.trainer.errors import UserError

SITE = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
CONV = "lora_unet_mid_block_resnets_0_conv1"


def lora(out: int = 6, width: int = 4, rank: int = 2, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {"lora_down.weight": torch.randn(rank, width).to(dtype), "lora_up.weight": torch.randn(out, rank).to(dtype)}


def named(site: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{site}.{name}": value for name, value in tensors.items()}


def attempt(action: Any) -> Any:
    """What a command answers: its result, or its line. Anything else is a defect."""
    try:
        return action()
    except UserError as error:
        assert "\n" not in str(error)
        return error


# ------------------------------------------------------------------------------------------------------- the files


def header(content: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(content)) + content + data


def entry(**more: Any) -> bytes:
    return json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **more}}).encode()


ONE = b'"a.alpha":{"dtype":"F32","shape":[],"data_offsets":[0,4]}'
BROKEN = {
    "a key twice": (header(b"{" + ONE + b"," + ONE + b"}", bytes(4)), "is in its header twice"),
    "nested too deep": (header(b'{"a":' + b"[" * 100_000), "no safetensors file"),
    "offsets in quotes": (header(entry(data_offsets=["x", "y"]), bytes(4)), "no safetensors file"),
    "an endless shape": (header(entry(shape=[1e400]), bytes(4)), "no safetensors file"),
    "a negative side": (header(entry(shape=[-1]), bytes(4)), "cannot be read"),
    "an unknown type": (header(entry(dtype="F99"), bytes(4)), "cannot be read"),
    "a hole": (header(entry(data_offsets=[4, 8]), bytes(8)), "cannot be read"),
    "more than it says": (header(entry(), bytes(99)), "cannot be read"),
    "metadata that is a list": (header(b'{"__metadata__":[1],' + entry()[1:], bytes(4)), "no safetensors file"),
    "a page of a website": (b"<!DOCTYPE html><html>denied</html>", "no safetensors file"),
    "a pointer of git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "no safetensors file"),
    "a header larger than the file": (struct.pack("<Q", 90_000_000) + b"{", "cut short inside its header"),
    "nothing": (b"", "it is empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_safetensors_are_one_line(name: str, tmp_path: Path) -> None:
    content, message = BROKEN[name]
    (tmp_path / "a.safetensors").write_bytes(content)
    for action in (files.read, convert.inspect):
        with pytest.raises(UserError, match=message):
            action(tmp_path / "a.safetensors")


class Runs:
    """What a pickle may do: call anything."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self) -> Any:
        return (Path.touch, (self.proof,))


@pytest.mark.parametrize("ending", [".pt", ".bin", ".ckpt", ".pth", ".safetensors"])
@pytest.mark.parametrize("form", ["pickle", "torch", "nested", "beside tensors"])
def test_no_pickle_runs_code(ending: str, form: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path, proof = tmp_path / f"a{ending}", tmp_path / "proof"
    value: Any = {
        "nested": {"state_dict": {"a": Runs(proof)}},
        "beside tensors": {"a": torch.ones(1), "b": Runs(proof)},
    }
    if form == "pickle":
        path.write_bytes(pickle.dumps(Runs(proof)))
    else:
        torch.save(value.get(form, Runs(proof)), path)
    with pytest.raises(UserError):
        files.read(path)
    assert not proof.exists()
    assert not recwarn.list


@pytest.mark.parametrize("value", [[torch.ones(1)], {}, {"a": torch.ones(2, 2).to_sparse()},
                                   {"a": torch.empty(2, device="meta")}, {"a": torch.ones(1), "step": 3}])  # fmt: skip
def test_a_pickle_of_anything_but_plain_tensors_is_one_line(value: Any, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "a.pt")
    with pytest.raises(UserError, match="holds no table of tensors"):
        files.read(tmp_path / "a.pt")


# ----------------------------------------------------------------------------------------------------- the modules

DAMAGED: dict[str, tuple[dict[str, Tensor], str]] = {
    "whole numbers": (lora(dtype=torch.int8), "holds int8"), "switches": (lora(dtype=torch.bool), "holds bool"),
    "complex": (lora(dtype=torch.complex64), "holds complex64"),
    "ranks that differ": ({**lora(), "lora_up.weight": torch.ones(6, 3)}, "do not make up one weight"),
    "a vector": ({**lora(), "lora_up.weight": torch.ones(6)}, "no matrix"),
    "a number": ({**lora(), "lora_down.weight": torch.tensor(1.0)}, "no matrix"),
    "a kernel in the up matrix": ({**lora(), "lora_up.weight": torch.ones(6, 2, 3, 3)}, "do not make up one weight"),
    "two methods": ({**lora(), "hada_w1_a": torch.ones(6, 2), "hada_w1_b": torch.ones(2, 4),
                     "hada_w2_a": torch.ones(6, 2), "hada_w2_b": torch.ones(2, 4)}, "more than one adapter"),
    "lora and a difference": ({**lora(), "diff": torch.ones(6, 4)}, "more than one adapter"),
    "lokr twice": ({"lokr_w1": torch.ones(2, 2), "lokr_w2": torch.ones(3, 2), "lokr_w2_a": torch.ones(3, 1),
                    "lokr_w2_b": torch.ones(1, 2)}, "more than one adapter"),
    "half a core": ({"hada_t1": torch.ones(2, 2, 3, 3), **{f"hada_w{n}_{p}": torch.ones(2, 6) for n in (1, 2)
                     for p in "ab"}}, "do not make up one weight"),
    "a bias of another length": ({**lora(), "diff_b": torch.ones(5)}, "diff_b has 5 values"),
    "a bias of the up matrix of another length": ({**lora(), "lora_up.bias": torch.ones(5)}, "diff_b has 5 values"),
    "an alpha of several numbers": ({**lora(), "alpha": torch.ones(2)}, "it is no number"),
    "an alpha of none": ({**lora(), "alpha": torch.ones(0)}, "it is no number"),
    **{f"magnitudes {list(shape)}": ({**lora(), "dora_scale": torch.ones(shape)}, "dora_scale is")
       for shape in [(), (5,), (1, 6), (6, 4), (1, 1), (1,), (1, 6, 1, 1), (6, 2)]},
    **{f"loha without {left}": ({n: torch.ones(6, 2) if n.endswith("a") else torch.ones(2, 4)
        for n in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b") if n != left}, f"{left} is missing")
       for left in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")},
    **{f"lokr without {left}": ({n: v for n, v in {"lokr_w1": torch.ones(2, 2), "lokr_w2_a": torch.ones(3, 1),
        "lokr_w2_b": torch.ones(1, 2)}.items() if n != left}, f"{left} is missing")
       for left in ("lokr_w1", "lokr_w2_a", "lokr_w2_b")},
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_module_is_named_by_every_reader(what: str, tmp_path: Path) -> None:
    tensors, message = DAMAGED[what]
    source = tmp_path / "a.safetensors"
    save_file({k: v.contiguous() for k, v in named(SITE, tensors).items()}, source)
    damaged = convert.inspect(source)["damaged"]
    assert message in damaged or "missing" not in message, "half a module is named whatever the family"
    for form, rank in (("kohya", None), ("diffusers", None), ("peft", None), ("kohya", 1), ("kohya", 9)):
        with pytest.raises(UserError, match=message):
            convert.convert(source, tmp_path / "b", form, rank, family="sd15")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=message):
        convert.merge([(source, 0.5)], tmp_path / "b.safetensors", family="sd15")
    assert any(message in problem for problem in verify_file(source, lambda _: {}, "sd15").problems)
    found = for_host(named(SITE, tensors), {}, {SITE})
    assert found.tensors == {} and found.lost and found.problems


def test_a_module_of_rank_0_adds_nothing_and_is_named(tmp_path: Path) -> None:
    none = named(CONV, {**lora(rank=0), "alpha": torch.tensor(1.0)})
    found = keys.read({**named(SITE, lora()), **none}, family="sd15")
    assert set(found.modules) == {SITE} and "3 tensors are of rank 0" in found.notes[0]
    assert set(for_host({**named(SITE, lora()), **none}, {}, {SITE, CONV}).tensors) == set(named(SITE, lora()))
    save_file(none, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="nothing in it has an effect"):
        convert.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", family="sd15")


@pytest.mark.parametrize("size", [(4,), (1, 4), (1, 4, 1, 1)])
def test_magnitudes_over_the_inputs_in_any_shape(size: tuple[int, ...]) -> None:
    module = keys.read(named(SITE, {**lora(), "dora_scale": torch.ones(size)}), family="sd15").modules[SITE]
    assert module["dora_scale"].shape == (1, 4) and algebra.over_inputs(module)


def test_a_core_of_two_ranks_keeps_its_strength() -> None:
    """LyCORIS divides alpha by the down matrix's rank; the plain form has the up matrix's."""
    tucker = {"lora_down.weight": torch.randn(3, 5, 1, 1), "lora_mid.weight": torch.randn(2, 3, 3, 3),
              "lora_up.weight": torch.randn(6, 2, 1, 1), "alpha": torch.tensor(1.5)}  # fmt: skip
    plain, _ = algebra.as_plain(tucker)
    assert torch.allclose(algebra.delta(plain), algebra.delta(tucker), atol=1e-5)


SHAPE = st.lists(st.integers(0, 4), max_size=4).map(tuple)
TENSOR = st.builds(lambda shape, dtype: torch.ones(shape).to(dtype), SHAPE,
                   st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64,
                                    torch.float8_e4m3fn, torch.bool]))  # fmt: skip
MODULE = st.dictionaries(
    st.sampled_from(["lora_down.weight", "lora_up.weight", "lora_mid.weight", "lora_up.bias", "alpha", "dora_scale",
                     "diff", "diff_b", "w_norm", "b_norm", "set_weight", "hada_w1_a", "hada_w1_b", "hada_w2_a",
                     "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"]),
    TENSOR, min_size=1, max_size=5)  # fmt: skip
STARTS = ["unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k", SITE, CONV,
          "transformer.transformer_blocks.0.attn.to_q", "lora_unet_joint_blocks_0_x_block_attn_qkv",
          "lora_te_text_model_encoder_layers_0_mlp_fc1"]  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(
    st.dictionaries(st.sampled_from(STARTS), MODULE, min_size=1, max_size=3), st.sampled_from(["sd15", "sd3-medium"])
)
def test_any_tensors_are_read_or_refused_in_one_line(drawn: dict[str, dict[str, Tensor]], family: str) -> None:
    tensors = {key: value for start, module in drawn.items() for key, value in named(start, module).items()}
    attempt(lambda: keys.identify({key: tuple(value.shape) for key, value in tensors.items()}))
    found = attempt(lambda: keys.read(tensors, family=family))
    names = {SITE, CONV, "lora_unet_joint_blocks_0_x_block_attn_qkv"}
    for_host(tensors, {}, names)
    if not isinstance(found, keys.Reading) or not all(map(algebra.finite, tensors.values())):
        return
    sound = {**found.modules, **found.apart}
    attempt(lambda: convert.to_diffusers(found.modules, family, found.apart))
    for rank in (1, 5):
        attempt(lambda rank=rank: ranks.resize(sound, rank, family))
        attempt(lambda rank=rank: ranks.join([(sound, 0.5), (sound, -1.0)], rank, family))


# -------------------------------------------------------------------------------------------- what conversions tell


def test_what_rounding_takes_is_in_the_share_that_is_lost() -> None:
    """In float16 a matrix may vanish that float32 holds."""
    tiny = {n: (v * 1e-4).half() for n, v in lora(32, 16, 4).items()}
    _, lost = ranks.join([({SITE: tiny}, 1e-4)], None, "sd15")
    assert lost > 0.5
    _, kept = ranks.join([({SITE: lora(32, 16, 4)}, 1e-4)], None, "sd15")
    assert kept < 1e-6


def test_a_flat_convolution_and_a_square_one_add_up() -> None:
    site = "lora_unet_mid_block_attentions_0_proj_in"
    flat = lora(6, 4)
    square = {n: v[:, :, None, None] for n, v in lora(6, 4).items()}
    merged, _ = ranks.join([({site: flat}, 1.0), ({site: square}, 1.0)], None, "sd15")
    wanted = algebra.delta(flat) + algebra.delta(square).flatten(1)
    assert torch.allclose(algebra.delta(merged[site]).flatten(1), wanted, atol=1e-5)
    with pytest.raises(UserError, match="different shapes"):
        ranks.join([({site: lora(6, 4)}, 1.0), ({site: lora(6, 5)}, 1.0)], None, "sd15")


def test_the_same_file_is_resized_to_the_same_file() -> None:
    one, two = (ranks.resize({SITE: lora_of_ones()}, 8, "sd15")[0][SITE] for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def lora_of_ones() -> dict[str, Tensor]:
    return {"lora_down.weight": torch.ones(2, 4), "lora_up.weight": torch.ones(6, 2)}


def test_a_module_that_does_not_fit_the_network_is_named(tmp_path: Path) -> None:
    save_file(named(SITE, lora(6, 768)), tmp_path / "a.safetensors")
    notes = convert.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", family="sd15",
                            names=lambda _: {SITE: (1280, 768)})  # fmt: skip
    assert any("1 modules do not fit the network of sd15" in note for note in notes)


def test_inspect_tells_of_damage_and_of_none(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(named(SITE, lora(1280, 768)), path)
    assert convert.inspect(path)["damaged"] == ""
    broken = named(SITE, lora(1280, 768))
    broken[f"{SITE}.lora_up.weight"][0, 0] = float("nan")
    save_file(broken, path)
    assert "NaN" in convert.inspect(path)["damaged"]
    save_file(named(SITE, {**lora(1280, 768), "lora_up.weight": torch.ones(1280, 9)}), path)
    assert "do not make up one weight" in convert.inspect(path)["damaged"]
    save_file({"x": torch.full((2,), float("nan"))}, path)
    assert convert.inspect(path)["damaged"] == "", "it is no adapter"
