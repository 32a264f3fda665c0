"""Adapter files: hashes, headers, what cannot be read, and the proof that a saved file is the trained adapter."""

from __future__ import annotations

import errno
import hashlib
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from safetensors.torch import save as serialise
from torch import Tensor

from pixelkiln.trainer.adapters import files, keys
from pixelkiln.trainer.adapters.inject import Adapter, inject
from pixelkiln.trainer.adapters.options import AdapterOptions
from pixelkiln.trainer.adapters.verify import verify

TENSORS = {"lora_unet_a.lora_up.weight": torch.randn(300, 400), "lora_unet_a.alpha": torch.tensor(2.0)}


# ------------------------------------------------------------------------------------------------------------- writing


def test_hashes_are_kohyas(tmp_path: Path) -> None:
    """Recomputed as sd-scripts does: over the file serialised with its ss_ entries alone."""
    big = {"x": torch.randn(700, 600), "y": torch.randn(9).half()}
    path = tmp_path / "a.safetensors"
    files.save(path, big, {"ss_a": "1", "modelspec.title": "long" * 100, "pixelkiln.config": "{}"})
    plain = serialise(big, metadata={"ss_a": "1"})
    length = struct.unpack("<Q", plain[:8])[0]
    metadata, _ = files.read_header(path)
    assert metadata["sshs_model_hash"] == hashlib.sha256(plain[8 + length :]).hexdigest() == files.data_hash(path)
    assert metadata["sshs_legacy_hash"] == hashlib.sha256(plain[0x100000:0x110000]).hexdigest()[:8]
    files.save(path, TENSORS, {})
    assert files.read_header(path)[0]["sshs_legacy_hash"] == "e3b0c442"  # of nothing: the file is below 1 MiB


