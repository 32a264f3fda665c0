"""Adapters in the base: the bare model then gives what the model gave with the adapter."""

from __future__ import annotations

from typing import Any

import pytest
import safetensors.torch
import torch
from short_runs import config, trajectory

from pixelkiln.trainer.adapters import files
from pixelkiln.trainer.adapters.verify import probe
from pixelkiln.trainer.training.build import build_model


def output(parts: Any) -> torch.Tensor:
    with torch.no_grad():
        return parts.family.denoiser(**probe(parts.family.denoiser)).sample


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3-medium"])
@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_a_baked_adapter_acts_as_one_that_is_on(tmp_path, name, kind):
    if (name, kind) not in {("sd15", "lora"), ("sd15", "dora"), ("sdxl", "loha"), ("sd3-medium", "lokr"),
                            ("sd3-medium", "lora")}:  # fmt: skip
        pytest.skip("the others are alike")
    plain = build_model(config(tmp_path, {"adapter.kind": kind, "adapter.rank": 2}, name), print)[0]
    torch.manual_seed(1)
    for parameter in plain.adapter.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    file = tmp_path / "first.safetensors"
    header = files.metadata(name, kind, {}, rank=2, alpha=2.0, network_args=plain.adapter.network_args())
    files.save(file, plain.adapter.for_file(torch.float64), header)
    with plain.adapter.reference():
        bare = output(plain)
    on = output(plain)
    baked = build_model(config(tmp_path, {"model.base_adapters": [str(file)]}, name), print)[0]
    assert (on - bare).abs().max() > 1e-3
    torch.testing.assert_close(output(baked), on, rtol=1e-5, atol=1e-6)
    assert baked.family.fingerprints["text"] != plain.family.fingerprints["text"]
    if kind == "lora":
        both = {"model.base_adapters": [str(file)] * 2, "model.base_adapter_weights": [1.0, -1.0]}
        undone = build_model(config(tmp_path, both, name), print)[0]
        torch.testing.assert_close(output(undone), bare, rtol=1e-5, atol=1e-6)


def test_captions_are_cached_anew_on_a_base_with_adapters_when_encoders_are_held_differently(tmp_path):
    plain = build_model(config(tmp_path, {"adapter.text_encoders": True}), print)[0]
    safetensors.torch.save_file(plain.adapter.for_file(torch.float32), tmp_path / "first.safetensors")
    flags = {"model.base_adapters": [str(tmp_path / "first.safetensors")], "run.precision": "fp32"}
    message = {
        held: build_model(config(tmp_path, {**flags, "memory.text_weights": held}), print)[0].family.fingerprints
        for held in ("full", "nf4")
    }
    assert message["full"]["text"] != message["nf4"]["text"] and message["full"]["model"] == message["nf4"]["model"]


def test_a_run_on_top_of_one_saves_the_new_adapter_alone(tmp_path):
    plain = build_model(config(tmp_path, {"adapter.text_encoders": True}), print)[0]
    tensors = {k: torch.full_like(v, 2.0 if k.endswith("alpha") else 0.01) for k, v in
               plain.adapter.for_file(torch.float32).items()}  # fmt: skip
    safetensors.torch.save_file(tensors, tmp_path / "first.safetensors")
    flags = {"model.base_adapters": [str(tmp_path / "first.safetensors")], "run.steps": 1}
    assert trajectory(config(tmp_path, {**flags, "run.name": "on"})) != trajectory(config(tmp_path, {"run.steps": 1}))
    saved = safetensors.torch.load_file(tmp_path / "runs" / "on" / "on.safetensors")
    assert all(float(v.abs().max()) < 0.01 for k, v in saved.items() if "lora_up" in k)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"model.base_adapters": ["{}/none.safetensors"]}, "cannot be read"),
        ({"model.base_adapter_weights": [0.5]}, "more of them than base_adapters"),
    ],
)
def test_what_cannot_be_baked_is_one_clear_line(tmp_path, flags, message):
    flags = {k: [v.format(tmp_path) if isinstance(v, str) else v for v in values] for k, values in flags.items()}
    with pytest.raises(ValueError, match=message):
        build_model(config(tmp_path, flags), print)[0]
