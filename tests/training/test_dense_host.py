"""Dense adapters in a real ComfyUI: COMFYUI_PATH names a checkout, COMFYUI_PYTHON the Python that runs it.

Core's own nodes on networks of ComfyUI's own classes make the map that the trainer predicts, of one ordinary LoRA file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adapters import test_adapters_host as narrow
from safetensors.torch import load_file, save_file

from pixelkiln.trainer.adapters import files
from pixelkiln.trainer.adapters.inject import inject
from pixelkiln.trainer.adapters.options import AdapterOptions
from pixelkiln.trainer.dense.header import TIMESTEP
from pixelkiln.trainer.dense.options import DenseOptions
from pixelkiln.trainer.diffusion.process import Process, scaled_linear
from pixelkiln.trainer.diffusion.types import Conditioning
from pixelkiln.trainer.families.sd15 import SD15
from pixelkiln.trainer.families.sdxl import SDXL
from pixelkiln.trainer.training.dense import DensePrediction, TaskSwitch

pytestmark = pytest.mark.host
SPECS = {"sd15": SD15, "sdxl": SDXL}
HEADS = {"sd15": 8, "sdxl": (1, 1, 2)}
"""Of attention, as ComfyUI's classes have them whatever is configured: 8, and of 64 numbers each."""
CPU = torch.device("cpu")


def trained(folder: Path, family: str) -> torch.Tensor:
    """Write a random dense adapter with all that ComfyUI needs to use it; the latents that the trainer predicts."""
    plain: Any = narrow.denoiser(family)
    torch.manual_seed(3)
    body = type(plain).from_config({**plain.config, "attention_head_dim": HEADS[family]})
    state = {k: v.contiguous() for k, v in narrow.as_comfyui(family, body, {}).items()}
    save_file(state, folder / f"{family}.safetensors")
    adapter = inject(body, {}, family, AdapterOptions(rank=4, alpha=2.0, targets=["."]), seed=2)
    torch.manual_seed(4)
    switch = TaskSwitch(body.time_embedding.linear_2.out_features, 0, torch.float32, CPU)
    with torch.no_grad():
        for parameter in [*adapter.parameters(), *switch.parameters()]:
            parameter.add_(torch.randn_like(parameter) * 0.05)
    system = DensePrediction(DenseOptions(), Process("sample", scaled_linear()), family, {"switch": switch})
    model: Any = SimpleNamespace(family=SimpleNamespace(denoiser=body), adapter=adapter, device=CPU)
    with system.as_saved(model):
        files.save(folder / f"{family}-with-dense.safetensors", adapter.for_file(torch.float32), {})
    width = {"sd15": 768, "sdxl": 2048}[family]
    latents, hidden = torch.randn(1, 4, 16, 24), torch.randn(1, 77, width)
    inputs = {"latents": latents / SPECS[family].vae["scaling_factor"], "hidden": hidden}
    pooled = torch.randn(1, 1280) if family == "sdxl" else None
    save_file(inputs if pooled is None else {**inputs, "pooled": pooled}, folder / f"{family}.inputs")
    rows = torch.zeros(1, dtype=torch.bool)
    adapter.train(False)
    with torch.no_grad():
        conditioning = system.condition(Conditioning(hidden, pooled), rows)
        out = SPECS[family].run(body, latents, torch.tensor([TIMESTEP]), conditioning)
    return out / SPECS[family].vae["scaling_factor"]


def test_core_nodes_make_the_map_that_the_trainer_predicts(tmp_path: Path) -> None:
    if not os.environ.get("COMFYUI_PATH"):
        pytest.skip("COMFYUI_PATH names no ComfyUI")
    wanted = {family: trained(tmp_path, family) for family in SPECS}
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    script = Path(__file__).resolve().parents[1] / "comfy_dense.py"
    command = [python, str(script), os.environ["COMFYUI_PATH"], str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    reported = json.loads(done.stdout.split("FOUND ")[1])
    for family, mine in wanted.items():
        assert reported[f"{family}-with-dense"]["complaints"] == [], "every key is used"
        theirs = load_file(tmp_path / f"{family}.out")["latents"]
        apart = float((theirs - mine).norm() / mine.norm())
        print(f"{family}: {apart:.1e} apart")
        assert apart < 1e-5
