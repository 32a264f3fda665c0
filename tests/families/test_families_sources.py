"""Checkpoints as people have them: single files, folders, hub ids; what is detected and what is refused."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import ldm
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from pixelkiln.trainer.diffusion.process import Process
from pixelkiln.trainer.families import load as loading
from pixelkiln.trainer.families import sources, words
from pixelkiln.trainer.families.family import FamilySpec
from pixelkiln.trainer.families.load import identify, load, meta
from pixelkiln.trainer.families.options import ModelOptions
from pixelkiln.trainer.families.sources import Checkpoint
from pixelkiln.trainer.registry import families

ALL = [entry.name for entry in families]


def tiny_spec(name: str, made: tiny.Parts) -> FamilySpec:
    """The family with the tiny model's sizes instead of the public ones, so that a tiny single file is one of it."""
    spec = families[name].build()
    encoders = {
        key: replace(spec.encoders[key], config=module.config.to_diff_dict())
        for key, module in made.text_encoders.items()
    }
    plain = {k: v for k, v in made.denoiser.config.items() if not k.startswith("_")}
    autoencoder = {k: v for k, v in made.vae.config.items() if not k.startswith("_")}
    return replace(
        spec, config=plain, vae=autoencoder, encoders={**spec.encoders, **encoders}, in_file=lambda shapes: True
    )


@pytest.fixture
def tiny_file(tmp_path, monkeypatch):
    """Write a tiny single file of a family and make the loader know its sizes."""

    def make(
        name: str, with_t5: bool = True, keep=lambda key: True, change: dict[str, Any] | None = None, **metadata: Any
    ):
        made = tiny.parts(name, with_t5=with_t5) if name.startswith("sd3") else tiny.parts(name)
        monkeypatch.setattr(loading, "_specs", lambda: [tiny_spec(name, made)])
        monkeypatch.setattr(words, "tokenizer", lambda encoder, *_: made.tokenizers[_key(made, encoder.tokenizer)])
        tensors = ldm.checkpoint(name, made.denoiser, made.vae, made.text_encoders) | (change or {})
        path = ldm.write(tmp_path / f"{name}.safetensors", {k: v for k, v in tensors.items() if keep(k)}, **metadata)
        return path, made

    return make


def header(name: str, shapes: dict[str, tuple[int, ...]]) -> Checkpoint:
    """A file of which only names and shapes are asked."""
    return Checkpoint(Path(name), shapes, {}, lambda keys: {})


def _key(made: tiny.Parts, folder: str) -> str:
    return next(key for key, suffix in made.slots.items() if folder == f"tokenizer{suffix}")


def refused(options: ModelOptions, *say: str) -> str:
    """The one line that a person reads; it must name all of ``say``."""
    with pytest.raises(ValueError) as error:
        load(options)
    line = str(error.value)
    assert "\n" not in line and ";" in line, line
    for word in say:
        assert word in line, line
    return line


# ------------------------------------------------------------------------------------------------------ single files


@pytest.mark.parametrize("name", tiny.NAMES)
def test_single_file_is_the_folder(name, tiny_file, tmp_path):
    """A checkpoint in the public layout loads tensor for tensor as the diffusers folder of the same model."""
    path, made = tiny_file(name)
    one = load(ModelOptions(path=str(path)))
    two = load(ModelOptions(path=str(tiny.write(tmp_path / "folder", made))))
    for part in ("unet", "vae", *made.text_encoders):
        first, second = ({**f.modules, "vae": f.vae}[part].state_dict() for f in (one, two))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), part
    with torch.no_grad():
        first, second = one.encode_text(["a red cat"]), two.encode_text(["a red cat"])
    assert torch.allclose(first.hidden, second.hidden, atol=1e-6)
    if first.pooled is not None and second.pooled is not None:
        assert torch.allclose(first.pooled, second.pooled, atol=1e-6)
    assert (one.scale, one.shift) == (two.scale, two.shift)
    assert one.metadata()["ss_new_sd_model_hash"] == sources.sha256(path)


