"""Adapter files in other programs' forms and at other ranks, merged, and looked into."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pixelkiln.trainer.adapters import algebra, convert, files, keys, ranks
from pixelkiln.trainer.adapters.inject import Adapter, inject
from pixelkiln.trainer.adapters.names import kernel
from pixelkiln.trainer.adapters.options import AdapterOptions
from pixelkiln.trainer.adapters.verify import probe, verify

BLOCK = "lora_unet_mid_block_attentions_0_transformer_blocks_0"
WIDTHS = {"sd15": 768, "sd2": 1024, "sdxl": 2048}


def a_file(family: str, kind: str, rank: int = 4, alpha: float = 2.0, seed: int = 0) -> dict[str, Tensor]:
    """A small file of a full-size model: a few modules with true names and shapes."""
    generator = torch.Generator().manual_seed(seed)
    if family.startswith("sd3"):
        width = 2432 if family == "sd3.5-large" else 1536
        weights: dict[str, tuple[tuple[int, ...], int]] = {
            "lora_unet_joint_blocks_0_x_block_attn_qkv": ((3 * width, width), 3),
            "lora_unet_joint_blocks_0_context_block_attn_proj": ((width, width), 1),
            "lora_unet_joint_blocks_23_context_block_adaLN_modulation_1": ((2 * width, width), 1),
        }
        if family == "sd3.5-medium":
            weights["lora_unet_joint_blocks_0_x_block_attn2_proj"] = ((width, width), 1)
    else:
        block = "lora_unet_middle_block_1_transformer_blocks_0" if family == "sdxl" else BLOCK
        conv = (
            "lora_unet_input_blocks_1_0_in_layers_2" if family == "sdxl" else "lora_unet_down_blocks_0_resnets_0_conv1"
        )
        weights = {
            f"{block}_attn2_to_k": ((1280, WIDTHS[family]), 1),
            f"{block}_ff_net_2": ((128, 512), 1),
            conv: ((32, 32, 3, 3), 1),
        }
    found = {}
    for name, (shape, parts) in weights.items():
        for tensor, size in algebra.shapes(kind, shape, rank, parts).items():
            value = torch.randn(size, generator=generator) * 0.1 if size else torch.tensor(alpha)
            if kind == "lokr" and tensor == "alpha" and rank >= 512:
                value = torch.tensor(float(rank))
            found[f"{name}.{tensor}"] = value
    return found


def grouped(tensors: dict[str, Tensor]) -> ranks.Modules:
    """By module."""
    modules: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, tensor = key.partition(".")
        modules.setdefault(name, {})[tensor] = value
    return modules


def deltas(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: algebra.delta(module).flatten(1) for name, module in grouped(tensors).items()}


def effect(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What each module adds to the output for a fixed input: as telling as the difference, and quicker for LoRA."""
    found = {}
    for name, module in grouped(tensors).items():
        if "lora_up.weight" not in module:
            found[name] = algebra.delta(module)
            continue
        down, up = module["lora_down.weight"].flatten(1), module["lora_up.weight"].flatten(1)
        x = torch.randn(down.shape[1], 2, generator=torch.Generator().manual_seed(0))
        found[name] = algebra.scale_of(module) * (up @ (down @ x))
    return found


nightly = pytest.mark.nightly


@pytest.mark.parametrize(
    "family", ["sd15", pytest.param("sd2", marks=nightly), "sdxl", "sd3-medium",
               pytest.param("sd3.5-medium", marks=nightly), pytest.param("sd3.5-large", marks=nightly)],
)  # fmt: skip
@pytest.mark.parametrize("kind", keys.KINDS)
def test_there_and_back_again(family: str, kind: str, tmp_path: Path) -> None:
    """kohya -> PEFT -> kohya is exact for all kinds, kohya -> diffusers -> kohya for those that diffusers reads."""
    source = tmp_path / "a.safetensors"
    given_ = a_file(family, kind)
    files.save(source, given_, {})
    for form, target in (("peft", tmp_path / "peft"), ("diffusers", tmp_path / "d.safetensors")):
        if form == "diffusers" and kind in ("loha", "lokr"):
            with pytest.raises(ValueError, match=f"diffusers reads no {kind}"):
                convert.convert(source, target, form)
            continue
        convert.convert(source, target, form)
        again = tmp_path / f"{form}.safetensors"
        convert.convert(target, again, "kohya")
        found = files.read(again)[0]
        assert set(found) == set(given_)
        wanted = effect(given_)
        for name, value in effect(found).items():
            assert torch.allclose(value, wanted[name], atol=1e-4), (form, name)
        if kind == "dora":
            assert all(torch.equal(found[k], v) for k, v in given_.items() if k.endswith("dora_scale"))


