"""Public sizes with random weights, through a single file in the public layout, against diffusers' own pipelines.

SD 1.5 is whole. The others have their full width and every kind of module at reduced depth, so that 6 GB are enough.
"""

from __future__ import annotations

import resource
from dataclasses import replace
from importlib import import_module
from typing import Any

import ldm
import pytest
import torch
from public_models import fill, random_file, shallow

from pixelkiln.trainer.families import load as loading
from pixelkiln.trainer.families import parts
from pixelkiln.trainer.families.load import load
from pixelkiln.trainer.families.options import ModelOptions
from pixelkiln.trainer.families.sources import open_file
from pixelkiln.trainer.registry import families

CAPTIONS = ["a photograph of an astronaut riding a horse", "", "intricate, highly detailed, (sharp focus), " * 12]


def pipeline(family):
    """Diffusers' own pipeline around the very modules."""
    diffusers: Any = import_module("diffusers")

    encoders, words = family.text_encoders, family.tokenizers
    if family.name.startswith("sd3"):
        return diffusers.StableDiffusion3Pipeline(
            family.denoiser, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), family.vae,
            encoders["te1"], words["te1"], encoders["te2"], words["te2"], encoders.get("te3"), words.get("te3"),
        )  # fmt: skip
    scheduler = diffusers.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    if family.name == "sdxl":
        return diffusers.StableDiffusionXLPipeline(
            family.vae, encoders["te1"], encoders["te2"], words["te1"], words["te2"], family.denoiser, scheduler
        )
    return diffusers.StableDiffusionPipeline(
        family.vae, encoders["te"], words["te"], family.denoiser, scheduler, None, None, requires_safety_checker=False
    )


@pytest.mark.nightly
@pytest.mark.parametrize("name", [entry.name for entry in families])
def test_public_sizes(name, tmp_path, monkeypatch):
    spec = shallow(families[name].build())
    monkeypatch.setattr(loading, "_specs", lambda: [spec])
    path = random_file(spec, tmp_path / f"{name}.safetensors")
    prediction = "v" if name == "sd2" else "auto"
    family = load(ModelOptions(path=str(path), prediction=prediction))
    path.unlink()
    pipe = pipeline(family)
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        text = family.encode_text(CAPTIONS)
        if name in ("sd15", "sd2"):
            assert torch.equal(text.hidden, pipe.encode_prompt(CAPTIONS, "cpu", 1, False)[0])
        else:
            more = {} if name == "sdxl" else {"prompt_2": None, "prompt_3": None}
            hidden, _, pooled, _ = pipe.encode_prompt(CAPTIONS, device="cpu", do_classifier_free_guidance=False, **more)
            assert torch.equal(text.hidden, hidden)
            assert text.pooled is not None and torch.equal(text.pooled, pooled)
        seen = []
        net = family.denoiser
        hook = net.register_forward_hook(
            lambda m, args, kwargs, out: seen.append((args, kwargs, out[0])), with_kwargs=True
        )
        pipe(CAPTIONS[0], num_inference_steps=1, guidance_scale=1.0, height=64, width=64, output_type="latent")
        hook.remove()
        ((args, kwargs, out),) = seen
        noisy = args[0] if args else kwargs["hidden_states"]
        time = (args[1] if len(args) > 1 else kwargs["timestep"]).reshape(1)
        level = time / 1000 if family.process.is_flow else time.float()
        assert torch.equal(family.predict(noisy, level, family.encode_text(CAPTIONS[:1])), out)
        assert out.isfinite().all() and float(out.std()) > 1e-3
        latents = family.encode_pixels(torch.rand(1, 3, 64, 64) * 2 - 1)
        assert latents.shape == (1, family.channels, 8, 8) and family.decode(latents).shape == (1, 3, 64, 64)
    assert len(family.truncated) == (1 if name in ("sd15", "sd2") else 2)
    print(f"{name}: peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


@pytest.mark.nightly
def test_t5_at_full_width(tmp_path):
    """Two layers of T5-XXL from a file of their own, against transformers' forward on the tokenizer's ids."""
    encoder = families["sd3-medium"].build().encoders["te3"]
    encoder = replace(encoder, config=encoder.config | {"num_layers": 2})
    transformers: Any = import_module("transformers")

    with torch.device("meta"):
        module = transformers.T5EncoderModel(transformers.T5Config(**encoder.config))
    fill(module).to(torch.bfloat16).eval()
    module.tie_weights()
    state = {k: v for k, v in module.state_dict().items() if "embed_tokens" not in k}
    path = ldm.write(tmp_path / "t5.safetensors", state)
    read = parts.read_encoder(open_file(path, "model.t5"), encoder, torch.bfloat16, None).eval()
    ids = torch.randint(0, 32000, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(read(ids).last_hidden_state, module(ids).last_hidden_state)