@pytest.mark.parametrize("name", ALL)
def test_family_is_seen_in_names_and_shapes(name):
    """Public single files, by their tensors' names and shapes at full size."""
    denoiser, encoders = meta(name)
    shapes = {key: tuple(value.shape) for key, value in ldm.checkpoint(name, denoiser, None, encoders).items()}
    landmarks = {  # as written in public files
        "sd15": "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
        "sd2": "cond_stage_model.model.transformer.resblocks.23.mlp.c_proj.bias",
        "sdxl": "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias",
        "sd3-medium": "text_encoders.clip_g.transformer.text_model.embeddings.position_embedding.weight",
        "sd3.5-medium": "model.diffusion_model.joint_blocks.12.x_block.attn2.ln_k.weight",
        "sd3.5-large": "model.diffusion_model.joint_blocks.37.x_block.mlp.fc1.weight",
    }
    assert landmarks[name] in shapes
    file = header("m.safetensors", shapes)
    assert loading._file_spec(file).name == name
    bare = {key.removeprefix("model.diffusion_model."): s for key, s in shapes.items() if key.startswith("model.diff")}
    assert loading._file_spec(header("m.safetensors", bare)).name == name


@pytest.mark.parametrize("name", ALL)
def test_family_is_seen_in_a_folders_configuration(name, tmp_path):
    spec = families[name].build()
    (tmp_path / spec.part).mkdir()
    (tmp_path / spec.part / "config.json").write_text(json.dumps({"_class_name": spec.model, **spec.config}), "utf-8")
    assert loading._folder_spec(tmp_path).name == name


def test_half_precision_and_eight_bit_files_are_widened(tiny_file, tmp_path):
    path, made = tiny_file("sd3-medium")
    tensors = ldm.checkpoint("sd3-medium", made.denoiser, made.vae, made.text_encoders)
    small = {k: v.to(torch.float8_e4m3fn) if "t5xxl" in k else v.half() for k, v in tensors.items()}
    ldm.write(path, small)
    family = load(ModelOptions(path=str(path)), dtype=torch.bfloat16, vae_dtype=torch.float32)
    assert {p.dtype for p in family.text_encoders["te3"].parameters()} == {torch.bfloat16}
    assert {p.dtype for p in family.vae.parameters()} == {torch.float32}
    want = small["text_encoders.t5xxl.transformer.shared.weight"].to(torch.bfloat16)
    assert torch.equal(family.text_encoders["te3"].shared.weight, want)
    assert family.text_encoders["te3"].shared.weight is family.text_encoders["te3"].encoder.embed_tokens.weight


def test_old_names_of_clip_and_positions_are_read(tiny_file):
    """Merges have CLIP without ``text_model.`` and with position ids, sometimes as floats."""
    prefix = "cond_stage_model.transformer."
    made = tiny.sd15()
    old = {prefix + key: value for key, value in made.text_encoders["te"].state_dict().items()}
    old[prefix + "embeddings.position_ids"] = torch.arange(77.0)[None]
    path, _ = tiny_file("sd15", keep=lambda key: ".text_model." not in key, change=old)
    family = load(ModelOptions(path=str(path)))
    with torch.no_grad():
        ids = torch.tensor([[1, 2, 3]])
        assert torch.equal(family.text_encoders["te"](ids)[0], made.text_encoders["te"](ids)[0])


def test_clip_l_of_sd3_without_projection_has_the_identity(tiny_file):
    """So are SD3's public files."""
    projection = "text_encoders.clip_l.transformer.text_projection.weight"
    path, made = tiny_file("sd3-medium", keep=lambda key: key != projection)
    family = load(ModelOptions(path=str(path), use_t5=False))
    assert torch.equal(family.text_encoders["te1"].text_projection.weight, torch.eye(12))
    assert torch.equal(
        family.text_encoders["te2"].text_projection.weight, made.text_encoders["te2"].text_projection.weight
    )