def adapted(family: str, **options: Any) -> tuple[Any, Adapter]:
    parts = tiny.parts(family)
    adapter = inject(parts.denoiser, parts.text_encoders, family, AdapterOptions(**options), seed=1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.1)
    return parts, adapter


def forward(denoiser: Any) -> Tensor:
    return denoiser(**probe(denoiser)).sample


@pytest.mark.parametrize(
    ("family", "kind"), [("sd3.5-medium", "lora"), ("sd3-medium", "dora"), pytest.param("sd15", "dora", marks=nightly)]
)
def test_diffusers_runs_what_we_convert_for_it(family: str, kind: str, tmp_path: Path) -> None:
    """The converted file, loaded by diffusers' own loader into the bare model, gives the trained model's output."""
    parts, adapter = adapted(family, kind=kind, rank=3, alpha=6.0)
    wanted = forward(parts.denoiser)
    tensors, _ = convert.to_diffusers(grouped(adapter.state_dict()), family)
    bare = tiny.parts(family).denoiser
    before = forward(bare)
    bare.load_lora_adapter(tensors, prefix="unet" if family == "sd15" else "transformer")
    found = forward(bare)
    assert (wanted - before).norm() > 0.01 * before.norm()
    assert torch.allclose(found, wanted, atol=1e-4)


@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys did not match")
@torch.no_grad()
def test_diffusers_misreads_alphas_per_block_and_reads_what_we_convert(tmp_path: Path) -> None:
    """It gives all of attention the commonest alpha of a Kohya file. Verification reports it, and passes."""
    from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin

    parts, adapter = adapted("sd15", block_ranks=[2 + i % 3 for i in range(25)])
    wanted = forward(parts.denoiser)
    kohya = adapter.state_dict()
    files.save(tmp_path / "a.safetensors", kohya, {})
    assert "convert the file for it" in verify(tmp_path / "a.safetensors", adapter).lines[-1]
    errors = []
    for tensors in (kohya, convert.to_diffusers(grouped(kohya), "sd15")[0]):
        bare = tiny.parts("sd15").denoiser
        state, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(dict(tensors), unet_config=bare.config)[:2]
        bare.load_lora_adapter(state, prefix="unet", network_alphas=alphas)
        errors.append(float((forward(bare) - wanted).norm() / wanted.norm()))
    assert errors[0] > 1e-3 and errors[1] < 1e-5


@pytest.mark.parametrize("kind", keys.KINDS)
def test_peft_reads_the_folder(kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    torch.manual_seed(0)
    given_ = a_file("sd15", kind, rank=3)
    source = tmp_path / "a.safetensors"
    files.save(source, given_, {})
    convert.convert(source, tmp_path / "peft", "peft")

    net = nn.ModuleDict({"net": nn.ModuleList([nn.Identity(), nn.Identity(), nn.Linear(512, 128)])})
    block = nn.ModuleDict({"attn2": nn.ModuleDict({"to_k": nn.Linear(768, 1280)}), "ff": net})
    middle = nn.ModuleDict({"transformer_blocks": nn.ModuleList([block])})
    resnet = nn.ModuleDict({"conv1": nn.Conv2d(32, 32, 3, padding=1)})
    bare = nn.ModuleDict({
        "down_blocks": nn.ModuleList([nn.ModuleDict({"resnets": nn.ModuleList([resnet])})]),
        "mid_block": nn.ModuleDict({"attentions": nn.ModuleList([middle])}),
    })  # fmt: skip
    model = PeftModel.from_pretrained(bare, str(tmp_path / "peft" / "unet"))
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "get_delta_weight")}
    assert len(layers) == 3
    wanted = deltas(given_)
    for path, layer in layers.items():
        name = "lora_unet_" + path.removeprefix("base_model.model.").replace(".", "_")
        assert torch.allclose(layer.get_delta_weight("default").flatten(1), wanted[name], atol=1e-5), path


