"""The weights that an adapter means, against LyCORIS's and PEFT's own reckoning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ldm
import pytest
import tiny
import torch
from torch import Tensor, nn

from pixelkiln.trainer.adapters import algebra, files, keys
from pixelkiln.trainer.adapters.inject import inject
from pixelkiln.trainer.adapters.layers import NAME
from pixelkiln.trainer.adapters.names import all_sites
from pixelkiln.trainer.adapters.options import AdapterOptions

PATHS = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.0.attentions.0.proj_in",  # a 1x1 convolution
    "down_blocks.0.resnets.0.conv1",
    "down_blocks.0.resnets.0.time_emb_proj",
)


def by_lycoris(kind: str, module: nn.Module, rank: int, alpha: float) -> Any:
    from lycoris.modules.locon import LoConModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule

    made = {"lora": LoConModule, "dora": LoConModule, "loha": LohaModule, "lokr": LokrModule}[kind]
    found = made("x", module, 1.0, rank, alpha, weight_decompose=kind == "dora")
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return found


def seen_by(module: Any, shape: tuple[int, ...]) -> Tensor:
    """A fixed input of a Linear or convolution."""
    return (
        torch.linspace(-1, 1, 36 * shape[1]).sin().reshape((1, shape[1], 6, 6) if len(shape) == 4 else (36, shape[1]))
    )


@pytest.mark.parametrize("rank", [2, 8])
@pytest.mark.parametrize("kind", keys.KINDS)
def test_a_lycoris_file_means_the_same_weights_here(kind: str, rank: int, tmp_path: Path) -> None:
    torch.manual_seed(3)
    parts = tiny.parts("sd15")
    bare = {path: parts.denoiser.get_submodule(path) for path in PATHS}
    theirs = {path: by_lycoris(kind, module, rank, rank / 2) for path, module in bare.items()}
    inputs = {path: seen_by(module, module.weight.shape) for path, module in bare.items()}
    with torch.no_grad():
        untrained = {path: bare[path](x) for path, x in inputs.items()}
        wanted = {path: theirs[path](x) for path, x in inputs.items()}
    tensors = {}
    for path, module in theirs.items():
        for name, value in module.custom_state_dict().items() if hasattr(module, "custom_state_dict") else ():
            tensors[f"lora_unet_{path.replace('.', '_')}.{name}"] = value.detach().clone()
    path = tmp_path / "lycoris.safetensors"
    files.save(path, tensors, {})
    options = AdapterOptions(kind="lora", init_from=str(path), targets=list(PATHS))
    adapter = inject(parts.denoiser, {}, "sd15", options)
    assert adapter.kind == kind
    for one in adapter.mounted:
        where = one.plan.site.paths[0]
        assert (wanted[where] - untrained[where]).norm() > 0.05 * untrained[where].norm()
        assert torch.allclose(one.layers[0](inputs[where]), wanted[where], atol=1e-4), where


@pytest.mark.parametrize("kind", keys.KINDS)
def test_lycoris_reads_our_tensors(kind: str) -> None:
    """LyCORIS's own module made from what we write has our difference."""
    from lycoris.modules.locon import LoConModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule

    reader: Any = {"loha": LohaModule, "lokr": LokrModule}.get(kind, LoConModule)
    parts = tiny.parts("sd15")
    plain = {path: parts.denoiser.get_submodule(path) for path in PATHS}
    options = AdapterOptions(kind=kind, rank=2, alpha=1.0, targets=list(PATHS))
    adapter = inject(parts.denoiser, {}, "sd15", options, seed=1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    file = adapter.state_dict()
    for one in adapter.mounted:
        own = {k.partition(".")[2]: v for k, v in file.items() if k.startswith(one.plan.site.name + ".")}
        where = one.plan.site.paths[0]
        x = seen_by(plain[where], one.plan.site.shape)
        with torch.no_grad():
            module = reader.make_module_from_state_dict("x", plain[where], *[own.get(n) for n in reader.weight_list])
            assert torch.allclose(one.layers[0](x), module(x), atol=1e-4), where


@pytest.mark.parametrize("kind", keys.KINDS)
def test_peft_and_the_file_agree_on_every_weight_of_sd3(kind: str) -> None:
    """Also where q, k, v are fused and where the last block's halves are exchanged."""
    parts = tiny.parts("sd3.5-medium")
    shapes = {s.name: s for s in all_sites("sd3.5-medium", {"unet": parts.denoiser})}
    targets = ["transformer_blocks", "norm_out.linear"]
    options = AdapterOptions(kind=kind, rank=2, alpha=3.0, targets=targets)
    adapter = inject(parts.denoiser, {}, "sd3.5-medium", options, seed=1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter))
    file = adapter.state_dict()
    swapped = 0
    for one in adapter.mounted:
        own = {k.partition(".")[2]: v for k, v in file.items() if k.startswith(one.plan.site.name + ".")}
        trained = torch.cat([layer.get_delta_weight(NAME) for layer in one.layers])
        found = algebra.delta(own, shapes[one.plan.site.name].shape)
        if one.plan.site.swap:
            found, swapped = torch.cat(found.chunk(2)[::-1]), swapped + 1
        assert torch.allclose(found, trained, atol=1e-4), one.plan.site.name
    assert swapped == 2