def test_text_encoders_in_files_of_their_own(tiny_file, tmp_path):
    """SD3.5's public files hold none: clip_l, clip_g and t5 are named beside it."""
    path, made = tiny_file("sd3.5-large", keep=lambda key: not key.startswith("text_encoders."))
    refused(ModelOptions(path=str(path)), "text_encoder", "model.clip_l")
    files = {}
    for option, key in (("clip_l", "te1"), ("clip_g", "te2"), ("t5", "te3")):
        state = made.text_encoders[key].state_dict()
        state.pop("encoder.embed_tokens.weight", None)
        files[option] = str(ldm.write(tmp_path / f"{option}.safetensors", state))
    family = load(ModelOptions(path=str(path), **files))
    for key, module in made.text_encoders.items():
        for tensor, value in module.state_dict().items():
            assert torch.equal(family.text_encoders[key].state_dict()[tensor], value), (key, tensor)
    assert sum("safetensors" in note for note in family.notes) == 4
    without = load(ModelOptions(path=str(path), clip_l=files["clip_l"], clip_g=files["clip_g"]))
    assert "te3" not in without.text_encoders and any("model.t5" in note for note in without.notes)
    assert without.fingerprints["text"] != family.fingerprints["text"]


def test_a_separate_autoencoder(tiny_file, tmp_path):
    """As a file in LDM's layout or diffusers', new or old, and as a folder; the base's scale stays."""
    path, _ = tiny_file("sdxl")
    other = tiny.vae(scale=0.18215)
    other.decoder.conv_out.bias.data += 1
    ldm.write(tmp_path / "ldm.safetensors", ldm.vae(other.state_dict()))
    ldm.write(tmp_path / "diffusers.safetensors", other.state_dict())
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    state = other.state_dict()
    for new, name in old.items():
        state = {key.replace(new, name): value for key, value in state.items()}
    ldm.write(tmp_path / "old.safetensors", state)
    other.save_pretrained(tmp_path / "folder")
    other.save_pretrained(tmp_path / "model" / "vae")
    for given in ("ldm.safetensors", "diffusers.safetensors", "old.safetensors", "folder", "model"):
        family = load(ModelOptions(path=str(path), vae=str(tmp_path / given)))
        assert all(torch.equal(v, family.vae.state_dict()[k]) for k, v in other.state_dict().items())
        assert family.scale == 0.13025
    assert family.metadata()["ss_vae_name"] == "model"
    ldm.write(tmp_path / "sd3.safetensors", ldm.vae(tiny.vae(16, 1.5305, 0.0609).state_dict()))
    refused(ModelOptions(path=str(path), vae=str(tmp_path / "sd3.safetensors")), "model.vae", "16 latent", "has 4")
    refused(ModelOptions(path=str(path), vae=str(path.with_name("none.safetensors"))), "model.vae", "none.safetensors")


def test_tensor_only_ckpt_loads_and_other_pickles_are_refused(tiny_file, tmp_path):
    _, made = tiny_file("sd15")
    tensors = ldm.checkpoint("sd15", made.denoiser, made.vae, made.text_encoders)
    torch.save({"state_dict": tensors, "global_step": 5}, tmp_path / "plain.ckpt")
    family = load(ModelOptions(path=str(tmp_path / "plain.ckpt")))
    assert torch.equal(family.denoiser.conv_in.weight, made.denoiser.conv_in.weight)
    torch.save({"state_dict": tensors, "hook": Path("x")}, tmp_path / "more.ckpt")
    refused(ModelOptions(path=str(tmp_path / "more.ckpt")), "more.ckpt", ".safetensors")
    (tmp_path / "old.ckpt").write_bytes(pickle.dumps({"a": 1}))
    refused(ModelOptions(path=str(tmp_path / "old.ckpt")), "old.ckpt")


# --------------------------------------------------------------------------------------------- prediction and schedule


def last_alpha(process: Process) -> float:
    assert process.alphas is not None
    return float(process.alphas[-1])