def test_a_peft_adapter_of_a_denoiser_goes_on_here(tmp_path: Path) -> None:
    """PEFT saves it; init_from reads the folder and does the same."""
    from peft import LoraConfig, get_peft_model

    parts = tiny.parts("sd15")
    model = get_peft_model(
        parts.denoiser, LoraConfig(r=2, lora_alpha=6, target_modules=["to_k", "to_q"], init_lora_weights=False)
    )
    wanted = parts.denoiser(**probe(parts.denoiser)).sample
    model.save_pretrained(str(tmp_path / "peft"))
    bare = tiny.parts("sd15")
    options = AdapterOptions(init_from=str(tmp_path / "peft"), targets=["to_k", "to_q"])
    inject(bare.denoiser, {}, "sd15", options)
    assert torch.allclose(bare.denoiser(**probe(bare.denoiser)).sample, wanted, atol=1e-5)


def test_the_third_that_split_qkv_leaves_out_is_added_once(tmp_path: Path) -> None:
    name = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    given_ = {key: value for key, value in a_file("sd3-medium", "lora", rank=6).items() if key.startswith(name)}
    files.save(paths[0], given_, {"ss_network_args": '{"split_qkv": "True", "conv_dim": "4"}'})
    for source, target in pairwise(paths):
        convert.convert(source, target)
        tensors, metadata = files.read(target)
        assert float(tensors[f"{name}.alpha"]) == 3 * float(given_[f"{name}.alpha"])
        assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "4"}


# --------------------------------------------------------------------------------------------------------------- ranks


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from([2, 7]), st.booleans(), st.integers(0, 99))
@example(6, 4, 2, True, 0)
def test_resizing_is_the_best_of_its_rank(old: int, new: int, rows: int, conv: bool, seed: int) -> None:
    """Eckart-Young: nothing of that rank is nearer; the loss is the discarded singular values' share.

    A weight of 2 rows (as ``conv_out`` has 4) holds no rank above 2, and keeps its strength all the same.
    """
    generator = torch.Generator().manual_seed(seed)
    ones, window = ((1, 1), (3, 3)) if conv else ((), ())
    module = {
        "lora_up.weight": torch.randn(rows, old, *ones, generator=generator),
        "lora_down.weight": torch.randn(old, 6, *window, generator=generator),
        "alpha": torch.tensor(old / 2),
    }
    whole = algebra.delta(module).flatten(1)
    found, loss = ranks.resize({"m": module}, new, "sd15")
    assert algebra.rank_of(found["m"]) == (min(new, rows) if new < old else new)
    values = torch.linalg.svdvals(whole.double())
    best = float((values[new:].square().sum() / values.square().sum()).sqrt())
    assert loss == pytest.approx(best, abs=1e-5)
    apart = float((algebra.delta(found["m"]).flatten(1) - whole).norm() / whole.norm())
    assert apart == pytest.approx(best, abs=1e-4)
    assert algebra.scale_of(found["m"]) == pytest.approx(0.5)


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_other_kinds_become_a_lora(kind: str, tmp_path: Path) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    given_ = a_file("sd15", kind, rank=2)
    files.save(source, given_, {"ss_network_dim": "2", "ss_tag_frequency": "{}"})
    notes = convert.convert(source, target, "diffusers", rank=48)
    assert any(note.startswith("rank 48: ") for note in notes)
    convert.convert(source, target, "kohya", rank=32)
    found, metadata = files.read(target)
    assert keys.identify({k: tuple(v.shape) for k, v in found.items()}).kind == "lora"
    assert metadata["ss_network_dim"] == "32"
    conv = "lora_unet_down_blocks_0_resnets_0_conv1"
    assert found[f"{conv}.lora_down.weight"].shape == (32, 32, 3, 3)
    wanted = deltas(given_)
    if kind == "loha":  # rank r LoHa is a matrix of rank r * r
        for name, value in deltas(found).items():
            assert torch.allclose(value, wanted[name], atol=1e-5), name


@settings(deadline=None, max_examples=5)
@given(st.lists(st.tuples(st.integers(1, 4), st.floats(-2, 2)), min_size=1, max_size=3))
def test_merged_files_add_up(parts: list[tuple[int, float]]) -> None:
    files_ = [(a_file("sd15", "lora", rank, 1.5, seed), weight) for seed, (rank, weight) in enumerate(parts)]
    modules = []
    for tensors, weight in files_:
        own: ranks.Modules = {}
        for key, value in tensors.items():
            name, _, tensor = key.partition(".")
            own.setdefault(name, {})[tensor] = value
        modules.append((own, weight))
    merged, loss = ranks.join(modules, None, "sd15")
    assert loss < 1e-12
    for name, module in merged.items():
        wanted = sum((deltas(tensors)[name] * weight for tensors, weight in files_), torch.zeros(()))
        assert torch.allclose(algebra.delta(module).flatten(1), wanted, atol=1e-4)