nightly = pytest.mark.nightly


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("sdxl", "lora"),
        *(("sd3.5-medium", kind) for kind in keys.KINDS),
        *(pytest.param("sdxl", kind, marks=nightly) for kind in keys.KINDS[1:]),
        *(pytest.param(family, kind, marks=nightly) for family in ("sd3-medium", "sd3.5-large") for kind in keys.KINDS),
    ],
)
def test_in_the_original_network_the_file_has_the_trained_effect(family: str, kind: str) -> None:
    """ComfyUI, A1111 and sd-scripts look for lora_unet_<the original network's name with _> and add the difference."""
    parts = tiny.parts(family)
    conv = {} if family.startswith("sd3") else {"conv_rank": 2}
    adapter = inject(parts.denoiser, {}, family, AdapterOptions(kind=kind, rank=2, alpha=3.0, **conv), seed=1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    file = adapter.state_dict()
    bare = original(family, parts.denoiser)
    for one in adapter.mounted:
        for layer in one.layers:
            layer.merge()
    merged = original(family, parts.denoiser)
    found = 0
    for key, weight in bare.items():
        name = f"lora_unet_{key.removesuffix('.weight').replace('.', '_')}"
        own = {k.removeprefix(f"{name}."): v for k, v in file.items() if k.startswith(f"{name}.")}
        if own:
            weight, found = weight + algebra.delta(own, weight.shape), found + 1
        if "dora_scale" in own:
            size = weight.flatten(1).norm(dim=1).reshape(-1, *(1,) * (weight.dim() - 1))
            weight = weight * own["dora_scale"] / size
        assert torch.allclose(weight, merged[key], atol=2e-5), key
    assert found == len(adapter.mounted)


def original(family: str, denoiser: Any) -> dict[str, Tensor]:
    """A denoiser's weights as the network's authors name and order them."""
    state = {k.replace(".base_layer", ""): v.detach().clone() for k, v in denoiser.state_dict().items()}
    state = {k: v for k, v in state.items() if not any(mark in k for mark in ("lora_", "hada_", "lokr_"))}
    return ldm.mmdit(state) if family.startswith("sd3") else ldm.unet(state, denoiser.config.layers_per_block)


def test_tucker_files_are_read(tmp_path: Path) -> None:
    """LyCORIS's use_tucker: a kernel of its own between down and up, or in LoHa's core."""
    from lycoris.modules.locon import LoConModule
    from lycoris.modules.loha import LohaModule

    for made in (LoConModule, LohaModule):
        torch.manual_seed(4)
        parts = tiny.parts("sd15")
        path = "down_blocks.0.resnets.0.conv1"
        module = parts.denoiser.get_submodule(path)
        theirs: Any = made("x", module, 1.0, 3, 1.5, use_tucker=True)
        with torch.no_grad():
            for parameter in theirs.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
        x = seen_by(module, module.weight.shape)
        with torch.no_grad():
            wanted = theirs(x)
        name = f"lora_unet_{path.replace('.', '_')}"
        tensors: dict[str, Tensor] = {f"{name}.{k}": v.detach().clone() for k, v in theirs.custom_state_dict().items()}
        assert any(k.endswith(("lora_mid.weight", "hada_t1")) for k in tensors)
        file = tmp_path / f"{made.__name__}.safetensors"
        files.save(file, tensors, {})
        adapter = inject(parts.denoiser, {}, "sd15", AdapterOptions(init_from=str(file), targets=[path]))
        assert torch.allclose(adapter.mounted[0].layers[0](x), wanted, atol=1e-4)
        assert any("Tucker" in note for note in adapter.notes) == (made is LoConModule)


def test_a_lokr_whose_blocks_cross_q_k_v_is_refused(tmp_path: Path) -> None:
    parts = tiny.parts("sd3-medium")
    name = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    crossing = {
        f"{name}.lokr_w1": torch.randn(4, 4),
        f"{name}.lokr_w2": torch.randn(12, 4),
        f"{name}.alpha": torch.tensor(1.0),
    }
    path = tmp_path / "crossing.safetensors"
    files.save(path, crossing, {})
    with pytest.raises(ValueError, match="the blocks of this LoKr cross q, k and v"):
        inject(parts.denoiser, {}, "sd3-medium", AdapterOptions(init_from=str(path)))
    fitting = {**crossing, f"{name}.lokr_w1": torch.randn(12, 4), f"{name}.lokr_w2": torch.randn(4, 4)}
    files.save(path, fitting, {})
    adapter = inject(parts.denoiser, {}, "sd3-medium", AdapterOptions(init_from=str(path)))
    found = {k: v for k, v in adapter.state_dict().items() if k.startswith(f"{name}.lokr")}
    assert all(torch.equal(value, fitting[key]) for key, value in found.items())