def test_prediction_is_read_from_the_file(tiny_file):
    path, _ = tiny_file("sdxl")
    plain = identify(ModelOptions(path=str(path)))
    assert plain.process.prediction == "epsilon" and "otherwise" in " ".join(plain.notes)
    assert last_alpha(plain.process) == pytest.approx(0.004660, abs=1e-6)
    assert identify(ModelOptions(path=str(path), prediction="v")).process.prediction == "v"
    path, _ = tiny_file("sdxl", change={"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)})
    marked = identify(ModelOptions(path=str(path)))
    assert marked.process.prediction == "v" and last_alpha(marked.process) == 0 and "v_pred" in " ".join(marked.notes)
    assert last_alpha(identify(ModelOptions(path=str(path), zero_terminal_snr=False)).process) > 0
    line = refused(ModelOptions(path=str(path), prediction="epsilon"), "epsilon", "predicts v", "v_pred")
    assert line.startswith("model.prediction:")
    path, _ = tiny_file("sdxl", **{"modelspec.prediction_type": "v"})
    assert identify(ModelOptions(path=str(path))).process.prediction == "v"


def test_a_name_that_speaks_of_v_is_asked_about(tiny_file):
    path, _ = tiny_file("sdxl")
    named = path.rename(path.with_name("anime-Vpred.safetensors"))
    refused(ModelOptions(path=str(named)), "model.prediction", "name", "prediction = 'v' or 'epsilon'")
    assert identify(ModelOptions(path=str(named), prediction="v")).process.prediction == "v"


def test_sd2_files_do_not_say_what_they_predict():
    """The 512 base predicts noise, the 768 model v; their tensors are the same."""
    evidence = loading._file_evidence(header("768.safetensors", {}))
    spec = families["sd2"].build()
    with pytest.raises(ValueError, match="do not say what they predict; set prediction = 'v' or 'epsilon'"):
        loading._prediction(ModelOptions(path="m"), spec, evidence, [])
    assert loading._prediction(ModelOptions(path="m", prediction="v"), spec, evidence, []) == "v"


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_prediction_is_read_from_a_folders_scheduler(name, tmp_path):
    folder = tiny.write(tmp_path / name, tiny.parts(name, prediction="v"))
    assert identify(ModelOptions(path=str(folder))).process.prediction == "v"
    refused(ModelOptions(path=str(folder), prediction="epsilon"), "epsilon", "predicts v", "scheduler_config.json")
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(config | {"rescale_betas_zero_snr": True, "beta_end": 0.02}), "utf-8")
    process = identify(ModelOptions(path=str(folder))).process
    assert last_alpha(process) == 0 and float(process.scales(torch.zeros(1))[0]) ** 2 == pytest.approx(
        1 - 0.00085, abs=1e-5
    )
    path.write_text(json.dumps(config | {"beta_schedule": "linear"}), "utf-8")
    refused(ModelOptions(path=str(folder)), "beta_schedule linear", "scaled_linear")


def test_flow_has_no_other_prediction(tmp_path):
    folder = tiny.tiny_sd3(tmp_path / "m")
    process = identify(ModelOptions(path=str(folder))).process
    assert process.is_flow and process.prediction == "flow"
    refused(ModelOptions(path=str(folder), prediction="v"), "v", "predicts flow")
    refused(ModelOptions(path=str(folder), zero_terminal_snr=True), "zero_terminal_snr")


def test_zero_terminal_snr_needs_v(tmp_path):
    folder = tiny.tiny_sd15(tmp_path / "m")
    refused(ModelOptions(path=str(folder), zero_terminal_snr=True), "zero_terminal_snr", "epsilon", "'v'")
    with pytest.raises(ValueError, match="zero_terminal_snr"):
        ModelOptions(path="m", prediction="epsilon", zero_terminal_snr=True)


# ------------------------------------------------------------------------------------------------------- what is wrong


def test_family_that_contradicts_the_file(tmp_path):
    folder = tiny.tiny_sd15(tmp_path / "m")
    refused(ModelOptions(path=str(folder), family="sdxl"), "sdxl", "sd15", "'auto'")


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        ({"lora_unet_down_blocks_0_x.lora_down.weight": (4, 8)}, "adapter (LoRA)"),
        ({"unet.down_blocks.0.attn1.to_q.lora_A.weight": (4, 8)}, "adapter (LoRA)"),
        ({"lora_te_x.hada_w1_a": (4, 8)}, "adapter (LoRA)"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3)}, "inpainting"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
          "model.diffusion_model.label_emb.0.0.weight": (1536, 2560)}, "refiner"),
        ({"control_model.input_blocks.0.0.weight": (320, 4, 3, 3)}, "ControlNet"),
        ({"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": (8, 8)}, "Flux"),
        ({"decoder.conv_in.weight": (8, 4, 3, 3)}, "autoencoder (VAE) alone"),
        ({"text_model.embeddings.token_embedding.weight": (8, 4)}, "text encoder alone"),
        ({"string_to_param": (3, 768)}, "embedding"),
        ({"model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight": (8, 8), "scaled_fp8": (2,)}, "8-bit"),
        ({"weights": (2,)}, "no model that is known"),
    ],
)  # fmt: skip
def test_files_that_are_something_else(tensors, what, tmp_path):
    path = tmp_path / "thing.safetensors"
    save_file({key: torch.zeros(shape) for key, shape in tensors.items()}, path)
    refused(ModelOptions(path=str(path)), "thing.safetensors", what)


