"""Each family against diffusers' own pipeline, on tiny models: text, network outputs and latents."""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from pixelkiln.trainer.families.load import load, meta
from pixelkiln.trainer.families.options import ModelOptions
from pixelkiln.trainer.registry import families

CAPTIONS = ["a red cat", "", "big house with car in the sky, drawing style " * 12]
NAMES = tiny.NAMES


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("families")
    return {name: tiny.write(base / name, tiny.parts(name)) for name in NAMES}


def pipeline(folder: Path):
    diffusers: Any = import_module("diffusers")

    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    missing = {name: None for name, parts in index.items() if parts == [None, None]}
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True, **missing)
    pipe.set_progress_bar_config(disable=True)
    # Diffusers looks for the final norm where transformers had it before 5.6.
    if not hasattr(pipe.text_encoder, "text_model"):
        pipe.text_encoder.__dict__["text_model"] = pipe.text_encoder
    return pipe


def pipeline_text(pipe, captions: list[str], clip_skip: int | None = None) -> tuple[Any, Any]:
    """(hidden, pooled or None) as the pipeline conditions its denoiser."""
    kind = type(pipe).__name__
    if kind == "StableDiffusionPipeline":
        return pipe.encode_prompt(captions, "cpu", 1, False, clip_skip=clip_skip)[0], None
    if kind == "StableDiffusionXLPipeline":
        hidden, _, pooled, _ = pipe.encode_prompt(captions, device="cpu", do_classifier_free_guidance=False)
    else:
        hidden, _, pooled, _ = pipe.encode_prompt(captions, captions, captions, do_classifier_free_guidance=False)
    return hidden, pooled


@pytest.mark.parametrize("name", NAMES)
def test_text_is_the_pipelines(folders, name):
    family = load(ModelOptions(path=str(folders[name])))
    assert family.name == name
    with torch.no_grad():
        text = family.encode_text(CAPTIONS)
        hidden, pooled = pipeline_text(pipeline(folders[name]), CAPTIONS)
    assert torch.equal(text.hidden, hidden)
    assert (text.pooled is None) == (pooled is None)
    assert text.pooled is None or torch.equal(text.pooled, pooled)