def test_merge_writes_a_file_and_says_what_is_lost(tmp_path: Path) -> None:
    paths = []
    for seed, kind in enumerate(("lora", "lora", "loha", "dora")):
        paths.append(tmp_path / f"{seed}.safetensors")
        files.save(paths[-1], a_file("sd15", kind, seed=seed), {})
    target = tmp_path / "merged.safetensors"
    notes = convert.merge([(paths[0], 1.0), (paths[1], 0.5)], target)
    assert notes == ["rank 8: nothing of the joint effect is lost"]
    facts = convert.inspect(target)
    assert (facts["family"], facts["kind"], facts["ranks"]) == ("sd15", "lora", {8: 3})
    assert files.read_header(target)[0]["modelspec.merged_from"] == "0:1, 1:0.5"
    notes = convert.merge([(paths[0], 1.0), (paths[2], 1.0)], target, rank=4)
    assert "%" in notes[0]
    with pytest.raises(ValueError, match="a loha can only be merged into a LoRA; give --rank"):
        convert.merge([(paths[0], 1.0), (paths[2], 1.0)], target)
    with pytest.raises(ValueError, match="a DoRA cannot be merged"):
        convert.merge([(paths[0], 1.0), (paths[3], 1.0)], target, rank=4)
    other = tmp_path / "xl.safetensors"
    files.save(other, a_file("sdxl", "lora"), {})
    with pytest.raises(ValueError, match="the files are for sd15, sdxl"):
        convert.merge([(paths[0], 1.0), (other, 1.0)], target)


@pytest.mark.parametrize(
    ("kind", "rank", "weight"), [("lora", None, 1e9), ("lora", None, 1e39), ("lora", 2, 1e39), ("loha", 2, 1e39)]
)
def test_a_merged_file_holds_only_finite_numbers(kind: str, rank: int | None, weight: float, tmp_path: Path) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    files.save(source, {key: value.half() for key, value in a_file("sd15", kind).items()}, {})
    with pytest.raises(ValueError, match="grows larger than its type of number holds; give smaller weights"):
        convert.merge([(source, weight)], target, rank)
    assert not target.exists()


# -------------------------------------------------------------------------------------------------------------- inspect


def test_inspect_tells_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "ink.safetensors"
    tags = {"10_ink": {"ink": 9, "cat": 2}, "5_more": {"cat": 8}}
    facts = {"output_name": "ink", "learning_rate": 1e-4, "tag_frequency": tags, "sd_model_name": "base.safetensors"}
    header = files.metadata("sd15", "lora", facts, rank=4, alpha=2.0, config={"run": {"seed": 3}})
    files.save(path, {**a_file("sd15", "lora"), "junk": torch.zeros(1)}, header)
    found = convert.inspect(path)
    assert (found["family"], found["kind"], found["naming"]) == ("sd15", "lora", "kohya")
    assert found["modules"] == {"unet": 3}
    assert (found["ranks"], found["alphas"]) == ({4: 3}, {2.0: 3})
    assert found["trigger_words"] == ["cat", "ink"]
    assert found["training"]["learning_rate"] == "0.0001"
    assert found["base_model"] == "base.safetensors"
    assert found["hashes"]["agree"] is True
    assert found["does_not_belong"] == ["junk"]
    assert found["config"] == {"run": {"seed": 3}}
    json.dumps(found)
    files.save(path, a_file("sd15", "lora"), {**header, "modelspec.trigger_phrase": "ink drawing, sepia"})
    assert convert.inspect(path)["trigger_words"] == ["ink drawing", "sepia"]


def test_files_that_cannot_be_converted_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    files.save(path, {"model.weight": torch.zeros(2)}, {})
    with pytest.raises(ValueError, match="it is no adapter that we know; give a lora"):
        convert.convert(path, tmp_path / "b.safetensors")
    files.save(path, a_file("sd15", "lora"), {})
    with pytest.raises(ValueError, match="PEFT keeps an adapter in a folder"):
        convert.convert(path, tmp_path / "b.safetensors", "peft")
    assert kernel("sd15", "lora_unet_down_blocks_0_attentions_0_proj_in") == (1, 1)
    assert kernel("sdxl", "lora_unet_input_blocks_4_1_proj_in") == ()