def test_damaged_and_missing_files(tiny_file, tmp_path):
    path, _ = tiny_file("sd15")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-1000])
    refused(ModelOptions(path=str(cut)), "cut.safetensors", "damaged")
    page = tmp_path / "page.safetensors"
    page.write_text("<!doctype html><html>not found</html>", "utf-8")
    refused(ModelOptions(path=str(page)), "page.safetensors", "download it again")
    refused(ModelOptions(path=str(tmp_path / "sd51.safetensors")), "sd51.safetensors", "did you mean sd15.safetensors")
    refused(ModelOptions(path=str(tmp_path / "notes.txt")), "notes.txt")
    (tmp_path / "notes.txt").write_text("x", "utf-8")
    refused(ModelOptions(path=str(tmp_path / "notes.txt")), "notes.txt", ".safetensors")
    refused(ModelOptions(path=str(tmp_path)), "no diffusers folder", "cut.safetensors")


@pytest.mark.parametrize(
    ("lost", "says"),
    [
        ("model.diffusion_model.middle_block.2.in_layers.2.weight", "mid_block.resnets.1.conv1.weight"),
        ("model.diffusion_model.time_embed.0.weight", "time_embedding.linear_1.weight"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.weight", "final_layer_norm.weight"),
        ("first_stage_model.decoder.conv_out.weight", "decoder.conv_out.weight"),
    ],
)
def test_a_tensor_that_is_missing_is_named(tiny_file, lost, says):
    path, _ = tiny_file("sd15", keep=lambda key: key != lost)
    refused(ModelOptions(path=str(path)), says, "incomplete")


def test_a_tensor_of_another_size_is_named(tiny_file):
    key = "model.diffusion_model.out.2.bias"
    path, _ = tiny_file("sd15", change={key: torch.zeros(9)})
    refused(ModelOptions(path=str(path)), "conv_out.bias")


def test_a_file_without_an_autoencoder_or_text(tiny_file):
    path, _ = tiny_file("sd15", keep=lambda key: not key.startswith("first_stage_model."))
    refused(ModelOptions(path=str(path)), "no autoencoder", "model.vae")
    path, _ = tiny_file("sd15", keep=lambda key: not key.startswith("cond_stage_model."))
    refused(ModelOptions(path=str(path)), "text_encoder")


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("sd15", {"clip_g": "x"}, "model.clip_g"),
        ("sd15", {"t5": "x"}, "model.t5"),
        ("sdxl", {"t5_mask": True}, "model.t5_mask"),
        ("sdxl", {"clip_skip": 3}, "model.clip_skip"),
        ("sd3-medium", {"weighted_captions": True}, "model.weighted_captions"),
        ("sd3-medium", {"max_tokens": 225}, "t5_max_tokens"),
    ],
)
def test_options_that_a_family_does_not_have(name, options, says, tmp_path):
    folder = tiny.write(tmp_path / "m", tiny.parts(name))
    refused(ModelOptions(path=str(folder), **options), says)