@pytest.mark.parametrize("name", NAMES)
def test_network_is_the_pipelines(folders, name):
    """The denoiser's input and output inside a real pipeline call, against ``predict`` at the same level."""
    family, pipe = load(ModelOptions(path=str(folders[name]))), pipeline(folders[name])
    net = pipe.transformer if hasattr(pipe, "transformer") else pipe.unet
    seen = []
    net.register_forward_hook(lambda module, args, kwargs, out: seen.append((args, kwargs, out[0])), with_kwargs=True)
    pipe("a red cat", num_inference_steps=2, guidance_scale=1.0, height=64, width=48, output_type="latent",
         generator=torch.Generator().manual_seed(3))  # fmt: skip
    with torch.no_grad():
        text = family.encode_text(["a red cat"])
        for args, kwargs, out in seen:
            noisy = args[0] if args else kwargs["hidden_states"]
            time = (args[1] if len(args) > 1 else kwargs["timestep"]).reshape(1)
            level = time / 1000 if family.process.is_flow else time.float()
            assert torch.equal(family.process.time(level).float(), time.float())
            assert torch.equal(family.predict(noisy, level, text), out)
    assert len(seen) == 2


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3-medium"])
def test_latents_are_the_autoencoders(folders, name):
    family = load(ModelOptions(path=str(folders[name])))
    s, m = {"sd15": (0.18215, 0.0), "sdxl": (0.13025, 0.0), "sd3-medium": (1.5305, 0.0609)}[name]
    x = torch.rand(3, 3, 64, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    z = family.encode_pixels(x)
    assert z.shape == (3, family.channels, 64 // family.cell, 48 // family.cell) and z.dtype == torch.float32
    with torch.no_grad():
        for i in range(3):
            assert torch.equal(z[i : i + 1], (family.vae.encode(x[i : i + 1]).latent_dist.mean - m) * s)
            assert torch.equal(z[i : i + 1], family.encode_pixels(x[i : i + 1]))
        one = family.vae.decode(z[:1] / s + m).sample
    assert torch.equal(family.decode(z)[:1], one)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(family.encode_pixels(x), z)


def test_clip_skip_counts_from_the_end(folders):
    """Kohya's n is diffusers' n - 1; no clip skip is n = 1."""
    pipe = pipeline(folders["sd15"])
    states = {}
    with torch.no_grad():
        for n in (1, 2, 3):
            family = load(ModelOptions(path=str(folders["sd15"]), clip_skip=n))
            states[n] = family.encode_text(CAPTIONS).hidden
            assert torch.equal(states[n], pipeline_text(pipe, CAPTIONS, n - 1)[0])
        assert torch.equal(states[1], load(ModelOptions(path=str(folders["sd15"]))).encode_text(CAPTIONS).hidden)
    assert not torch.equal(states[1], states[2])


def test_micro_conditioning_reaches_the_network(folders):
    """Sizes are h, w; top, left; target h, w, as the pipeline's time ids; without sizes the picture's own."""
    family, pipe = load(ModelOptions(path=str(folders["sdxl"]))), pipeline(folders["sdxl"])
    noisy, level = torch.randn(1, 4, 8, 6, generator=torch.Generator().manual_seed(2)), torch.tensor([500.0])
    ids = pipe._get_add_time_ids((300, 200), (16, 8), (64, 48), torch.float32, 24)
    with torch.no_grad():
        text = family.encode_text(["a red cat"])
        size = torch.tensor([[300.0, 200, 16, 8, 64, 48]])
        out = family.predict(noisy, level, replace(text, size=size))
        want = pipe.unet(
            noisy, 500, text.hidden, added_cond_kwargs={"text_embeds": text.pooled, "time_ids": ids}
        ).sample
        assert torch.equal(out, want)
        own = torch.tensor([[64.0, 48, 0, 0, 64, 48]])
        assert torch.equal(family.predict(noisy, level, text), family.predict(noisy, level, replace(text, size=own)))
        assert not torch.equal(out, family.predict(noisy, level, text))


def test_missing_t5_is_zeros(tmp_path):
    folder = tiny.tiny_sd3(tmp_path / "m", with_t5=False)
    family = load(ModelOptions(path=str(folder)))
    with torch.no_grad():
        text = family.encode_text(CAPTIONS)
        hidden, pooled = pipeline_text(pipeline(folder), CAPTIONS)
    assert torch.equal(text.hidden, hidden) and text.pooled is not None and torch.equal(text.pooled, pooled)
    assert text.hidden.shape[1] == 77 + 256 and not text.hidden[:, 77:].any()
    assert any("T5" in note for note in family.notes)


def test_t5_can_be_left_out_cut_and_masked(folders):
    def encoded(**options) -> torch.Tensor:
        with torch.no_grad():
            return load(ModelOptions(path=str(folders["sd3-medium"]), **options)).encode_text(["a red cat"]).hidden

    whole = encoded()
    assert not encoded(use_t5=False)[:, 77:].any()
    assert encoded(t5_max_tokens=32).shape[1] == 77 + 32
    masked = encoded(t5_mask=True)
    assert torch.equal(masked[:, :77], whole[:, :77]) and not torch.equal(masked[:, 77:80], whole[:, 77:80])
    # With its padding hidden T5 reads the same words however much padding there is.
    assert torch.allclose(masked[:, 77:80], encoded(t5_mask=True, t5_max_tokens=16)[:, 77:80], atol=1e-6)
    # Padding that T5 sees differs from row to row. Hidden it repeats, from where all five words are as far as T5 tells
    # distances apart (91) on.
    repeated = [(states[0, 78:] == states[0, 77:-1]).all(1) for states in (whole, masked)]
    assert not repeated[0].any() and repeated[1][4 + 91 :].all()
    # CLIP is causal: hiding what comes later changes nothing up to the end mark.
    assert torch.allclose(encoded(clip_mask=True)[:, :5], whole[:, :5], atol=1e-6)


def test_gradients_reach_the_text_encoders(folders):
    """Trained encoders: with and without gradient checkpointing the same gradients."""
    found = []
    for checkpointing in (False, True):
        family = load(ModelOptions(path=str(folders["sdxl"])))
        for module in family.modules.values():
            module.requires_grad_(True).train()
        if checkpointing:
            family.denoiser.enable_gradient_checkpointing()
            for encoder in family.text_encoders.values():
                encoder.gradient_checkpointing_enable()
        noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4))
        out = family.predict(noisy, torch.tensor([10.0, 900.0]), family.encode_text(["a red cat", "ink"]))
        out.square().mean().backward()
        grads = {f"{key}.{n}": p.grad for key, m in family.modules.items() for n, p in m.named_parameters()}
        found.append({name: grad for name, grad in grads.items() if grad is not None})
    plain, checkpointed = found
    assert any(name.startswith("te1.") for name in plain) and any(name.startswith("te2.") for name in plain)
    assert plain.keys() == checkpointed.keys()
    for name, grad in plain.items():
        assert torch.allclose(grad, checkpointed[name], rtol=1e-5, atol=1e-8), name