def test_a_saved_file_is_what_the_library_would_write(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    mixed = {"b": torch.randn(3).half(), "a": torch.randn(2, 2), "c": torch.tensor(7), "d": torch.randn(2, 3).T}
    files.save(path, mixed, {"ss_x": "ü"})
    found = load_file(path)
    assert all(torch.equal(found[name], value) for name, value in mixed.items())
    read, metadata = files.read(path)
    assert all(torch.equal(read[name], value) for name, value in mixed.items())
    assert metadata["ss_x"] == "ü"
    raw = path.read_bytes()
    assert (8 + struct.unpack("<Q", raw[:8])[0]) % 8 == 0, "tensors are aligned"
    files.save(path, mixed, {"ss_x": "ü"})
    assert path.read_bytes() == raw, "the same content gives the same bytes"


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    files.save(path, TENSORS, {})
    old = path.read_bytes()
    real = Path.open

    class Full:
        def __init__(self, file: Any):
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *args: object) -> None:
            self.file.close()

        def write(self, content: Any) -> int:
            if len(content) > 1000:
                raise OSError(errno.ENOSPC, "no space left")
            return self.file.write(content)

    def small(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        return Full(real(self, mode)) if mode == "wb" else real(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", small)
    with pytest.raises(ValueError, match="free some space") as error:
        files.save(path, {"x": torch.zeros(2000)}, {})
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_header_says_what_kohyas_tools_say() -> None:
    facts = {
        "output_name": "ink",
        "learning_rate": 1e-4,
        "tag_frequency": {"10_ink": {"ink": 3}},
        "dataset_dirs": {"10_ink": {}},
    }
    header = files.metadata(
        "sdxl", "lora", facts, rank=16, alpha=8.0, network_args={"conv_dim": 8}, spec={"trigger_phrase": "ink drawing"},
        config={"run": {"out": "/home/someone/runs"}, "model": {"path": "C:\\models\\base.safetensors"}},
    )  # fmt: skip
    assert all(isinstance(value, str) for value in header.values())
    assert header["ss_base_model_version"] == "sdxl_base_v1-0"
    assert (header["ss_v2"], header["ss_network_module"], header["ss_network_dim"]) == ("False", "networks.lora", "16")
    assert header["ss_network_alpha"] == "8.0"
    assert json.loads(header["ss_network_args"]) == {"conv_dim": "8"}
    assert header["ss_clip_skip"] == "None"
    assert json.loads(header["ss_tag_frequency"]) == {"10_ink": {"ink": 3}}
    assert header["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert header["modelspec.implementation"] == "https://github.com/Stability-AI/generative-models"
    assert header["modelspec.trigger_phrase"] == "ink drawing"
    assert header["modelspec.resolution"] == "1024x1024"
    assert {name for name in header if name.startswith("pixelkiln.")} == {files.CONFIG}
    assert json.loads(header[files.CONFIG]) == {"run": {"out": "runs"}, "model": {"path": "base.safetensors"}}


def test_stripping_leaves_out_the_training_set() -> None:
    facts = {name: {"10_secret": {"secret tag": 1}} for name in files.PRIVATE}
    config = {"data": {"sets": [{"path": "/secret/place"}]}, "sample": {"prompts": ["secret"]}, "adapter": {"rank": 4},
              "model": {"path": "/secret/model.safetensors"}}  # fmt: skip
    header = files.metadata("sd15", "lora", facts, rank=4, alpha=4, config=config, strip=True)
    assert "secret" not in json.dumps(header)
    assert json.loads(header[files.CONFIG]) == {"adapter": {"rank": 4}, "model": {}}


@pytest.mark.parametrize(
    ("family", "prediction", "base", "architecture", "module"),
    [
        ("sd15", "v", "sd_v1_v", "stable-diffusion-v1/lora", "networks.lora"),
        ("sd2", "v", "sd_v2_v", "stable-diffusion-v2-768-v/lora", "networks.lora"),
        ("sd3.5-large", None, "5-large", "stable-diffusion-3-5-large/lora", "networks.lora_sd3"),
    ],
)
def test_versions(family: str, prediction: str | None, base: str, architecture: str, module: str) -> None:
    header = files.metadata(family, "lora", {}, rank=4, alpha=4, prediction=prediction)
    assert (header["ss_base_model_version"], header["modelspec.architecture"]) == (base, architecture)
    assert header["ss_network_module"] == module
    assert (
        keys.identify({"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": (4, 4)}, header).family == family
    )


# ------------------------------------------------------------------------------------------------------------- reading


def test_files_that_cannot_be_read_are_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    files.save(path, TENSORS, {})
    whole = path.read_bytes()

    def refused(content: bytes, message: str, name: str = "b.safetensors") -> None:
        bad = tmp_path / name
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=message) as error:
            files.read(bad)
        assert str(error.value).startswith(str(bad))
        assert "\n" not in str(error.value)

    refused(whole[:-100], "it is cut short: ")
    refused(whole[:40], "it is cut short inside its header")
    refused(whole[:5], "cut short|no safetensors")
    refused(b"", "it is empty")
    refused(b"<html>not found, really, sorry</html>", "it is no safetensors file")
    refused(struct.pack("<Q", 8) + b"not json" + bytes(9), "it is no safetensors file")
    refused(b"PK\x03\x04nonsense", "it cannot be read")
    refused(pickle.dumps({"x": Path}), "it holds code beside tensors, or is damaged, and is refused", "c.pt")
    with pytest.raises(ValueError, match="no such file"):
        files.read(tmp_path / "missing.safetensors")
    with pytest.raises(ValueError, match="it holds no adapter_model"):
        files.read(tmp_path)


def test_pickled_tensors_load_without_running_code(tmp_path: Path) -> None:
    for name in ("a.pt", "a.ckpt"):
        torch.save(TENSORS, tmp_path / name)
        found, metadata = files.read(tmp_path / name)
        assert metadata == {}
        assert all(torch.equal(found[key], value) for key, value in TENSORS.items())
    torch.save([1, 2], tmp_path / "b.pt")
    with pytest.raises(ValueError, match="it holds no table of tensors"):
        files.read(tmp_path / "b.pt")


def test_a_header_length_that_looks_like_another_files_mark(tmp_path: Path) -> None:
    """640 bytes of header begin as a pickle does, 19280 as a zip archive."""
    path = tmp_path / "a.safetensors"
    for length in (640, 19280):
        size = 0
        while True:
            save_file({"x": torch.zeros(1)}, path, {"ss_pad": "p" * size})
            missing = length - struct.unpack("<Q", path.read_bytes()[:8])[0]
            if missing == 0:
                break
            size += missing
        assert set(files.read(path)[0]) == {"x"}


def test_a_large_header_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(1)}, path, {"ss_tag_frequency": "t" * 3_000_000})
    assert len(files.read(path)[1]["ss_tag_frequency"]) == 3_000_000


# -------------------------------------------------------------------------------------------------------- verification