def test_options_that_do_nothing_are_noted(tmp_path):
    folder = str(tiny.tiny_sdxl(tmp_path / "m"))
    plain, one, two = (identify(ModelOptions(path=folder, clip_skip=skip)).notes for skip in (None, 1, 2))
    assert plain == two and one[:-1] == plain and "clip_skip = 1 has no effect" in one[-1]
    notes = identify(ModelOptions(path=folder, use_t5=False, t5_on_cpu=True)).notes
    assert [note.split(":")[0] for note in notes[-2:]] == [f"model.{n} has no effect" for n in ("use_t5", "t5_on_cpu")]


def test_folders_with_one_variant_and_with_a_broken_part(tmp_path):
    folder = tiny.tiny_sd15(tmp_path / "m")
    for part in ("unet", "vae"):
        plain = folder / part / "diffusion_pytorch_model.safetensors"
        plain.rename(plain.with_name("diffusion_pytorch_model.fp16.safetensors"))
    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder" / "model.fp16.safetensors")
    assert load(ModelOptions(path=str(folder))).name == "sd15"
    (folder / "vae" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"\0" * 64)
    refused(ModelOptions(path=str(folder)), "vae", "download it again")
    (folder / "vae" / "config.json").unlink()
    refused(ModelOptions(path=str(folder)), "no autoencoder", "model.vae")


def test_folders_written_before_transformers_5(tmp_path):
    """Their CLIP tensors begin with ``text_model.``."""
    made = tiny.sd15()
    folder = tiny.write(tmp_path / "m", made)
    ldm.write(folder / "text_encoder" / "model.safetensors", ldm.clip(made.text_encoders["te"].state_dict()))
    family = load(ModelOptions(path=str(folder)))
    for key, value in made.text_encoders["te"].state_dict().items():
        assert torch.equal(family.text_encoders["te"].state_dict()[key], value), key


# ------------------------------------------------------------------------------------------------ hub and tokenizers


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No network and an empty hub cache."""
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    return tmp_path / "hub"


def test_a_hub_id_without_network(offline):
    refused(ModelOptions(path="someone/some-model"), "someone/some-model", "cannot be reached")


def test_a_hub_id_from_the_cache(offline):
    """As the hub's client lays it down: snapshots/COMMIT and refs/main."""
    home = offline / "models--someone--tiny"
    tiny.tiny_sd15(home / "snapshots" / "abc123")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc123", "utf-8")
    family = load(ModelOptions(path="someone/tiny"))
    assert family.name == "sd15" and len(family.fingerprints["model"]) == 64


def test_t5s_tokenizer_is_looked_for_and_missed_in_words(tmp_path, offline, monkeypatch):
    encoder = families["sd3-medium"].build().encoders["te3"]
    model = tmp_path / "ComfyUI" / "models" / "checkpoints" / "sd3.safetensors"
    model.parent.mkdir(parents=True)
    model.touch()
    with pytest.raises(ValueError) as error:
        words.tokenizer(encoder, model, None)
    line = str(error.value)
    assert "tokenizer.json" in line and str(model.parent / "t5_tokenizer") in line and "use_t5 = false" in line

    places = {
        "comfyui": tmp_path / "ComfyUI" / "comfy" / "text_encoders" / "t5_tokenizer",
        "beside": model.parent / "t5_tokenizer",
        "cache": tmp_path / "tokenizers" / "google_t5-v1_1-xxl",
    }
    for place in places.values():
        tiny.t5_tokenizer().save_pretrained(place)
        found = words.tokenizer(encoder, model, str(tmp_path / "tokenizers"))
        assert found("a red cat").input_ids == tiny.t5_tokenizer()("a red cat").input_ids
        assert Path(found.name_or_path) == place  # each later one goes before the earlier ones


