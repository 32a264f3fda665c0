"""A file as Kohya's tools save it goes through ``init_from`` and back without a changed bit."""

from __future__ import annotations

import pytest
import safetensors.torch
import tiny
import torch
from short_runs import config

from pixelkiln.trainer.adapters import files
from pixelkiln.trainer.training.build import build_model


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", tiny.NAMES)
def test_a_kohya_file_comes_back_bit_by_bit(tmp_path, name, dtype) -> None:
    """With convolutions (SD1.5), text encoders, and a rank and an alpha of each module's own, as block_dims makes."""
    whole = {"adapter.text_encoders": True, "run.precision": "fp32"}
    conv = {"adapter.conv_rank": 2} if name == "sd15" else {}  # the tiny SDXL has its samplers in other places
    names = build_model(config(tmp_path, {**whole, **conv}, name), print)[0].adapter
    generator, tensors = torch.Generator().manual_seed(3), {}
    for i, one in enumerate(names.mounted):
        rank = 2 + i % 3
        for key, value in one.tensors().items():
            shape = list(value.shape)
            if key == "lora_down.weight":
                shape[0] = rank
            elif key == "lora_up.weight":
                shape[1] = rank
            made = torch.tensor(1.0 + i % 4) if key == "alpha" else torch.randn(shape, generator=generator)
            tensors[f"{one.plan.site.name}.{key}"] = made.to(dtype)
    file = tmp_path / "theirs.safetensors"
    safetensors.torch.save_file(tensors, file)
    again = build_model(config(tmp_path, {**whole, "adapter.init_from": str(file)}, name), print)[0].adapter
    back = again.for_file(dtype)
    assert set(back) == set(tensors)
    assert all(torch.equal(back[key], value) and back[key].dtype == dtype for key, value in tensors.items())
    files.save(tmp_path / "back.safetensors", back, {})
    assert files.data_hash(tmp_path / "back.safetensors") == files.data_hash(file)