def trained(family: str, kind: str, **options: Any) -> Adapter:
    parts = tiny.parts(family)
    chosen = AdapterOptions(kind=kind, rank=3, alpha=1.5, text_encoders=family == "sdxl", **options)
    adapter = inject(parts.denoiser, parts.text_encoders, family, chosen, seed=1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return adapter


def rank_lr(family: str) -> dict[str, Any]:
    return {} if "sd3" in family else {"conv_rank": 2}


nightly = pytest.mark.nightly


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("sdxl", "lora"),
        *(("sd3.5-medium", kind) for kind in keys.KINDS),
        *(pytest.param("sd15", kind, marks=nightly) for kind in keys.KINDS),
        *(pytest.param("sdxl", kind, marks=nightly) for kind in keys.KINDS[1:]),
    ],
)
def test_every_file_is_verified(family: str, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    adapter = trained(family, kind, **rank_lr(family))
    path = tmp_path / "a.safetensors"
    header = files.metadata(
        family, kind, {}, rank=adapter.rank, alpha=adapter.alpha, network_args=adapter.network_args()
    )
    for dtype in (torch.float32, torch.float16):
        files.save(path, adapter.for_file(dtype), header)
        before = {id(p): p.requires_grad for p in adapter.modules["unet"].parameters()}
        found = verify(path, adapter)
        assert not found.problems
        assert found.lines[0] == f"{len(adapter.mounted)} modules are where hosts look for them"
        assert "the trained effect" in found.lines[1]
        assert any("diffusers loads it" in line for line in found.lines) == (
            kind == "lora" and family != "sd3.5-medium"
        )
        assert {id(p): p.requires_grad for p in adapter.modules["unet"].parameters()} == before
    assert all(list(layer.active_adapters) == ["default"] for one in adapter.mounted for layer in one.layers)


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3-medium"])
@pytest.mark.parametrize(
    ("kind", "model", "own"),
    [
        ("lora", torch.bfloat16, torch.bfloat16),
        ("lora", torch.bfloat16, torch.float32),
        ("lora", torch.float32, torch.bfloat16),
        ("lora", torch.float16, torch.float32),
        ("lora", torch.float64, torch.float64),
        *((kind, torch.bfloat16, torch.bfloat16) for kind in keys.KINDS if kind != "lora"),
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_a_file_is_verified_in_every_pair_of_dtypes(tmp_path: Path, family, kind, model, own) -> None:
    """Whatever the model, the adapter (run.full: bfloat16) and the file (save.dtype) are held in: the right file is
    right, and one of which a matrix is 10 % off is not."""
    torch.manual_seed(2)
    parts, path = tiny.parts(family), tmp_path / "a.safetensors"
    options = AdapterOptions(kind=kind, rank=3, alpha=1.5)
    adapter = inject(parts.denoiser.to(model), {}, family, options, dtype=own, seed=1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_((torch.randn(parameter.shape) * 0.1).to(parameter))
    header = files.metadata(family, kind, {}, rank=3, alpha=1.5, network_args=adapter.network_args())
    before = {name: value.clone() for name, value in adapter.state_dict().items()}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        tensors = adapter.for_file(dtype)
        files.save(path, tensors, header)
        found = verify(path, adapter)
        assert not found.problems, (dtype, found.problems)
        part = next(name for name in tensors if name.endswith(("lora_up.weight", "hada_w1_a", "lokr_w1")))
        files.save(path, {**tensors, part: tensors[part] * 1.1}, header)
        assert "another effect than what was trained" in verify(path, adapter).problems[0], dtype
    after = adapter.state_dict()
    assert all(after[name].dtype == value.dtype and torch.equal(after[name], value) for name, value in before.items())


def test_an_effect_below_the_models_rounding_is_no_error(tmp_path: Path) -> None:
    """A short training of a bfloat16 model: both pictures differ by rounding alone, and that is header."""
    parts = tiny.parts("sdxl")
    adapter = inject(parts.denoiser.bfloat16(), {}, "sdxl", AdapterOptions(rank=2), seed=1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter) * 1e-5)
    path = tmp_path / "a.safetensors"
    files.save(path, adapter.for_file(torch.float32), {})
    assert verify(path, adapter).lines[-1].startswith("diffusers loads it; what was trained so far is less")


def test_a_dora_file_says_whose_magnitudes_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for dora_for in ("comfyui", "lycoris"):
        adapter = trained("sd15", "dora", dora_for=dora_for, targets=["mid_block"])
        args = adapter.network_args()
        files.save(
            path,
            adapter.for_file(torch.float32),
            files.metadata("sd15", "dora", {}, rank=3, alpha=1.5, network_args=args),
        )
        assert not verify(path, adapter).problems
        args = {**args, "dora_norm": "bare" if dora_for == "lycoris" else "adapted"}
        files.save(
            path,
            adapter.for_file(torch.float32),
            files.metadata("sd15", "dora", {}, rank=3, alpha=1.5, network_args=args),
        )
        assert "another effect than what was trained" in verify(path, adapter).problems[0]


def test_a_wrong_file_is_caught_by_name(tmp_path: Path) -> None:
    adapter = trained("sd3.5-medium", "lora", targets=["transformer_blocks"])
    path = tmp_path / "a.safetensors"
    good = adapter.state_dict()
    qkv = "lora_unet_joint_blocks_1_x_block_attn_qkv"
    last = "lora_unet_joint_blocks_2_context_block_adaLN_modulation_1"

    def caught(tensors: dict[str, Tensor], message: str, effect: bool = True) -> None:
        files.save(path, tensors, {})
        assert message in verify(path, adapter, effect).problems[0]

    files.save(path, good, {})
    assert not verify(path, adapter).problems
    caught(
        {k.replace("_0_x_block_attn_proj", "_7_x_block_attn_proj"): v for k, v in good.items()},
        "no module of the model is called",
        False,
    )
    caught({k: v for k, v in good.items() if not k.startswith(qkv)}, "was trained but is not in the file", False)
    caught({**good, f"{qkv}.lora_up.weight": good[f"{qkv}.lora_up.weight"] * float("nan")}, "non-finite", False)
    short = good[f"{qkv}.lora_up.weight"][:10]
    caught(
        {**good, f"{qkv}.lora_up.weight": short},
        f"'{qkv}' does not fit its module: it adapts 10 rows, the weight has 48",
        False,
    )
    caught({**good, f"{qkv}.lora_down.weight": torch.zeros(3, 9)}, f"'{qkv}' does not fit its module", False)
    caught({**good, f"{qkv}.alpha": good[f"{qkv}.alpha"] / 3}, f"'{qkv}' has another effect")
    up = good[f"{qkv}.lora_up.weight"]
    caught({**good, f"{qkv}.lora_up.weight": torch.cat(up.chunk(3)[::-1])}, f"'{qkv}' has another effect")
    up = good[f"{last}.lora_up.weight"]
    caught(
        {**good, f"{last}.lora_up.weight": torch.cat(up.chunk(2)[::-1])},
        f"'{last}' has another effect",
    )


def test_an_sdxl_name_that_leads_elsewhere_is_caught(tmp_path: Path) -> None:
    adapter = trained("sdxl", "lora", targets=[r"attentions.\d.proj_in"])
    path = tmp_path / "a.safetensors"
    good = adapter.state_dict()
    names = sorted({k.partition(".")[0] for k in good if k.startswith("lora_unet")})
    swapped = {k.replace(names[0], "@").replace(names[1], names[0]).replace("@", names[1]): v for k, v in good.items()}
    files.save(path, swapped, {})
    assert "another effect than what was trained" in verify(path, adapter).problems[0]


def test_verification_never_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is gone, one that holds no adapter and a reader that fails are problems, and not the run's end."""
    adapter = trained("sd15", "lora", targets=["mid_block"])
    path = tmp_path / "a.safetensors"
    assert "cannot be read" in verify(path, adapter).problems[0]
    files.save(path, {"x": torch.zeros(1)}, {})
    assert "no module of the model is called 'x'" in verify(path, adapter).problems[0]
    files.save(path, adapter.state_dict(), {})
    monkeypatch.setattr(type(adapter.modules["unet"]), "load_lora_adapter", lambda *a, **k: [][0])
    assert "could not be verified (IndexError" in verify(path, adapter).problems[0]


def test_a_run_of_text_encoders_alone_is_verified(tmp_path: Path) -> None:
    """Rank 0 in every block of the denoiser, while a text encoder is trained."""
    parts = tiny.parts("sd15")
    options = AdapterOptions(rank=2, text_encoders=True, denoiser=False)
    adapter = inject(parts.denoiser, parts.text_encoders, "sd15", options, seed=1)
    adapter.modules["unet"] = parts.denoiser
    path = tmp_path / "a.safetensors"
    files.save(path, adapter.for_file(torch.float32), {})
    assert not verify(path, adapter).problems