def test_clips_tokenizer_is_built_in_and_yields_to_the_models_own(tmp_path):
    spec = families["sdxl"].build()
    file = tmp_path / "m.safetensors"
    file.touch()
    first, second = (words.tokenizer(spec.encoders[key], file, None) for key in ("te1", "te2"))
    assert len(first) == len(second) == 49408 and first.pad_token_id == 49407 and second.pad_token_id == 0
    folder = tiny.tiny_sdxl(tmp_path / "folder")
    own = words.tokenizer(spec.encoders["te2"], folder, None)
    assert len(own) == len(tiny.clip_tokenizer()) and own.pad_token == "!"
    for key, name in (("te1", "openai_clip-vit-large-patch14"), ("te2", "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k")):
        tiny.clip_tokenizer().save_pretrained(tmp_path / "cache" / name)
        cached = words.tokenizer(spec.encoders[key], file, str(tmp_path / "cache"))
        assert len(cached) == len(tiny.clip_tokenizer())
        assert cached.pad_token == ("!" if key == "te2" else "<|endoftext|>")


def test_a_model_that_lost_its_own_tokenizer(tmp_path):
    """The built-in one has more words than a small encoder knows."""
    folder = tiny.tiny_sd15(tmp_path / "m")
    shutil.rmtree(folder / "tokenizer")
    refused(ModelOptions(path=str(folder)), "49408", str(folder / "tokenizer"))


def test_tokenizers_in_the_old_two_files(tmp_path):
    """vocab.json and merges.txt, as ComfyUI and older folders have them."""
    whole = tiny.clip_tokenizer()
    model = json.loads(whole.backend_tokenizer.to_str())["model"]
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
    merges = [" ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77, "pad_token": "!"}), "utf-8")
    found = words.tokenizer(families["sdxl"].build().encoders["te1"], tmp_path, None)
    assert found("a red cat").input_ids == whole(
        "a red cat"
    ).input_ids and found.pad_token_id == whole.convert_tokens_to_ids("!")


# --------------------------------------------------------------------------------------------------------- hashes


def test_hashes(tmp_path, monkeypatch):
    import hashlib

    monkeypatch.setattr(sources, "_memo_file", lambda: tmp_path / "cache" / "hashes.json")
    monkeypatch.setattr(sources, "_MEMO_FROM", 1 << 20)
    path = tmp_path / "f.bin"
    content = bytes(range(256)) * 5000
    path.write_bytes(content)
    whole = hashlib.sha256(content).hexdigest()
    assert sources.sha256(path) == whole
    assert sources.short_hash(path) == hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    memo = tmp_path / "cache" / "hashes.json"
    (key,) = json.loads(memo.read_text("utf-8"))
    memo.write_text(json.dumps({key: "remembered"}), "utf-8")
    assert sources.sha256(path) == "remembered"
    path.write_bytes(content + b"x")  # another size: hashed again
    assert sources.sha256(path) == hashlib.sha256(content + b"x").hexdigest()
    memo.write_text("not json", "utf-8")
    assert sources.sha256(path) == hashlib.sha256(content + b"x").hexdigest()


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_folder_that_lacks_a_tensor_is_incomplete(part, tmp_path):
    folder = tiny.write(tmp_path / "m", tiny.parts("sd15"))
    (file,) = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    lost = max(weights)
    save_file({key: value for key, value in weights.items() if key != lost}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=re.escape(f"lacks {lost} (1 in all); it is incomplete")):
        load(ModelOptions(path=str(folder)))