def test_precisions(folders):
    """fp16 never reaches an autoencoder; outputs are float32; float64 stays."""
    path = str(folders["sd15"])
    half = load(ModelOptions(path=path), dtype=torch.float16)
    assert half.denoiser.dtype == torch.float16 and half.vae.dtype == torch.float32
    assert half.text_encoders["te"].dtype == torch.float16
    brain = load(ModelOptions(path=path), dtype=torch.bfloat16, text_dtype=torch.float32)
    assert brain.vae.dtype == torch.bfloat16 and brain.text_encoders["te"].dtype == torch.float32
    noisy, level = torch.randn(1, 4, 8, 8), torch.tensor([300.0])
    with torch.no_grad():
        assert brain.predict(noisy, level, brain.encode_text(["a"])).dtype == torch.float32
        wide = load(ModelOptions(path=path), dtype=torch.float64)
        assert wide.predict(noisy, level, wide.encode_text(["a"])).dtype == torch.float64
        assert wide.encode_pixels(torch.zeros(1, 3, 64, 64)).dtype == torch.float64


def test_loaded_models_are_frozen(folders):
    family = load(ModelOptions(path=str(folders["sd3.5-medium"])))
    assert set(family.modules) == {"unet", "te1", "te2", "te3"}
    for module in (*family.modules.values(), family.vae):
        assert not module.training and not any(p.requires_grad for p in module.parameters())


def test_fingerprints_follow_what_is_read(folders, tmp_path):
    def prints(name: str = "sd15", **options) -> dict[str, str]:
        return load(ModelOptions(path=str(folders[name]), **options)).fingerprints

    base = prints()
    assert base == prints()
    used = load(ModelOptions(path=str(folders["sd15"])))
    used.encode_text(["a cat"])
    used.tokenizers["te"](["a cat"], padding="max_length", truncation=True)
    assert used.fingerprints == base
    skipped = prints(clip_skip=2)
    assert skipped["text"] != base["text"] and skipped["vae"] == base["vae"] and skipped["model"] == base["model"]
    other = tiny.vae(scale=0.18215)
    other.decoder.conv_out.bias.data += 1
    other.save_pretrained(tmp_path / "vae")
    changed = prints(vae=str(tmp_path / "vae"))
    assert changed["vae"] != base["vae"] and changed["text"] == base["text"]
    assert load(ModelOptions(path=str(folders["sd15"])), vae_dtype=torch.bfloat16).fingerprints["vae"] != base["vae"]


def test_moving_leaves_t5_where_it_is_told(folders):
    family = load(ModelOptions(path=str(folders["sd3-medium"]), t5_on_cpu=True))
    family.to("meta")
    where = {name: next(m.parameters()).device.type for name, m in {**family.modules, "vae": family.vae}.items()}
    assert where == {"unet": "meta", "te1": "meta", "te2": "meta", "te3": "cpu", "vae": "meta"}


@pytest.mark.parametrize("name", [entry.name for entry in families])
def test_every_family_has_a_meta_model(name):
    """Parameters in millions, position tables aside: 0.86 B, 0.87 B, 2.6 B, 2 B, 2.2 B and 8 B are the public sizes."""
    spec = families[name].build()
    assert spec.name == name
    denoiser, encoders = meta(name)
    assert all(p.is_meta for module in (denoiser, *encoders.values()) for p in module.parameters())
    size = round(sum(p.numel() for p in denoiser.parameters()) / 1e6)
    assert (
        size
        == {"sd15": 860, "sd2": 866, "sdxl": 2567, "sd3-medium": 2028, "sd3.5-medium": 2243, "sd3.5-large": 8057}[name]
    )
    assert set(encoders) == set(spec.encoders)
    gc.collect()


def test_options_need_no_heavy_library():
    """The configuration is read in about a second: what it imports must not bring the model libraries."""
    import subprocess

    code = "import sys, pixelkiln.trainer.families.options; print({'diffusers', 'transformers'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "set()"
